"""Counted work: by hand for a small graph, and as the cards say for large ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import tiny

from saccade import bundle as bundles
from saccade.benchmarks.measuring import work


def test_a_small_graph_is_counted_as_by_hand(tmp_path: Path) -> None:
    written = tiny.write_bundle(tmp_path / "tiny")
    conv, gemm = 64 * 16 * 16 * 27, 64 * 10  # outputs x what each is summed over
    counted = work.of_bundle(written)
    assert counted.flop == 2 * (conv + gemm)
    assert counted.weight_bytes == 4 * (64 * 27 + 64 * 10)
    assert counted.activation_bytes == 4 * (3 * 32 * 32 + 64 * 16 * 16 + 64 + 10)


def test_accuracy_is_what_the_evidence_says(tmp_path: Path) -> None:
    def evidence(folder: Path) -> None:
        rows = [{"precision": "fp32"}, {"precision": "int8", "accuracy": 0.795}]
        text = json.dumps({"comparisons": [], "evidence": {"rows": rows}})
        (folder / "verify.json").write_text(text)

    written = tiny.write_bundle(tmp_path / "tiny", also=evidence)
    assert work.accuracy(written, "int8") == pytest.approx(79.5)
    assert work.accuracy(written, "fp16") is None
    assert work.accuracy(written, "fp32") is None  # nothing was published for it


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny", "swin_tiny"])
def test_full_models_are_counted_as_their_cards_say(name: str, tmp_path: Path) -> None:
    from saccade.export import export_bundle
    from saccade.models import zoo

    macs = zoo.entry(name).card.multiply_accumulates
    assert macs is not None
    bundle = export_bundle(name, None, tmp_path / name, random=True)
    assert work.of_bundle(bundles.read(bundle.path)).flop == pytest.approx(2 * macs, rel=1e-3)
