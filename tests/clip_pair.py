"""The sizes of the small pair of towers that the tests of zero-shot and search share."""

from __future__ import annotations

from typing import Any

CONFIG: dict[str, Any] = {
    "img_size": 32,
    "embed_dim": 32,
    "depth": 1,
    "num_heads": 2,
    "embedding_width": 24,
    "text_width": 32,
    "text_layers": 1,
    "text_heads": 2,
    "vocabulary": 600,
    "context": 12,
    "quick_gelu": True,
}
