"""One line of the zoo: a card, the function that builds the model, and the sizes it is built with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saccade.models.card import Card


@dataclass(frozen=True, slots=True)
class Entry:
    """builder: "module:function", called with `config`. Plain data: reading an entry imports no torch.

    hub: where ``checkpoint="hub"`` fetches weights, in the grammar of `saccade.models.hub`; empty where
    no hub that we know of hosts them.
    """

    card: Card
    builder: str
    config: Mapping[str, Any]
    hub: str = ""
