"""Weights are read without executing anything, and fit exactly or not at all."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from saccade.errors import CheckpointError
from saccade.models.checkpoint import load_strict, read_checkpoint

WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, 2.0])}


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def assert_is_weights(state: dict[str, torch.Tensor]) -> None:
    assert state.keys() == WEIGHTS.keys()
    for name, tensor in WEIGHTS.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(WEIGHTS, id="bare"),
        pytest.param({"model": WEIGHTS, "epoch": 3}, id="model"),
        pytest.param({"state_dict": WEIGHTS, "meta": {"a": 1}}, id="state_dict"),
        pytest.param({f"module.{name}": tensor for name, tensor in WEIGHTS.items()}, id="parallel"),
        pytest.param({f"module._orig_mod.{name}": t for name, t in WEIGHTS.items()}, id="compiled"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_layouts_give_the_same_weights(tmp_path: Path, content: Any, zipped: bool) -> None:
    path = saved(tmp_path / "weights.pth", content, _use_new_zipfile_serialization=zipped)
    assert_is_weights(read_checkpoint(path).state)
    assert_is_weights(read_checkpoint(content).state)


def test_metadata_is_the_plain_part(tmp_path: Path) -> None:
    dim = {"EMB": 16, "head": [2, 4]}
    content = {"model": WEIGHTS, "optimizer": {"state": {0: torch.ones(1)}}, "dim": dim, "epoch": 3}
    assert read_checkpoint(saved(tmp_path / "w.pth", content)).metadata == {"dim": dim, "epoch": 3}


def test_safetensors_with_structured_metadata(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"  # recognised by content, not by suffix
    dim = {"EMB": 16, "head": [2, 4]}
    safetensors.torch.save_file(WEIGHTS, path, metadata={"dim": json.dumps(dim), "note": "by hand"})
    checkpoint = read_checkpoint(path)
    assert_is_weights(checkpoint.state)
    assert checkpoint.metadata == {"dim": dim, "note": "by hand"}


class CfgNode(dict[str, Any]):
    """As yacs' own class: a dict with attributes beside its items."""

    def __init__(self) -> None:
        super().__init__(MODEL={"NAME": "x"})
        self.__dict__["__immutable__"] = True


class HistoryBuffer:
    """As mmengine's: an object that holds arrays."""

    def __init__(self) -> None:
        self._log_history = np.arange(3.0)
        self._count = np.float64(3.0)


@contextmanager
def importable_as(option: type, module: str) -> Iterator[None]:
    """Make `option` the class of that name in `module`, a package that is not installed here."""
    parents = module.split(".")
    names = [".".join(parents[: end + 1]) for end in range(len(parents))]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setattr(sys.modules[module], option.__name__, option, raising=False)
        patch.setattr(option, "__module__", module)
        yield


@pytest.mark.parametrize(
    ("module", "option"),
    [
        ("argparse", argparse.Namespace),
        ("yacs.config", CfgNode),
        ("mmengine.logging.history_buffer", HistoryBuffer),
    ],
)
def test_known_option_objects_are_passed_over(tmp_path: Path, module: str, option: type) -> None:
    """The option classes of published checkpoints need not be installed, and are never run."""
    allowed_before = torch.serialization.get_safe_globals()
    with importable_as(option, module):
        path = saved(tmp_path / "w.pth", {"model": WEIGHTS, "args": option(), "dim": [1, 2]})
    checkpoint = read_checkpoint(path)
    assert_is_weights(checkpoint.state)
    assert checkpoint.metadata["dim"] == [1, 2]
    assert set(torch.serialization.get_safe_globals()) == set(allowed_before)


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


class Unknown:
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_execute_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    canary = tmp_path / "executed"
    content = {"model": WEIGHTS, "args": argparse.Namespace(), "x": Bomb(canary)}
    path = saved(tmp_path / "w.pth", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"posix\.system.*safetensors"):
        read_checkpoint(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists(), "the file is harmless, so the test proves nothing"


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"model": WEIGHTS, "x": Unknown()})
    with pytest.raises(CheckpointError, match=r"Unknown.*safetensors"):
        read_checkpoint(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "whole.pth")
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(WEIGHTS, tmp_path / "whole.safetensors")
    contents = {
        "truncated zip": (tmp_path / "whole.pth").read_bytes()[:-100],
        "half zip": (tmp_path / "whole.pth").read_bytes()[:400],
        "truncated pickle": (tmp_path / "old.pth").read_bytes()[:-10],
        "truncated safetensors": (tmp_path / "whole.safetensors").read_bytes()[:-4],
        "empty": b"",
        "one byte": b"\x80",
        "text": b"<html>404 Not Found</html>",
        "picture": b"\xff\xd8\xff\xe0" + bytes(200),
    }
    for name, data in contents.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"model": {"a": 1}}, [torch.ones(1)], 3.0])
def test_files_without_weights_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match=r"holds"):
        read_checkpoint(saved(tmp_path / "w.pth", content))


def test_missing_file_and_torchscript(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "absent.pth")


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_load_strict_copies_and_converts() -> None:
    source, target = model(), model()
    half = {name: t.half() for name, t in source.state_dict().items() if "num_batches" not in name}
    load_strict(target, half, what="toy")
    weight = target.state_dict()["0.weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, source[0].weight.detach().half().float(), rtol=0, atol=0)


def test_load_strict_names_every_difference() -> None:
    state = dict(model().state_dict())
    state["0.weight"] = torch.zeros(5, 3)
    del state["1.running_mean"]
    state["extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_strict(model(), state, what="toy")
    text = str(caught.value)
    assert "does not fit toy" in text
    assert "1 missing: 1.running_mean" in text
    assert "1 unexpected: extra.weight" in text
    assert "1 mis-shaped: 0.weight: file (5, 3) model (2, 3)" in text


def test_long_lists_are_cut_and_the_family_is_guessed() -> None:
    state = {f"block_list.{i}.conv1.weight": torch.zeros(1) for i in range(15)}
    with pytest.raises(CheckpointError, match=r"15 unexpected: .*and 5 more\n.*deepmad"):
        load_strict(model(), state, what="toy")


def test_ignored_names_are_neither_required_nor_read() -> None:
    source, target = model(), model()
    state = dict(source.state_dict()) | {"mask": torch.ones(1), "1.running_mean": torch.ones(2)}
    load_strict(target, state, what="toy", ignore=lambda name: name in ("mask", "1.running_mean"))
    torch.testing.assert_close(target.state_dict()["1.running_mean"], torch.zeros(2))
    torch.testing.assert_close(target.state_dict()["0.weight"], source.state_dict()["0.weight"])
