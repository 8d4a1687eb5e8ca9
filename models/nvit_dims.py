"""The widths of an NViT, block by block: as data, and by ReViT's redistribution rules.

Source: "Global Vision Transformer Pruning with Hessian-Aware Saliency", arXiv:2110.04869.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from saccade.errors import UsageError

__all__ = ["Dims", "Rule", "redistributed"]

Rule = Literal["code", "paper"]

_WIDE_BLOCKS = range(3, 9)  # blocks 4..9 of 12, counted from one, have epsilon = 2


@dataclass(frozen=True, slots=True)
class Dims:
    """Residual width, and per block the heads, the query/key and value widths of each head, the MLP width."""

    embed: int
    heads: tuple[int, ...]
    qk: tuple[int, ...]
    v: tuple[int, ...]
    mlp: tuple[int, ...]

    @property
    def depth(self) -> int:
        return len(self.heads)

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Dims:
        """From upstream's record {"EMB": int, "head", "QK", "V", "MLP": one int per block}."""
        if not isinstance(data, Mapping) or set(data) != {"EMB", "head", "QK", "V", "MLP"}:
            keys = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"dims are a dict of EMB, head, QK, V and MLP, not {keys}")
        dims = cls(data["EMB"], *(_per_block(key, data[key]) for key in ("head", "QK", "V", "MLP")))
        lengths = {len(dims.heads), len(dims.qk), len(dims.v), len(dims.mlp)}
        if type(dims.embed) is not int or dims.embed < 1:
            raise UsageError(f"dims: EMB is {dims.embed!r}, it must be a positive whole number")
        if len(lengths) != 1 or not dims.depth:
            raise UsageError(f"dims: head, QK, V and MLP need one number per block, not {sorted(lengths)}")
        return dims

    def record(self) -> dict[str, Any]:
        """What `read` reads, for a checkpoint's `dim`."""
        widths = {"head": self.heads, "QK": self.qk, "V": self.v, "MLP": self.mlp}
        return {"EMB": self.embed, **{key: list(value) for key, value in widths.items()}}


def _per_block(key: str, value: Any) -> tuple[int, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or any(type(width) is not int or width < 1 for width in value):
        raise UsageError(f"dims: {key} is {value!r}, it must be a list of positive whole numbers")
    return tuple(value)


def redistributed(embed: int, rule: Rule = "code") -> Dims:
    """The 12 blocks of ReViT at residual width `embed`.

    "paper": section 4 of the paper, heads and query/key widths each rounded on their own.
    "code": what the published program builds. It differs: both end blocks have 10 heads and doubled
    query/key widths, and the wide middle blocks have twice the rounded small widths.
    """
    if rule not in get_args(Rule):
        raise UsageError(f"rule is {rule!r}, known are {' and '.join(get_args(Rule))}")
    rows = [_by_code(embed, block) if rule == "code" else _by_paper(embed, block) for block in range(12)]
    heads, qk, mlp = (tuple(column) for column in zip(*rows, strict=True))
    if min(heads + qk) < 1:
        raise UsageError(f"embed_dim={embed} is too small for ReViT's rule ({rule}): use nvit with dims=")
    return Dims(embed, heads, qk, (64,) * 12, mlp)


def _by_code(embed: int, block: int) -> tuple[int, int, int]:
    """(heads, qk, mlp)."""
    half_heads, eighth_qk = round(0.005 * embed), round(0.05 * embed / 8)
    if block in (0, 11):
        return 10, 16 * eighth_qk, 3 * embed
    epsilon = 2 if block in _WIDE_BLOCKS else 1
    return 2 * epsilon * half_heads, 8 * epsilon * eighth_qk, 3 * epsilon * embed


def _by_paper(embed: int, block: int) -> tuple[int, int, int]:
    """(heads, qk, mlp)."""
    epsilon = 2 if block in _WIDE_BLOCKS else 1
    return 2 * round(epsilon * embed / 200), 8 * round(epsilon * embed / 160), 3 * epsilon * embed
