"""The contract of every `saccade` operator, and its definition in standard ONNX operators. No torch.

One operator is one node of domain `saccade` in an exported graph. The same file carries the node's
definition as an ONNX local function, `Operator.body`, in ONNX's text form: ONNX Runtime inlines it, TensorRT
inlines it or binds the plugin of the same name over it. `saccade.models.attention` holds the same
arithmetic in torch and emits the nodes; for `BatchedNMS` that is `saccade.models.heads.nms`.

Layout of the attention operators is (B, H, W, C) everywhere and grids are never padded by the caller:
padding, masks and gather indices follow from the dimensions, so a body is right for any size, and folds to
constants where the size is fixed. Keys and values arrive projected, once per token, as (B, H, W, 2C): keys
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from saccade.models import bodies

DOMAIN = "saccade"
VERSION = 1
OPSET = 20

# What TensorRT 10.15+ reads from a node to bind the plugin; without a registered plugin the body is inlined.
PLUGIN_ATTRIBUTES: Mapping[str, str | int] = MappingProxyType(
    {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION), "aot": 1}
)


@dataclass(frozen=True, slots=True)
class Operator:
    """Name, input names in order, attributes (all required), and the ONNX function as text."""

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    summary: str
    statements: str

    @property
    def body(self) -> str:
        """The whole function for `onnx.parser.parse_function`."""
        attributes = ", ".join((*self.attributes, *PLUGIN_ATTRIBUTES))
        return (
            f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>\n'
            f"{self.name} <{attributes}> ({', '.join(self.inputs)}) => (y)\n"
            f"{{\n{self.statements}\n}}"
        )


SHIFTED_WINDOW_ATTENTION = Operator(
    "ShiftedWindowAttention",
    ("qkv", "qkv_pad", "position_bias"),
    ("heads", "window", "shift"),
    "qkv (B, H, W, 3C), qkv_pad (3C,), position_bias (heads, window**2, window**2) -> (B, H, W, C): "
    "self-attention in windows of the grid rolled by -shift, padded to whole windows with qkv_pad.",
    bodies.SHIFTED_WINDOW,
)
TOKEN_ATTENTION = Operator(
    "TokenAttention",
    ("q", "kv"),
    ("heads",),
    "q (B, H, W, C), kv (B, Hk, Wk, 2C) -> (B, H, W, C): every query sees every key.",
    bodies.TOKEN,
)
WINDOW_CROSS_ATTENTION = Operator(
    "WindowCrossAttention",
    ("q", "kv", "kv_pad"),
    ("heads", "q_window", "k_window", "k_stride", "k_before"),
    "q (B, H, W, C), kv (B, Hk, Wk, 2C), kv_pad (2C,) -> (B, H, W, C): query windows of q_window see "
    "overlapping key windows of k_window that advance by k_stride and start k_before cells earlier; "
    "STViT-R's pad mask follows from the dimensions.",
    bodies.WINDOW_CROSS,
)
SEEDED_WINDOW_ATTENTION = Operator(
    "SeededWindowAttention",
    ("q", "kv_seeds", "kv"),
    ("heads", "q_window", "k_window", "k_stride"),
    "q (B, H, W, C), kv_seeds (B, H, W, 2C), kv (B, Hk, Wk, 2C) -> (B, H, W, C): query windows see their "
    "own seeds and one key window each, without padding.",
    bodies.SEEDED_WINDOW,
)
BATCHED_NMS = Operator(
    "BatchedNMS",
    ("boxes", "scores"),
    ("iou_threshold", "score_threshold", "kept"),
    "boxes (B, G, N, 4), scores (B, G, N) -> (B, kept) int64: greedy suppression within each group where "
    "IoU > iou_threshold, among scores > score_threshold; what survives in all groups, by falling score, as "
    "an index into the (G, N) of its picture, -1 after the last.",
    bodies.BATCHED_NMS,
)

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        operator.name: operator
        for operator in (
            SHIFTED_WINDOW_ATTENTION,
            TOKEN_ATTENTION,
            WINDOW_CROSS_ATTENTION,
            SEEDED_WINDOW_ATTENTION,
            BATCHED_NMS,
        )
    }
)
