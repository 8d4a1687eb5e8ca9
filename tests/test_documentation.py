"""What the documentation says is so: code runs, commands parse, links lead somewhere, tables are current."""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from PIL import Image

from saccade.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(where, text) of every fenced block in `language`; where is page:line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text[: match.start()].count("\n") + 1
            if match[1] == language:
                found.append((f"{page.relative_to(ROOT)}:{line}", match[2]))
    return found


def commands() -> list[tuple[str, str]]:
    lines = [(where, line) for where, text in blocks("bash") for line in text.splitlines()]
    return [(where, line) for where, line in lines if line.startswith("saccade ")]


@pytest.mark.parametrize(("where", "code"), blocks("python"), ids=[where for where, _ in blocks("python")])
def test_python_blocks_run(where: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, where, "exec", dont_inherit=True), {"__name__": "__main__"})


@pytest.mark.parametrize(("where", "line"), commands(), ids=[line for _, line in commands()])
def test_commands_parse(where: str, line: str) -> None:
    group = typer.main.get_command(app)
    _, *arguments = shlex.split(line)
    context = group.make_context("saccade", arguments)
    # Click hands a group's command line on in this attribute; resolving it does not run the command.
    rest = [*context._protected_args, *context.args]
    name, command, options = group.resolve_command(context, rest)
    assert command.make_context(name, options, parent=context).params, where


def test_every_command_is_shown_somewhere() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in typer.main.get_command(app).commands:
        assert f"saccade {name}" in text, name


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, heading = target.partition("#")
            assert not heading, f"{target}: link to pages, headings move"
            assert (page.parent / path).exists(), f"{page.name} links to {target}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name} says make {target}"


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = [*ROOT.glob("sdk/saccade/**/*.py"), *ROOT.glob("engines/**/*.py"), *ROOT.glob("models/**/*.py")]
    for path in (*PAGES, *sources):
        for named in re.findall(r"saccade\[([a-z,-]+)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(extras["optional-dependencies"]), f"{path}: saccade[{named}]"


def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_model_tables_are_current() -> None:
    generator = tables()
    for path, marker, table in generator.tables():
        text = path.read_text(encoding="utf-8")
        assert generator.filled(text, marker, table) == text, f"run python docs/tables.py: {path.name} is old"


def test_a_status_has_a_record_behind_it() -> None:
    generator = tables()
    for where, status in generator._recorded().items():
        assert status, where
        assert set(status.values()) <= set(generator.WORDS)
