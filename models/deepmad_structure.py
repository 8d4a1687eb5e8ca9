"""Structures of DeepMAD networks as data: read from our JSON, from upstream's text, or from Python lists.

Two spellings of the same block are read, keys of one or the other:

    ours       {"type": "SuperResK1KXK1", "in": 32, "out": 96, "mid": 40, "k": 5, "stride": 2, "layers": 1}
    upstream   {'class': 'SuperResK1KXK1', 'in': 32, 'out': 96, 'btn': 40, 'k': 5, 's': 2, 'L': 1}

Upstream files are Python literals (a list of blocks, or {'best_structures': [list, ...]}); they are parsed
as literals, never evaluated. Source: DeepMAD, arXiv:2303.02165, and the structures published with it.
"""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from saccade.errors import UsageError

__all__ = ["Block", "Kind", "Structure", "known_structures", "read_structure"]

Kind = Literal["conv", "dense", "depthwise-se", "depthwise"]

_CLASSES: dict[str, Kind] = {
    "conv": "conv",
    "ConvKXBNRELU": "conv",
    "ConvKXBN": "conv",
    "SuperResK1KXK1": "dense",
    "SuperResK1DWSEK1": "depthwise-se",
    "SuperResK1DWK1": "depthwise",
}
_OWN_KEYS = {"type": "class", "mid": "btn", "stride": "s", "layers": "L"}
_KEYS = frozenset(("class", "inner_class", "in", "out", "k", "s", "L", "btn", "p", "g", "act"))
_WITHOUT_EFFECT = frozenset(("force_resproj_skip",))
_CONV_ACTIVATIONS = ("relu", "relu6", "sigmoid", "swish", "learkyrelu")
_LONGEST_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """A conv-BN-activation, or `layers` residual units of which the first has the stride.

    kernel: of the conv, or of the middle conv of a unit. mid, groups: of residual units.
    activation: of a conv block, None for none; a unit's follows from its kind.
    """

    kind: Kind
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    mid: int = 0
    layers: int = 1
    groups: int = 1
    activation: str | None = "relu"

    @property
    def pools_shortcut(self) -> bool:
        """Whether the first unit adds an average-pooled input, which needs an even map (see `check_size`)."""
        has_shortcut = self.kind == "dense" or self.in_channels == self.out_channels
        return self.kind != "conv" and self.stride == 2 and has_shortcut


@dataclass(frozen=True, slots=True)
class Structure:
    """The blocks of a network from the image to the last map."""

    blocks: tuple[Block, ...]

    def stage_ends(self) -> tuple[int, ...]:
        """Indices of the blocks before each stride-2 block, and of the last one (upstream's rule)."""
        inner = (index - 1 for index, block in enumerate(self.blocks) if index and block.stride == 2)
        return (*inner, len(self.blocks) - 1)

    def stride_at(self, index: int) -> int:
        """Total stride of the map that block `index` gives."""
        stride = 1
        for block in self.blocks[: index + 1]:
            stride *= block.stride
        return stride

    def check_size(self, height: int, width: int) -> None:
        """Raise UsageError where a picture of this size cannot pass.

        A stride-2 conv rounds an odd map up, the pool on the shortcut beside it rounds down: they cannot
        be added. Blocks without a shortcut at stride 2 take any size.
        """
        map_hw = (height, width)
        for index, block in enumerate(self.blocks):
            if block.pools_shortcut and any(side % 2 for side in map_hw):
                multiple = self.stride_at(len(self.blocks) - 1)
                raise UsageError(
                    f"a {height}x{width} picture reaches block {index} as a {map_hw[0]}x{map_hw[1]} map, and "
                    f"this block halves its input: use sides that are multiples of {multiple}"
                )
            reach = 2 * block.padding - block.kernel
            map_hw = ((map_hw[0] + reach) // block.stride + 1, (map_hw[1] + reach) // block.stride + 1)


def known_structures() -> tuple[str, ...]:
    """Names of the published structures."""
    return tuple(_published())


def read_structure(
    source: str | Path | Mapping[str, Any] | Sequence[Any], index: int | None = None
) -> Structure:
    """The structure called `source`, in the file `source`, or given as lists and dicts.

    index: which one of several `best_structures`. Raises UsageError that names the block and the key.
    """
    if isinstance(source, str | Path):
        return read_structure(_published().get(str(source)) or _from_file(Path(source)), index)
    blocks = _chosen(source, index) if isinstance(source, Mapping) else source
    if isinstance(blocks, str) or not isinstance(blocks, Sequence) or not blocks:
        raise UsageError("a structure is a list of blocks, first the one that sees the picture")
    return _chained(tuple(_block(position, block) for position, block in enumerate(blocks)))


@cache
def _published() -> dict[str, list[dict[str, Any]]]:
    text = (files("saccade.models") / "data" / "deepmad_structures.json").read_text()
    return {name: model["blocks"] for name, model in json.loads(text)["models"].items()}


def _from_file(path: Path) -> Any:
    if not path.is_file():
        near = difflib.get_close_matches(str(path), _published()) or sorted(_published())
        raise UsageError(f"{path} is neither a file nor a known structure ({', '.join(near)})")
    if path.stat().st_size > _LONGEST_FILE_BYTES:
        raise UsageError(f"{path} has {path.stat().st_size} bytes; structure files have a few thousand")
    text = path.read_text(errors="replace").strip()
    try:
        return json.loads(text) if path.suffix == ".json" else ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} is no structure file: {error} (JSON in *.json, else a literal)") from error


