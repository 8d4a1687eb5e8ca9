"""Search a folder of pictures by text or by picture."""

from __future__ import annotations

from saccade.gallery.gallery import Gallery, Hit
from saccade.gallery.indexing import Changes

__all__ = ["Changes", "Gallery", "Hit"]
