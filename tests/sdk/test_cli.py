"""The command line from the outside: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade import cli

SMALL = {"embed_dim": 16, "depths": [2, 2, 6, 2], "num_heads": [1, 2, 4, 8]}
LABELS = ("cat", "dog", "bird")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["saccade", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Ran(int(ended.value.code or 0), captured.out, captured.err)

    return call


def saccade(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from saccade.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a labels file, a configuration, pictures in labelled folders, and a bundle."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "labels.txt").write_text("\n".join(LABELS), encoding="utf-8")
    (folder / "small.json").write_text(json.dumps(SMALL), encoding="utf-8")
    rng = np.random.default_rng(0)
    for label in LABELS:
        (folder / "data" / label).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 256, (80, 60, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "data" / label / f"{index}.png")
    exported = saccade(
        *("export", "stvit_r_swin_tiny", "--random", "--config", folder / "small.json"),
        *("--labels", folder / "labels.txt", "--num-classes", 3, "--out", folder / "bundle", "--json"),
    )
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout) == {
        "bundle": str(folder / "bundle"),
        "name": "stvit_r_swin_tiny",
        "untrained": True,
    }
    return folder


def test_models(run: Any) -> None:
    table = run("models")
    assert table.code == 0
    assert "stvit_r_swin_small" in table.out
    cards = run("models", "--json").json
    assert {"deepmad_r18", "tiny_vit_21m_224", "mobileclip_s2", "nvit"} <= {card["name"] for card in cards}
    some = run("models", "revit", "--json").json
    assert {card["family"] for card in some} == {"nvit"}


def test_models_lines_are_not_folded_off_a_terminal(run: Any) -> None:
    lines = run("models", "mobileclip").out.splitlines()
    assert sum(line.startswith("mobileclip_") for line in lines) == 4
    assert all("apple" in line for line in lines if line.startswith("mobileclip_"))


FAILURES = [
    (("models", "no_such_model"), 2, "no model matches 'no_such_model'"),
    (("export", "stvit_r_swin_smal", "--random", "--out", "x"), 2, "stvit_r_swin_small"),
    (("export", "deepmad_r18", "--out", "x"), 2, "--weights FILE or --random"),
    (
        ("export", "deepmad_r18", "--random", "--out", "x", "--input-size", "big"),
        2,
        "write 224 or HEIGHTxWIDTH",
    ),
    (("export", "deepmad_r18", "--random", "--out", "x", "--input-size", "0x4"), 2, "is no size"),
    (
        ("export", "deepmad_r18", "--random", "--out", "x", "--mean", "0.5,0.5"),
        2,
        "--mean '0.5,0.5' is no colour",
    ),
    (("export", "deepmad_r18", "--random", "--out", "x", "--std", "a,b,c"), 2, "--std 'a,b,c' is no colour"),
    (
        ("export", "deepmad_r18", "--random", "--out", "x", "--config", "none.json"),
        2,
        "cannot be read as JSON",
    ),
    (("export", "deepmad_r18", "--weights", "none.pth", "--out", "x"), 4, "none.pth"),
    (("predict", "no_such_bundle", "a.jpg"), 2, "there is no bundle 'no_such_bundle'"),
    (("inspect", "no_such_bundle"), 2, "there is no bundle"),
    (("verify", "no_such_bundle", "--engine", "onnxrutime"), 2, "onnxruntime"),
    (("evaluate", "no_such_bundle", "--data", "x"), 2, "there is no bundle"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), FAILURES, ids=[" ".join(f[0]) for f in FAILURES])
def test_errors_are_messages_with_exit_codes(
    run: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ran = run(*arguments)
    assert ran.code == code
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert "Traceback" not in ran.err

    as_json = run(*arguments, "--json")
    assert as_json.code == code
    assert as_json.json["error"]["exit_code"] == code
    assert message in as_json.json["error"]["message"]
    assert as_json.err == ""


def test_usage_mistakes_exit_with_2(run: Any) -> None:
    assert run("predict").code == 2
    assert run("no-such-command").code == 2
    assert run("models", "--no-such-option").code == 2


def test_help_shows_every_command_and_every_command_has_help(run: Any) -> None:
    top = run("--help").out
    for command in ("models", "export", "verify", "predict", "evaluate", "inspect", "doctor"):
        assert command in top
        shown = run(command, "--help")
        assert shown.code == 0
        assert "--json" in shown.out


def test_predict(run: Any, work: Path) -> None:
    picture = work / "data" / "cat" / "0.png"
    table = run("predict", work / "bundle", picture, "--top", 2)
    assert table.code == 0
    assert str(picture) in table.out
    assert "UNTRAINED" in table.out

    lines = run("predict", work / "bundle", work / "data", "--json", "--engine", "openvino").out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["picture"] for row in rows] == sorted(str(path) for path in work.glob("data/*/*.png"))
    for row in rows:
        assert row["untrained"] is True
        assert {answer["label"] for answer in row["predictions"]} == set(LABELS)
        scores = [answer["score"] for answer in row["predictions"]]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_predict_draws(run: Any, work: Path, tmp_path: Path) -> None:
    drawn = run("predict", work / "bundle", work / "data", "--out", tmp_path / "drawn")
    assert drawn.code == 0
    names = sorted(str(path.relative_to(tmp_path / "drawn")) for path in tmp_path.glob("drawn/**/*.png"))
    assert names == sorted(f"data/{label}/{index}.png.png" for label in LABELS for index in range(2))
    original = np.asarray(Image.open(work / "data" / "cat" / "0.png"))
    picture = np.asarray(Image.open(tmp_path / "drawn" / "data" / "cat" / "0.png.png"))
    assert picture.shape != original.shape or (picture != original).any()
    again = run("predict", work / "bundle", work / "data", "--out", tmp_path / "drawn")
    assert again.code == 2
    assert "exists already" in again.err


def test_predict_names_the_picture_that_it_cannot_read(run: Any, work: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    ran = run("predict", work / "bundle", tmp_path / "broken.jpg")
    assert ran.code == 3
    assert "broken.jpg is empty" in ran.err
    (tmp_path / "empty").mkdir()
    assert "there are no pictures" in run("predict", work / "bundle", tmp_path / "empty").err


def test_evaluate_agrees_with_predict(run: Any, work: Path) -> None:
    accuracy = run("evaluate", work / "bundle", "--data", work / "data", "--json", "--batch", 4).json
    rows = run("predict", work / "bundle", work / "data", "--json", "--top", 1).out.splitlines()
    answers = [json.loads(row) for row in rows]
    right = [row["predictions"][0]["label"] == Path(row["picture"]).parent.name for row in answers]
    assert accuracy["pictures"] == len(right) == 6
    assert accuracy["top1"] == pytest.approx(100 * sum(right) / 6)
    assert accuracy["top5"] == 100
    assert sum(row["correct"] for row in accuracy["classes"]) == sum(right)
    table = run("evaluate", work / "bundle", "--data", work / "data")
    assert f"6 pictures: top-1 {accuracy['top1']:.2f} %" in table.out


def test_inspect(run: Any, work: Path) -> None:
    found = run("inspect", work / "bundle", "--json").json
    assert found["name"] == "stvit_r_swin_tiny"
    assert found["untrained"] is True
    assert found["card"]["labels"] == list(LABELS)
    source = next(graph for graph in found["graphs"] if graph["variant"] == "source")
    assert source["operators"]["saccade::ShiftedWindowAttention"] >= 1
    assert source["nodes"] == sum(source["operators"].values())
    assert source["readiness"]["ok"] is True
    assert set(found["files"]) == {
        str(path.relative_to(work / "bundle"))
        for path in (work / "bundle").rglob("*")
        if path.is_file() and path.name != "bundle.json"
    }
    table = run("inspect", work / "bundle")
    assert "UNTRAINED" in table.out
    assert "nodes accepted" in table.out


def test_verify(run: Any, work: Path) -> None:
    verification = run("verify", work / "bundle", "--json").json
    assert verification["agrees"] is True
    assert [row["engine"] for row in verification["comparisons"]] == ["onnxruntime", "openvino"]
    for row in verification["comparisons"]:
        assert 0 <= row["max_abs_difference"] <= row["tolerance"]
    one = run("verify", work / "bundle", "--engine", "openvino")
    assert one.code == 0
    assert "agrees" in one.out
    assert "onnxruntime" not in one.out


def test_verify_ends_with_7_when_an_engine_differs(run: Any, work: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(work / "bundle", changed)
    with np.load(changed / "conformance.npz") as sample:
        arrays = dict(sample)
    arrays["output:logits"] = arrays["output:logits"] + 1
    np.savez(changed / "conformance.npz", **arrays)
    refused = run("verify", changed)
    assert refused.code == 5
    assert "conformance.npz" in refused.err

    content = (changed / "conformance.npz").read_bytes()
    manifest = json.loads((changed / "bundle.json").read_text(encoding="utf-8"))
    import hashlib

    manifest["files"]["conformance.npz"] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (changed / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    differs = run("verify", changed)
    assert differs.code == 7
    assert "differs" in differs.out


def test_doctor(run: Any) -> None:
    report = run("doctor", "--json")
    assert report.json["healthy"] is (report.code == 0)
    text = run("doctor")
    assert "onnxruntime" in text.out
    assert text.code == report.code


def test_a_full_disk_is_told_in_the_systems_words(work: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", "from saccade.cli import main; main()", "models"]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode != 0
    assert "Traceback" not in ran.stderr


def test_json_reaches_a_pipe_while_a_bar_is_on_the_terminal(work: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", "from saccade.cli import main; main()"]
    ran = subprocess.run(
        [*command, "predict", str(work / "bundle"), str(work / "data"), "--json"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        text=True,
        check=False,
    )
    os.close(terminal)
    shown = os.read(controller, 2**16).decode()
    os.close(controller)
    assert ran.returncode == 0, shown
    assert len([json.loads(line) for line in ran.stdout.splitlines()]) == 6
    assert "predicting" in shown
    assert "predictions" not in shown
