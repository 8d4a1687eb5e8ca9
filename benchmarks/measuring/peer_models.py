"""The models as others write them: timm's, or the released code's form. Needs torch and timm.

    python -m saccade.benchmarks.measuring.peer_models BUNDLE BATCH FILE.onnx [WEIGHTS]

writes the plain ONNX export of one: `torch.onnx.export` as PyTorch's documentation has it, nothing of ours in
between, for one size of batch, which no peer loses by.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saccade import bundle as bundles
from saccade.errors import UsageError
from saccade.export.modules import module
from saccade.export.options import Options
from saccade.models import attention, zoo

# For the life of the process: a peer has none of our kernels.
_without_ours = ExitStack()
_without_ours.enter_context(attention.without_kernels())

IMAGE_TASKS = ("classification", "embedding", "zero_shot")


def module_of(path: str | Path, weights: str | Path | None = None) -> nn.Module:
    """The model of a bundle in the form of its authors or of timm, in eval mode.

    weights: the checkpoint that the bundle was made of. Without it: the random weights of an untrained bundle
    (statistics of batch norms are of other noise), and for a trained one random weights, which cost the same
    time. Swin is timm's, STViT-R has its released cross-attention; the others are built as timm or their
    authors do already. Branches are not merged and norms not folded: that is what users get.
    """
    bundle = bundles.read(bundles.resolve(path), check=False)
    if bundle.task not in IMAGE_TASKS:
        raise UsageError(f"there are no peers for {bundle.task}: {bundle.name} has more than a backbone")
    entry = zoo.entry(bundle.name)
    sizes = dict(bundle.provenance.get("config", {}))
    if not weights and "num_classes" not in sizes and bundle.task == "classification":
        sizes["num_classes"] = bundle.graphs["model"].outputs[0].shape[-1]
    options = Options(entry.card.name, weights, random=weights is None, config=sizes)
    noise = torch.randn(2, 3, *bundle.card.preprocessing.input_size_hw)
    return as_others_write(module(options, sizes, [noise]), entry, sizes)


def as_others_write(built: nn.Module, entry: zoo.Entry, sizes: Mapping[str, Any]) -> nn.Module:
    """A model of `entry`, where `sizes` differ from its own, in the form of its authors or of timm."""
    if entry.builder.endswith(":swin"):
        return _timm_swin(built.state_dict(), {**entry.config, **sizes})
    if entry.card.family == "stvit":
        return _released_stvit(built)
    return _image_tower(built)


def _released_stvit(built: nn.Module) -> nn.Module:
    """Attention as the released code has it: plain products, and copies of tokens projected one by one."""
    from saccade.benchmarks.detection_backbone import as_released

    attention._attend = _plain_products
    return as_released(built)


def _plain_products(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """(B, windows, Nq, C), twice (B, windows, Nk, C) -> (B, windows, Nq, C); bias is added to the logits."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(2, 3) for t in (q, k, v))
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = (logits if bias is None else logits + bias).softmax(-1)
    return (weights @ v).transpose(2, 3).flatten(-2)


def _image_tower(built: nn.Module) -> nn.Module:
    from saccade.models.clip import Towers

    return Towers(built.trunk).eval() if isinstance(built, Towers) else built


def _timm_swin(state: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> nn.Module:
    """timm's Swin with weights under the official names."""
    from timm.models.swin_transformer import SwinTransformer

    taken = ("img_size", "window_size", "embed_dim", "depths", "num_heads", "mlp_ratio")
    theirs = SwinTransformer(
        num_classes=state["head.weight"].shape[0],
        **{name: sizes[name] for name in taken if name in sizes},
    )
    missing, unexpected = theirs.load_state_dict(_timm_keys(state), strict=False)
    lost = [key for key in missing if not key.endswith(("relative_position_index", "attn_mask"))]
    if lost or unexpected:
        raise UsageError(f"timm's Swin has other weights: {lost[:3]} are missing, {unexpected[:3]} unknown")
    return theirs.eval()


def _timm_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm merges patches at the start of a stage, the official code at the end of the one before."""
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "layers" and parts[2] == "downsample":
            parts[1] = str(int(parts[1]) + 1)
        if parts[0] == "head":
            parts.insert(1, "fc")
        renamed[".".join(parts)] = value
    return renamed


def image_of(path: str | Path, batch: int) -> Tensor:
    """Noise that the model takes, (batch, 3, height, width) float32."""
    given = bundles.read(bundles.resolve(path), check=False).card.preprocessing
    return torch.randn(batch, 3, *given.input_size_hw, generator=torch.Generator().manual_seed(0))


def main() -> None:
    """Write one plain export; what the exporter prints goes to standard error."""
    path, batch, out, *weights = sys.argv[1:]
    # Our attention would go into the graph as one node of ours; others' exports hold plain operators.
    torch.compiler.is_exporting = lambda: False
    program = torch.onnx.export(
        module_of(path, weights[0] if weights else None),
        (image_of(path, int(batch)),),
        dynamo=True,
        input_names=["image"],
        output_names=["output"],
        verbose=False,
    )
    assert program is not None
    program.save(out)


if __name__ == "__main__":
    main()
