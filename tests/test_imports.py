"""Imports go one way, run time never loads torch, and a bare import loads NumPy alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "saccade.models": ROOT / "models",
    "saccade.engines": ROOT / "engines",
    "saccade.benchmarks": ROOT / "benchmarks",
    "saccade": ROOT / "sdk" / "saccade",
}
# Lowest first: a layer may import itself and the layers before it.
LAYERS = ("saccade.models", "saccade.engines", "saccade", "saccade.benchmarks", "saccade.cli")

# Modules of models and engines that a predictor loads, or that both halves share.
TORCH_FREE = (
    "saccade.models",
    "saccade.models.card",
    "saccade.models.operators",
    "saccade.models.zoo",
    "saccade.models.heads",
    "saccade.engines",
    "saccade.engines.engine",
    "saccade.engines.kernels",
    "saccade.engines.kernels.plugins",
    "saccade.engines.kernels.ptx",
    "saccade.engines.onnxruntime",
    "saccade.engines.openvino",
    "saccade.engines.passes",
    "saccade.engines.tensorrt",
    "saccade.benchmarks",
)
BUILD_TIME = {"torch", "torchvision", "timm", "onnx", "onnxscript", "open_clip", "safetensors", "matplotlib"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its import name, found in the folders and not through the links."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "saccade" and parts[0] in ("models", "engines", "benchmarks"):
                continue
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Every absolute module name that the code imports, at any depth, `from a import b` as a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import at line {node.lineno}"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _runs_on_import(statement: ast.stmt) -> Iterator[ast.stmt]:
    """The statements that importing the module executes: not functions, not TYPE_CHECKING branches."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
        return
    yield statement
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _runs_on_import(child)  # type: ignore[arg-type]


@cache
def loaded_by(module: str) -> frozenset[str]:
    """Top-level names of the other libraries that importing `module` loads, through our own modules too."""
    seen: set[str] = set()
    queue = [module]
    foreign = set()
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in modules():
            if name.partition(".")[0] != "saccade":
                foreign.add(name.partition(".")[0])
            continue
        queue += [name.rpartition(".")[0]] if "." in name else []
        for statement in ast.parse(modules()[name].read_text(encoding="utf-8")).body:
            for executed in _runs_on_import(statement):
                if isinstance(executed, ast.Import | ast.ImportFrom):
                    queue += imports(executed)
    return frozenset(foreign)


def layer(module: str) -> str:
    # The command line calls everything; nothing calls it.
    tops = ("saccade.cli", *FOLDERS)
    return next((name for name in tops if module == name or module.startswith(f"{name}.")), "saccade")


def test_the_walk_finds_the_project_and_sees_an_import() -> None:
    assert {"saccade", "saccade.errors", "saccade.models.card", "saccade.engines.engine"} <= set(modules())
    assert "numpy" in loaded_by("saccade.engines.engine")
    assert "torch" in loaded_by("saccade.models.attention")
    assert set(imports(ast.parse("from saccade.models import card"))) == {
        "saccade.models",
        "saccade.models.card",
    }


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_one_way(module: str) -> None:
    allowed = LAYERS[: LAYERS.index(layer(module)) + 1]
    for imported in imports(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if imported.partition(".")[0] != "saccade" or imported.startswith("saccade.errors"):
            continue
        assert layer(imported) in allowed, f"{module} is in {layer(module)} and imports {imported}"


def test_errors_is_a_leaf() -> None:
    tree = ast.parse(modules()["saccade.errors"].read_text(encoding="utf-8"))
    assert {name.partition(".")[0] for name in imports(tree)} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_shared_modules_load_no_build_time_library(module: str) -> None:
    assert module in modules(), f"{module} is gone: update TORCH_FREE"
    assert not loaded_by(module) & BUILD_TIME


@pytest.mark.parametrize("module", sorted(m for m in modules() if layer(m) in ("saccade", "saccade.cli")))
def test_the_sdk_loads_no_build_time_library(module: str) -> None:
    assert not loaded_by(module) & BUILD_TIME


@pytest.mark.parametrize("module", sorted(m for m, path in modules().items() if path.name == "__init__.py"))
def test_no_package_loads_torch(module: str) -> None:
    assert not loaded_by(module) & BUILD_TIME


def child_loads(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter loads while it runs `code`, without those of start-up."""
    program = (
        "import json, sys\nbefore = set(sys.modules)\n"
        f"{code}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return set(json.loads(child.stdout.splitlines()[-1]))


def test_a_bare_import_loads_numpy_and_the_standard_library() -> None:
    top = {name.partition(".")[0] for name in child_loads("import saccade")}
    assert top <= set(sys.stdlib_module_names) | {"saccade", "numpy"}


PREDICTION = """
import numpy as np, saccade
with saccade.load("digits-stvit", engine={engine!r}) as classify:
    assert classify(np.zeros((64, 48, 3), np.uint8)).top(1)
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_cpu_prediction_loads_no_build_time_library(engine: str) -> None:
    top = {name.partition(".")[0] for name in child_loads(PREDICTION.format(engine=engine))}
    assert engine in top
    assert not top & (BUILD_TIME | {"typer", "rich"})
