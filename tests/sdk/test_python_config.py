"""Configurations that are Python: read like mmengine reads them, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saccade import UsageError
from saccade.export.python_config import read


def write(folder: Path, **files: str) -> Path:
    """Files NAME.py; the path of the last one."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder / f"{name}.py"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = 1", {"a": 1}),
        ("a = -1.5\nb = +a", {"a": -1.5, "b": -1.5}),
        ("a = None\nb = True\nc = not b", {"a": None, "b": True, "c": False}),
        ("a = [1, (2, 'x')]", {"a": [1, (2, "x")]}),
        ("a = dict(b=1, c={'d': 2, 3: 4})", {"a": {"b": 1, "c": {"d": 2, 3: 4}}}),
        ("r = 'data/'\na = r + 'x.json'", {"r": "data/", "a": "data/x.json"}),
        ("a = [0] * 3 + [1]", {"a": [0, 0, 0, 1]}),
        ("a = 7 // 2\nb = 1 / 4", {"a": 3, "b": 0.25}),
        (
            "n = dict(m=1)\na = dict(t=2, **n)\nb = {**n}",
            {"n": {"m": 1}, "a": {"t": 2, "m": 1}, "b": {"m": 1}},
        ),
        ("n = [1, 2]\na = [*n, 3]", {"n": [1, 2], "a": [1, 2, 3]}),
        ('"""What it is."""\na = b = 2', {"a": 2, "b": 2}),
        ("a: int = 3", {"a": 3}),
        ("__secret = 1\na = 2", {"a": 2}),
        ("a = 1\na = a + 1", {"a": 2}),
    ],
)
def test_plain_data(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    assert read(write(tmp_path, config=text)) == expected


def test_bases_are_merged_dict_by_dict(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        model="model = dict(type='M', neck=dict(a=1, b=[1, 2]), head=dict(c=dict(d=1)))",
        data="size = (1, 2)\npipeline = [1]",
        child="_base_ = ['model.py', './data.py']\n"
        "model = dict(neck=dict(b=[3]), head=dict(c=dict(e=2)))\npipeline = [2]",
    )
    assert read(path) == {
        "model": {"type": "M", "neck": {"a": 1, "b": [3]}, "head": {"c": {"d": 1, "e": 2}}},
        "size": (1, 2),
        "pipeline": [2],
    }


def test_a_dict_can_replace_the_base_s(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base="model = dict(backbone=dict(type='A', depth=50), neck=dict(n=1))",
        child="_base_ = 'base.py'\n"
        "model = dict(backbone=dict(_delete_=True, type='B', new=dict(_delete_=True, x=1)))",
    )
    assert read(path) == {"model": {"backbone": {"type": "B", "new": {"x": 1}}, "neck": {"n": 1}}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = {{_base_.size}}", {"a": (1, 2)}),
        ("a = dict(b='{{ _base_.size }}')", {"a": {"b": (1, 2)}}),
        ("a = _base_.data.steps[1].size", {"a": 5}),
        ("a = [*_base_.data['steps'], 1]", {"a": [{"type": "Load"}, {"size": 5}, 1]}),
        ("_base_.data.steps[1].size = 6", {"data": {"steps": [{"type": "Load"}, {"size": 6}]}}),
        ("_base_.size = _base_.size + (3,)", {"size": (1, 2, 3)}),
        (
            "_base_.data.new = 1\ndata = dict(new=2)",
            {"data": {"steps": [{"type": "Load"}, {"size": 5}], "new": 2}},
        ),
    ],
)
def test_a_file_refers_to_its_bases(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    base = {"size": (1, 2), "data": {"steps": [{"type": "Load"}, {"size": 5}]}}
    path = write(
        tmp_path, base=f"size = {base['size']}\ndata = {base['data']}", child=f"_base_ = 'base.py'\n{text}"
    )
    assert read(path) == base | expected


def test_bases_have_bases_beside_themselves(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep", first="a = 1", second="_base_ = ['first.py']\nb = 2")
    assert read(write(tmp_path, child="_base_ = ['deep/second.py']\na = 3")) == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "from os import system",
        "a = open('x')",
        "a = __import__('os').system('true')",
        "a = [x for x in range(3)]",
        "a = lambda: 1",
        "a = f'{1}'",
        "def f(): pass",
        "if True:\n    a = 1",
        "a = dict([('b', 1)])",
        "a = unknown",
        "a = {}\na['b'] = 1",
        "a = 1\na += 1",
        "a = 9 ** 9",
        "a = [0] * 10000000",
        "a = (x := 1)",
        "a = dict(**[1])",
    ],
)
def test_a_program_is_refused_by_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"config\.py, line \d+: .* configurations are read, not run"):
        read(write(tmp_path, config=text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = {{_base_.b}}", "not in the base"),
        ("_base_ = 'one.py'\na = '{{_base_.b}}'", "line 2: .* is not in the base"),
        ("_base_ = 'one.py'\na = _base_.a.b", "not in the base"),
        ("_base_ = 'one.py'\n_base_.a.b = 1", "not in the base"),
        ("a = '{{ fileDirname }}'", "not plain data"),
        ("a = '{{ ) }}'", "not plain data"),
        ("from mmengine.config import read_base", "mmengine's style of imports"),
        ("with read_base():\n    from x import *", "mmengine's style of imports"),
        ("_base_ = 'missing.py'", "which .*config.py is based on, cannot be read"),
        ("_base_ = 'config.py'", "is its own base"),
        ("_base_ = 3", "must be a file name"),
        ("_base_ = 'mmdet::x.py'", "in another package"),
        ("_base_ = ['one.py', 'two.py']", "two of its bases have 'a'"),
        ("_base_ = 'one.py'\na = dict(b=1)", "in the base it is a int"),
        ("a = (", "is not Python"),
        ("a = 1 + 'x'", "line 1: unsupported operand"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, one="a = 1", two="a = 2")
    with pytest.raises(UsageError, match=message):
        read(write(tmp_path, config=text))