def _chosen(source: Mapping[str, Any], index: int | None) -> Any:
    if "blocks" in source:
        return source["blocks"]
    structures = source.get("best_structures")
    if not isinstance(structures, Sequence) or not structures:
        raise UsageError(
            f"a structure dict has `blocks` or `best_structures`, not {sorted(map(str, source))}"
        )
    if index is None and len(structures) > 1:
        raise UsageError(f"the file holds {len(structures)} structures: choose one with structure_index=0..")
    if not 0 <= (index or 0) < len(structures):
        raise UsageError(f"structure_index={index}: the file holds {len(structures)} structures")
    return structures[index or 0]


def _block(position: int, data: Any) -> Block:
    if not isinstance(data, Mapping):
        raise UsageError(f"block {position} is a {type(data).__name__}, not a dict")
    spelled = {str(key): value for key, value in data.items() if key not in _WITHOUT_EFFECT}
    keys = {_OWN_KEYS.get(key, key): value for key, value in spelled.items()}
    where = f"block {position} ({keys.get('class', 'no class')})"
    if "nbitsA" in keys or "nbitsW" in keys:
        raise UsageError(f"{where} is of the quantised family (nbitsA, nbitsW), which is not supported")
    if not isinstance(keys.get("class"), str) or keys["class"] not in _CLASSES:
        raise UsageError(f"{where}: known classes are {', '.join(_CLASSES)}")
    if unknown := sorted(set(keys) - _KEYS):
        raise UsageError(f"{where} has unknown keys: {', '.join(unknown)}")
    kind = _CLASSES[keys["class"]]
    block = Block(
        kind=kind,
        in_channels=_number(where, keys, "in"),
        out_channels=_number(where, keys, "out"),
        kernel=(kernel := _number(where, keys, "k")),
        stride=_number(where, keys, "s", 1),
        padding=_number(where, keys, "p", (kernel - 1) // 2, least=0),
        mid=0 if kind == "conv" else _number(where, keys, "btn"),
        layers=1 if kind == "conv" else _number(where, keys, "L"),
        groups=_number(where, keys, "g", 1),
        activation=_activation(where, keys),
    )
    _check_block(where, block, keys)
    return block


def _number(where: str, keys: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    value = keys.get(key, default)
    if type(value) is not int or value < least:
        raise UsageError(f"{where}: `{key}` must be a whole number of at least {least}, not {value!r}")
    return value


def _activation(where: str, keys: Mapping[str, Any]) -> str | None:
    if keys["class"] == "ConvKXBN":
        default: str | None = None
    elif _CLASSES[keys["class"]] == "conv":
        default = "relu"
    elif "act" in keys:
        raise UsageError(f"{where}: `act` belongs to conv blocks; a residual unit's follows from its class")
    else:
        return None
    activation = keys.get("act", default)
    if default is None and activation is not None:
        raise UsageError(f"{where} has no activation: use ConvKXBNRELU for `act`")
    if activation is not None and activation not in _CONV_ACTIVATIONS:
        raise UsageError(f"{where}: `act` is {activation!r}, known are {', '.join(_CONV_ACTIVATIONS)}")
    return activation


def _check_block(where: str, block: Block, keys: Mapping[str, Any]) -> None:
    if block.stride not in (1, 2):
        raise UsageError(f"{where}: the stride is {block.stride}, it can be 1 or 2")
    if block.kernel % 2 == 0:
        raise UsageError(f"{where}: the kernel is {block.kernel}, it must be odd")
    if block.kind == "conv":
        if block.groups != 1:
            raise UsageError(f"{where}: `g` belongs to residual blocks")
        return
    inner = keys["class"].removeprefix("Super")
    if keys.get("inner_class", inner) != inner:
        raise UsageError(f"{where}: `inner_class` is {keys['inner_class']!r}, the class implies {inner!r}")
    if block.padding != (block.kernel - 1) // 2:
        raise UsageError(f"{where}: `p` is {block.padding}, a residual unit needs {(block.kernel - 1) // 2}")
    if any(width % block.groups for width in (block.in_channels, block.mid, block.out_channels)):
        raise UsageError(f"{where}: `g`={block.groups} does not divide all of its widths")


def _chained(blocks: tuple[Block, ...]) -> Structure:
    if blocks[0].in_channels != 3:
        raise UsageError(f"block 0 takes {blocks[0].in_channels} channels, a picture has 3")
    for position, (before, block) in enumerate(pairwise(blocks), start=1):
        if block.in_channels != before.out_channels:
            raise UsageError(
                f"block {position} takes {block.in_channels} channels, "
                f"the one before gives {before.out_channels}"
            )
    return Structure(blocks)
