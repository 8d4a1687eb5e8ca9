"""Every model that `create` and `export` know by name. Plain data: importing it loads no torch."""

from __future__ import annotations

import difflib

from saccade.errors import UsageError
from saccade.models.cards import clip, deepmad, dense, detection, nvit, swin, timm
from saccade.models.entry import Entry

__all__ = ["ENTRIES", "Entry", "entry", "names"]

ENTRIES: dict[str, Entry] = {
    each.card.name: each
    for family in (swin, nvit, deepmad, timm, clip, detection, dense)
    for each in family.ENTRIES
}


def names() -> list[str]:
    """All names, family by family."""
    return list(ENTRIES)


def entry(name: str) -> Entry:
    """The entry called `name`; UsageError with the nearest names otherwise."""
    if name in ENTRIES:
        return ENTRIES[name]
    near = difflib.get_close_matches(name, ENTRIES, n=5, cutoff=0.5)
    hint = f"Did you mean {', '.join(near)}?" if near else "`saccade models` lists the names."
    raise UsageError(f"there is no model called {name!r}. {hint}")
