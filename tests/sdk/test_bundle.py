"""A bundle is written whole or not at all, and what has been touched since is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import tiny

from saccade import bundle
from saccade.bundle import Bundle
from saccade.errors import BundleError, ExportError, SaccadeError, UsageError

FIXTURES = Path(__file__).resolve().parents[1] / "data" / "bundles"


@pytest.fixture
def folder(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_bundle.path, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_written_is_read(tiny_bundle: Bundle) -> None:
    read = bundle.read(tiny_bundle.path)
    assert read == tiny_bundle
    assert (read.name, read.task, read.card) == ("tiny", "classification", tiny.CARD)
    assert read.graphs["model"].files["source"] == tiny_bundle.path / "graphs" / "source.onnx"
    assert read.graphs["model"].inputs[0].shape == ("batch", 3, 32, 32)
    assert not read.untrained
    assert set(read.files) >= {"graphs/source.onnx", "graphs/source.bin", "conformance.npz", "verify.json"}


def test_a_moved_bundle_still_reads(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    assert bundle.read(moved).graphs["model"].files["source"].is_file()


@pytest.mark.parametrize("schema", [1, 2])
def test_every_schema_that_was_ever_written_is_read(schema: int) -> None:
    read = bundle.read(FIXTURES / f"schema_{schema}")
    assert (read.name, read.card.labels[:2]) == ("tiny", ("ant", "bee"))


@pytest.mark.parametrize(
    "name", ["graphs/source.onnx", "graphs/source.bin", "conformance.npz", "verify.json"]
)
def test_one_changed_byte_is_refused(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} has changed"):
        bundle.read(folder)
    assert bundle.read(folder, check=False).name == "tiny"


def link_outside(folder: Path) -> None:
    outside = folder.parent / "outside.bin"
    shutil.move(folder / "graphs" / "source.bin", outside)
    (folder / "graphs" / "source.bin").symlink_to(outside)


def link_folder_outside(folder: Path) -> None:
    shutil.move(folder / "graphs", folder.parent / "graphs-elsewhere")
    (folder / "graphs").symlink_to(folder.parent / "graphs-elsewhere")


def append(folder: Path) -> None:
    with (folder / "graphs" / "source.bin").open("ab") as file:
        file.write(b"x")


def name_other_file(manifest: dict[str, Any]) -> None:
    manifest["graphs"]["model"]["files"]["source"] = "graphs/other.onnx"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "bundle.json").unlink(), "has no bundle.json"),
        (lambda f: (f / "bundle.json").write_text("{"), "not JSON"),
        (lambda f: (f / "bundle.json").write_text("[]"), "no valid schema"),
        (lambda f: (f / "bundle.json").write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda f: (f / "bundle.json").write_text(" " * (2**24 + 1)), "at most"),
        (lambda f: (f / "graphs" / "source.bin").unlink(), "missing"),
        (append, "bytes, recorded are"),
        (lambda f: os.truncate(f / "graphs" / "source.bin", 9), "has 9 bytes"),
        (lambda f: (f / "graphs" / "extra.bin").touch(), r"does not list: graphs/extra\.bin"),
        (link_outside, "link or a special file"),
        (link_folder_outside, "link or a special file"),
        (lambda f: edit(f, lambda m: m.update(schema=3)), "pip install"),
        (lambda f: edit(f, lambda m: m.update(schema="1")), "no valid schema"),
        (lambda f: edit(f, lambda m: m.pop("card")), "card"),
        (lambda f: edit(f, lambda m: m["card"].update(preprocessing={"resize": "sideways"})), "sideways"),
        (lambda f: edit(f, lambda m: m.update(name=3)), "3 is not a text"),
        (lambda f: edit(f, lambda m: m.update(graphs={})), "no graphs"),
        (lambda f: edit(f, lambda m: m["graphs"]["model"].update(files={})), "called source"),
        (lambda f: edit(f, lambda m: m["graphs"]["model"].update(sample="x.npz")), "among the files"),
        (lambda f: edit(f, name_other_file), "among the files"),
        (lambda f: edit(f, lambda m: m["files"].update({"../x": m["files"]["verify.json"]})), "outside"),
        (
            lambda f: edit(f, lambda m: m["files"].update({"/etc/hosts": m["files"]["verify.json"]})),
            "outside",
        ),
        (lambda f: edit(f, lambda m: m["files"].update({"a\\b": m["files"]["verify.json"]})), "outside"),
        (lambda f: edit(f, lambda m: m["files"].update({"verify.json": {"bytes": "many"}})), "malformed"),
        (lambda f: edit(f, lambda m: m.update(files=[])), "malformed"),
    ],
)
def test_a_spoiled_bundle_is_refused_even_unchecked(
    folder: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(folder)
    with pytest.raises(BundleError, match=said):
        bundle.read(folder, check=False)


def test_engines_that_are_built_later_do_not_spoil_it(folder: Path) -> None:
    (folder / "engines" / "key").mkdir(parents=True)
    (folder / "engines" / "key" / "model.plan").touch()
    assert bundle.read(folder).name == "tiny"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failing_export_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise ValueError("comparison failed")

    with pytest.raises(ValueError, match="comparison failed"):
        tiny.write_bundle(tmp_path / "new", also=fail)
    assert left_in(tmp_path) == []


def test_a_malformed_manifest_is_never_published(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no graphs"):
        tiny.write_bundle(tmp_path / "new", graphs={})
    assert left_in(tmp_path) == []


def test_what_exists_is_not_overwritten(folder: Path) -> None:
    before = left_in(folder)
    with pytest.raises(UsageError, match="exists already"):
        tiny.write_bundle(folder)
    assert left_in(folder) == before


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from saccade.errors import ExportError
from tests import tiny

def fill_the_disk(folder):
    # No file of this process may grow beyond 64 KiB: writing more fails as on a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    (folder / "graphs" / "large.bin").write_bytes(bytes(1 << 20))

try:
    tiny.write_bundle(Path(sys.argv[1]), also=fill_the_disk)
except ExportError as error:
    print(error)
"""


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "new")],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    assert "nothing was left behind" in child.stdout, child.stderr
    assert left_in(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="could not be written"):
        tiny.write_bundle(tmp_path / "file" / "new")


