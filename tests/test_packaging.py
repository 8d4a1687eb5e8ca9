"""What is in the wheel, and that a machine with nothing but the wheel can classify a picture."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "saccade": ROOT / "sdk" / "saccade",
    "saccade.engines": ROOT / "engines",
    "saccade.models": ROOT / "models",
    "saccade.benchmarks": ROOT / "benchmarks",
}
RECORDS = "saccade/benchmarks/results/"  # measurements belong to the repository, not to the wheel
LINKS = ("engines", "models", "benchmarks")
SOURCES = ("sdk", "engines", "models", "benchmarks", "pyproject.toml", "README.md", "LICENSE")
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")

MAX_WHEEL_MIB = 12
# The promise of design.md is "well under 200 MB" for what a CPU predictor installs.
MAX_INSTALLED_MIB = 200


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tree() -> dict[str, Path]:
    """Every file of the packages by its place in the wheel, from the folders, not the links."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            linked = package == "saccade" and inside.parts[0] in LINKS
            if path.is_file() and not linked and "__pycache__" not in inside.parts:
                found["/".join((*package.split("."), *inside.parts))] = path
    return {name: path for name, path in found.items() if not name.startswith(RECORDS)}


def test_the_package_list_is_the_tree() -> None:
    setuptools = project()["tool"]["setuptools"]
    packages = {name.removesuffix("/__init__.py").replace("/", ".") for name in tree() if "__init__" in name}
    # `saccade` maps to sdk/saccade; a package without an entry of its own would be looked for at the root.
    assert sorted(setuptools["packages"]) == sorted(packages)
    assert sorted(setuptools["package-dir"]) == sorted(packages)
    for name, folder in setuptools["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), name


def test_every_folder_with_code_is_a_package() -> None:
    code = {name.rpartition("/")[0] for name in tree() if name.endswith(".py")}
    assert code == {name.removesuffix("/__init__.py") for name in tree() if name.endswith("/__init__.py")}


def test_the_links_are_relative_and_lead_to_the_folders() -> None:
    for name in LINKS:
        link = ROOT / "sdk" / "saccade" / name
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / name


def test_the_extras_never_ask_for_overwriting_wheels() -> None:
    extras = project()["project"]["optional-dependencies"]

    def reached(extra: str) -> set[str]:
        names: set[str] = set()
        for requirement in extras[extra]:
            name = requirement.partition(">")[0].partition("=")[0]
            own, _, inner = name.partition("[")
            names |= set().union(*map(reached, inner.rstrip("]").split(","))) if own == "saccade" else {name}
        return names

    assert "onnxruntime" in reached("dev")
    for extra in extras:
        assert not {"onnxruntime", "onnxruntime-gpu"} <= reached(extra), extra
        assert "opencv-python" not in reached(extra), extra


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves a build folder and metadata beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=JUNK)
        else:
            shutil.copy2(ROOT / name, source / name)
    dist = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(source)]
    build = subprocess.run(command, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    (built,) = dist.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert sorted(shipped) == sorted(tree())


def test_the_wheel_is_small_and_pure(wheel: Path) -> None:
    assert wheel.name == f"saccade-{project()['project']['version']}-py3-none-any.whl"
    assert wheel.stat().st_size < MAX_WHEEL_MIB * 2**20


PREDICT = """
import json, sys
import numpy as np
from PIL import Image
import saccade

picture, bundle = sys.argv[1:]
Image.fromarray(np.arange(96 * 128 * 3, dtype=np.uint8).reshape(96, 128, 3)).save(picture)
with saccade.load(bundle, prove=True) as classify:
    answers = classify(picture).top(3)
print(json.dumps({"file": saccade.__file__, "answers": answers.to_json()}))
"""


@pytest.mark.slow
def test_a_clean_machine_with_the_wheel_predicts(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", f"{wheel}[cpu]"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr

    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    )
    names = {row["name"].lower() for row in json.loads(listed.stdout)}
    assert not names & {"torch", "timm", "onnx", "onnxscript", "matplotlib", "openvino"}

    (demo,) = (ROOT / "sdk" / "saccade" / "demo").iterdir()
    script = [python, "-I", "-c", PREDICT, str(tmp_path / "picture.png"), demo.name]
    ran = subprocess.run(script, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert Path(json.loads(ran.stdout)["file"]).is_relative_to(environment)

    program = [str(environment / "bin" / "saccade"), "predict", demo.name, "picture.png", "--json"]
    predicted = subprocess.run(program, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout)["picture"] == "picture.png"

    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "-y", "pip", "setuptools"], check=True)
    total = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
    assert total < MAX_INSTALLED_MIB * 2**20
