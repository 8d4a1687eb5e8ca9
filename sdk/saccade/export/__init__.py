"""From a checkpoint to a verified bundle: create, export, derive, compare, write. Build time: needs torch."""

from __future__ import annotations

from saccade.export.bundles import export_bundle
from saccade.export.options import Options

__all__ = ["Options", "export_bundle"]
