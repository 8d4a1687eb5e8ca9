"""Weights from a model hub, when asked for. Needs a network; nothing else in Saccade does.

Addresses: ``timm:ARCHITECTURE.TAG``, ``open_clip:MODEL/TAG``, ``hf:OWNER/REPOSITORY/FILE``, and ``hub``
for the one that the zoo names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from saccade.errors import CheckpointError
from saccade.models.entry import Entry

__all__ = ["fetch", "is_address"]

logger = logging.getLogger("saccade")


def is_address(text: str) -> bool:
    """Whether `text` names a hub rather than a file (write ./hub for a file of that name)."""
    return text == "hub" or text.startswith(tuple(f"{source}:" for source in _SOURCES))


def fetch(address: str, entry: Entry) -> Path:
    """Download what `address` names into the hub's own cache and return the file.

    The licence is logged, since a download accepts it. CheckpointError with the official address and
    licence where the hub does not have the weights or cannot be reached.
    """
    resolved = entry.hub if address == "hub" else address
    if not resolved:
        raise CheckpointError(f"no hub hosts weights of {entry.card.name}. {_official(entry)}")
    source, _, place = resolved.partition(":")
    logger.warning("fetching %s; licence: %s", resolved, entry.card.licence or "see its page")
    try:
        return _SOURCES[source](place)
    except Exception as error:  # each hub client raises its own kinds, network libraries' among them
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"could not fetch {resolved} ({reason:.200}). {_official(entry)}") from error


def _official(entry: Entry) -> str:
    card = entry.card
    if not card.weights:
        return f"No weights of {card.name} were published; pass a file that you trained."
    licence = card.licence or "not stated"
    return f"Take the weights from {card.weights} (licence: {licence}) and pass the file as checkpoint."


def _from_hugging_face(place: str) -> Path:
    from huggingface_hub import hf_hub_download

    owner, repository, file = place.split("/", 2)
    return Path(hf_hub_download(f"{owner}/{repository}", file))


def _from_timm(name: str) -> Path:
    import timm

    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise CheckpointError(f"timm hosts no weights called {name}")
    return _from_hugging_face(f"{known.hf_hub_id}/{known.hf_hub_filename or 'model.safetensors'}")


def _from_open_clip(place: str) -> Path:
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    model, _, tag = place.partition("/")
    known = get_pretrained_cfg(model, tag)
    if not known:
        raise CheckpointError(f"open_clip hosts no weights {tag} of {model}")
    return Path(download_pretrained(known))


_SOURCES: dict[str, Callable[[str], Path]] = {
    "hf": _from_hugging_face,
    "timm": _from_timm,
    "open_clip": _from_open_clip,
}