def test_hashing_does_not_load_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(512 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert bundle.sha256(path) == "9acca8e8c22201155389f65abbf6bc9723edc7384ead80503839f49dcc56d767"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_names_are_found_at_home_then_among_the_demos(folder: Path, empty_home: Path) -> None:
    empty_home.mkdir()
    shutil.copytree(folder, empty_home / "tiny_at_home")
    assert bundle.resolve("tiny_at_home") == empty_home / "tiny_at_home"
    assert "tiny_at_home" in bundle.names()
    assert bundle.resolve(folder) == folder
    assert bundle.resolve(str(folder)) == folder


def test_an_unknown_name_names_the_near_ones(folder: Path, empty_home: Path) -> None:
    shutil.copytree(folder, empty_home / "tiny_at_home")
    with pytest.raises(UsageError, match="Did you mean tiny_at_home") as caught:
        bundle.resolve("tiny_at_hone")
    assert "saccade export NAME" in str(caught.value)


@pytest.mark.parametrize("name", ["stvit_r_swin_small", "stvit_r_swin_smal"])
def test_a_models_name_without_a_bundle_says_how_to_make_one(name: str) -> None:
    with pytest.raises(UsageError, match="saccade export stvit_r_swin_small --weights"):
        bundle.resolve(name)


def test_a_name_does_not_climb_out_of_home(folder: Path, empty_home: Path) -> None:
    empty_home.mkdir()
    with pytest.raises(UsageError):
        bundle.resolve("../copy")


def zipped(folder: Path, archive: Path, prefix: str = "", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", compression) as packed:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                packed.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


@pytest.mark.parametrize("prefix", ["", "tiny/"])
def test_a_zip_is_unpacked_into_the_cache_once(
    folder: Path, tmp_path: Path, empty_home: Path, prefix: str
) -> None:
    archive = zipped(folder, tmp_path / "tiny.zip", prefix)
    unpacked = bundle.resolve(archive)
    assert unpacked.is_relative_to(empty_home)
    assert bundle.read(unpacked).name == "tiny"
    assert bundle.names() == [name for name in bundle.names() if not name.startswith(".")]
    os.utime(archive)
    assert bundle.resolve(archive) == unpacked
    assert left_in(unpacked.parent) == [unpacked.name]


def zip_with(archive: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("bundle.json", "{}")
        for name, content in members:
            packed.writestr(name, content)
    return archive


def link_member() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("graphs/weights.bin")
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("../evil", b"x")], "outside"),
        ([("/evil", b"x")], "outside"),
        ([("graphs/../../evil", b"x")], "outside"),
        ([("graphs\\evil", b"x")], "outside"),
        ([(link_member(), b"/etc/passwd")], "link"),
        ([("zeros.bin", bytes(2**28))], "times the packed size"),
        ([("other/bundle.json", b"{}")], "one bundle.json"),
    ],
)
def test_a_hostile_zip_is_refused_and_leaves_nothing(
    tmp_path: Path, empty_home: Path, members: Any, said: str
) -> None:
    archive = zip_with(tmp_path / "hostile.zip", *members)
    with pytest.raises(BundleError, match=said):
        bundle.resolve(archive)
    assert not [path for path in empty_home.rglob("*") if path.is_file()]
    assert left_in(tmp_path) == ["hostile.zip", "saccade-home"]


def test_a_damaged_zip_is_refused(folder: Path, tmp_path: Path) -> None:
    archive = zipped(folder, tmp_path / "tiny.zip")
    content = bytearray(archive.read_bytes())
    content[500] ^= 1
    archive.write_bytes(content)
    with pytest.raises(SaccadeError):
        bundle.read(bundle.resolve(archive))


def test_another_file_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK not really")
    with pytest.raises(BundleError, match=r"weights\.pth is not a bundle"):
        bundle.resolve(path)
