"""The table of what was accepted on GPUs: counted from records, "none yet" where there are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from tests.sdk.acceptance.accepted import record

from saccade.acceptance import records
from saccade.models.zoo import ENTRIES


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "docs" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ACCEPTED", tmp_path)
    return module


def test_accepted_rows_are_counted_with_the_newest_date(tables: ModuleType, tmp_path: Path) -> None:
    cards = [ENTRIES["swin_tiny"].card, ENTRIES["swin_small"].card]
    assert tables.accepted(cards) == "none yet"
    records.write(record(model="swin_tiny", date="2026-11-20T10:00:00+00:00"), tmp_path)
    records.write(record(model="swin_tiny", gpu="NVIDIA A10"), tmp_path)
    records.write(
        record(model="swin_small", verdict="incomplete", date="2027-01-01T10:00:00+00:00"), tmp_path
    )
    records.write(record(model="deit_tiny"), tmp_path)
    assert tables.accepted(cards) == "2, newest 2026-11-21"
