"""Peers compute what our graphs compute, and are offered where they run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import tiny

from saccade.benchmarks.measuring import peers
from saccade.benchmarks.measuring.harness import Settings, measure
from saccade.errors import UsageError

SMALL = {"embed_dim": 16, "depths": (2, 2, 6, 2), "num_heads": (1, 2, 4, 8), "num_classes": 10}
QUICK = Settings(seconds=0.0, iterations=2, rounds=2, warm_up_s=0.0, ceiling=False)


def test_peers_are_offered_where_they_run(tmp_path: Path) -> None:
    bundle = tiny.write_bundle(tmp_path / "tiny").path
    cpu = peers.of_bundle(bundle, batches=(1, 8), threads=1, precisions=("fp32", "fp16"))
    assert {each.engine for each in cpu} == {"torch", "torch.compile", "plain onnxruntime", "plain openvino"}
    assert {each.precision for each in cpu} == {"fp32"}
    assert len(cpu) == 8
    assert all(each.peer and each.flop for each in cpu)
    cuda = peers.of_bundle(bundle, device="cuda", precisions=("fp32", "fp16"))
    assert {"torch CUDA graph", "trtexec"} < {each.engine for each in cuda}
    assert ("torch", "fp16") in {(each.engine, each.precision) for each in cuda}
    assert "plain openvino" not in {each.engine for each in cuda}
    with pytest.raises(UsageError, match="no peer is called 'tourch'"):
        peers.of_bundle(bundle, ["tourch"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny", "stvit_r_swin_tiny", "deit_tiny"])
def test_peers_answer_as_the_bundle_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same checkpoint: timm's Swin and DeiT, and the released form of STViT-R."""
    import torch
    from safetensors.torch import save_file

    from saccade.export import export_bundle
    from saccade.models import create

    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    sizes = {"embed_dim": 96, "depth": 2, "num_heads": 3, "num_classes": 10} if "deit" in name else SMALL
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(create(name, **sizes).state_dict(), weights)
    bundle = export_bundle(name, weights, tmp_path / name, config=sizes)
    names = ["torch", "plain onnxruntime", "plain openvino"]
    given = peers.of_bundle(bundle.path, names, threads=1, weights=weights)
    found = measure(given, QUICK).records
    assert [(record.configuration.engine, record.error) for record in found] == [(n, "") for n in names]
    assert found[0].agreement is not None
    assert found[0].agreement < 1e-4
    plain = found[1].resources
    assert plain is not None
    assert plain.peak_rss_mib < 300  # without torch
