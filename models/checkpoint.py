"""Reading weights without executing anything, and loading them strictly.

Accepted are safetensors files and files of `torch.save`. The latter are pickles: they are read with
`weights_only=True`, and nothing else. Published training checkpoints also carry option objects that this
mode refuses; for exactly those class names inert stand-ins are allowed through torch's own safe globals.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saccade.errors import CheckpointError

__all__ = ["Checkpoint", "Source", "load_strict", "read_checkpoint"]

Source = str | Path | Mapping[str, Any]
Ignore = Callable[[str], bool]


@dataclass(frozen=True)
class Checkpoint:
    """Weights by name, and the plain data that came with them (`dim` of NViT, for one).

    `state` keeps the file's names, less the wrappers of parallel training and compilation. `metadata`
    holds only numbers, strings, None and lists and dicts of them.
    """

    state: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(source: Source) -> Checkpoint:
    """Weights from a file or from a mapping that is, or holds under `model` or `state_dict`, a state dict.

    Raises CheckpointError for files that are missing, damaged, not checkpoints, or that would execute code.
    """
    if isinstance(source, Mapping):
        return _unwrapped(source, "the given mapping")
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty: download or copy it again")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict. {_RESAVE}")
    return _unwrapped(content, str(path))


def load_strict(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, what: str, ignore: Ignore | None = None
) -> None:
    """Copy `state` into `module`; every difference of names or shapes is an error that lists them.

    what: what the weights should fit, for the message, e.g. "stvit_r_swin_small".
    ignore: names for which it is true are neither required nor read (buffers that the module computes).
    `num_batches_tracked` is always ignored: it has no effect in eval mode. Half-precision weights are
    converted to the module's own dtype.
    """

    def counts(name: str) -> bool:
        return not name.endswith("num_batches_tracked") and not (ignore is not None and ignore(name))

    own = {name: tensor for name, tensor in module.state_dict().items() if counts(name)}
    given = {name: tensor for name, tensor in state.items() if counts(name)}
    problems = _differences(own, given)
    if problems:
        hint = _family_hint(given)
        raise CheckpointError(f"the checkpoint does not fit {what}:\n" + "\n".join(problems) + hint)
    module.load_state_dict(given, strict=False)


# --- files ---------------------------------------------------------------------------------------------

_RESAVE = (
    "Re-save the weights from the program that made it: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


def _is_safetensors(path: Path) -> bool:
    """A safetensors file opens with the length of its JSON header, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = {key: _parsed(text) for key, text in (file.metadata() or {}).items()}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
    return {"state_dict": state, **{key: value for key, value in metadata.items() if key != "state_dict"}}


def _parsed(text: str) -> Any:
    """safetensors metadata is text only; structured values are stored as JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class _Inert:
    """Stands for an option class: pickle may create it, and gets a dict of whatever was stored."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()  # one of the few types that torch's unpickler lets items and state be set on


class _Opaque:
    """Stands for an array inside such an option object: swallows its arguments and its state."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# The classes in published checkpoints of the supported families: NViT (argparse), STViT-R (yacs), and
# mmdetection 3 (HistoryBuffer with the arrays in it).
_STAND_INS: list[Any] = [
    (_Inert, "argparse.Namespace"),
    (_Inert, "yacs.config.CfgNode"),
    (_Inert, "mmengine.logging.history_buffer.HistoryBuffer"),
    (_Opaque, "numpy.core.multiarray._reconstruct"),
    (_Opaque, "numpy._core.multiarray._reconstruct"),
    (_Opaque, "numpy.core.multiarray.scalar"),
    (_Opaque, "numpy._core.multiarray.scalar"),
    (_Opaque, "numpy.ndarray"),
    (_Opaque, "numpy.dtype"),
]


def _read_pickle(path: Path) -> Any:
    try:
        return _torch_load(path)
    except Exception as error:
        if _refused_name(error) is None:
            raise _unreadable(path, error) from error
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return _torch_load(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _torch_load(path: Path) -> Any:
    # Mapping keeps the optimizer state of training checkpoints out of memory; only zip archives can be.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _refused_name(error: Exception) -> str | None:
    """The Python object that a pickle asked for and torch denied, from torch's message."""
    found = re.search(r"GLOBAL `?([\w.]+)", str(error))
    return found[1] if found else None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    refused = _refused_name(error)
    if refused is not None:
        return CheckpointError(
            f"{path} was not read: its pickle calls for {refused}, and running that could execute "
            f"anything. {_RESAVE}"
        )
    if "TorchScript" in str(error):
        return CheckpointError(f"{path} is a TorchScript program, not a state dict. {_RESAVE}")
    summary = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{path} is not a checkpoint, or is damaged or cut short ({summary:.200})")


# --- content -------------------------------------------------------------------------------------------

_CONTAINERS = ("model", "state_dict")
_WRAPPERS = ("module.", "_orig_mod.")


def _unwrapped(content: Mapping[str, Any], where: str) -> Checkpoint:
    container = next((name for name in _CONTAINERS if isinstance(content.get(name), Mapping)), None)
    inner = content if container is None else content[container]
    state = {str(name): value for name, value in inner.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise CheckpointError(
            f"{where} holds no weights. Its entries: {_cut(map(str, content))}. Weights are looked for "
            f"at the top and under {' and '.join(_CONTAINERS)}"
        )
    metadata = {str(key): value for key, value in content.items() if key != container and _is_plain(value)}
    return Checkpoint(_without_wrappers(state), metadata)


def _without_wrappers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            return _without_wrappers({name[len(prefix) :]: tensor for name, tensor in state.items()})
    return state


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


# --- differences ---------------------------------------------------------------------------------------


def _differences(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor]) -> list[str]:
    """One line per kind of difference, each with its count and the first names."""
    missing = [name for name in own if name not in given]
    unexpected = [name for name in given if name not in own]
    misshaped = [
        f"{name}: file {tuple(given[name].shape)} model {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
    return [f"  {len(names)} {kind}: {_cut(names)}" for kind, names in kinds if names]


def _cut(names: Iterable[str], limit: int = 10) -> str:
    listed = list(names)
    rest = f", and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + rest


# Keys that only one family has, most specific first.
_SIGNATURES = (
    (r"attn\.qkv\.(token_mask|Q\.weight)$", "nvit or revit_*"),
    (r"^block_list\.\d+\.", "deepmad_*"),
    (r"layers\.\d+\.blocks\.\d+\.attn\.kv\.weight$", "stvit_r_swin_*"),
    (r"attention_biases$", "tiny_vit_*"),
    (r"relative_position_bias_table$", "swin_*"),
    (r"^image_encoder\.", "mobileclip_* (official layout)"),
    (r"^visual\.trunk\.", "mobileclip_* (open_clip layout)"),
    (r"^visual\.transformer\.resblocks\.", "clip_vit_b_16"),
    (r"token_mixer\.mixer\.", "fastvit_mci*"),
    (r"^dist_token$", "deit_*_distilled"),
    (r"^norm_pre\.weight$", "vit_base_patch16_clip_224"),
    (r"^blocks\.\d+\.attn\.qkv\.weight$", "deit_*"),
)


def _family_hint(given: Mapping[str, torch.Tensor]) -> str:
    for pattern, family in _SIGNATURES:
        if any(re.search(pattern, name) for name in given):
            return f"\nThe checkpoint's names look like those of {family}."
    return ""
