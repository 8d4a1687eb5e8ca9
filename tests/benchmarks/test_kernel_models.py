"""Whole models with and without kernels: the forms are four, agree on a CPU, and without a GPU it says so."""

from __future__ import annotations

import pytest
import torch

from saccade.benchmarks import kernel_models
from saccade.benchmarks.kernel_models import FORMS, Form, Latency
from saccade.engines.tensorrt.gpu import find_gpu
from saccade.errors import EngineError
from saccade.models import create


def test_the_forms_are_what_the_table_compares() -> None:
    assert [form.name for form in FORMS] == [
        "plain, eager",
        "kernels, eager",
        "plain, compiled",
        "kernels, compiled",
    ]


@pytest.mark.parametrize("kernels", [False, True])
def test_a_form_runs_the_model_it_is_given(kernels: bool) -> None:
    sizes = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
    module = create("swin_tiny", **sizes).eval()
    form, image = Form(kernels, compiled=False), torch.randn(1, 3, 224, 224)
    with torch.inference_mode(), kernel_models.attending(form):
        torch.testing.assert_close(kernel_models.runner(module, form)(image), module(image))


def test_the_fastest_form_is_named() -> None:
    row = Latency("swin_small", 8, "float16", {"plain, eager": 3.0, "kernels, compiled": 2.0}, {})
    assert row.fastest == "kernels, compiled"
    assert Latency("swin_small", 8, "float16", {}, {"plain, eager": "out of memory"}).fastest == ""


def test_the_blocks_of_a_model_are_told_apart_and_run_alone() -> None:
    sizes = {"embed_dim": 16, "depths": (2, 2, 6, 2), "num_heads": (1, 1, 2, 2)}
    module = create("stvit_r_swin_tiny", **sizes).eval()
    with torch.inference_mode():
        found = kernel_models.blocks(module, torch.randn(1, 3, 224, 224))
        assert [name for name in found if "SwinBlock" in name] == [
            "SwinBlock 1x56x56x16 shift 0",
            "SwinBlock 1x56x56x16 shift 3",
            "SwinBlock 1x28x28x32 shift 0",
            "SwinBlock 1x28x28x32 shift 3",
            "SwinBlock 1x14x14x64 shift 0",
            "SwinBlock 1x7x7x128 shift 0",
        ]
        assert "Recovery 1x14x14x64 and 1x6x6x64" in found
        for block, inputs in found.values():
            assert not block._forward_pre_hooks
            assert block(*inputs).isfinite().all()


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")
def test_without_a_gpu_nothing_is_measured() -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        kernel_models.main(["swin_small", "--batch", "1"])
