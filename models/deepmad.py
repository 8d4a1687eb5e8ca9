"""DeepMAD: plain convolutional networks whose widths, kernels and depths are data.

Source: "DeepMAD: Mathematical Architecture Design for Deep Convolutional Neural Network",
arXiv:2303.02165. A network is a stem, super blocks of residual units, an optional 1x1 head conv, global
average pooling and a linear classifier; `saccade.models.deepmad_structure` reads the structures. Names in
the state dict are upstream's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from saccade.errors import UsageError
from saccade.models.checkpoint import Checkpoint, load_strict
from saccade.models.deepmad_structure import Block, Structure, read_structure

__all__ = ["DeepMAD", "DeepMADFeatures", "deepmad"]

_CLASSIFIER = "fc_linear."


def deepmad(
    *,
    checkpoint: Checkpoint | None = None,
    features: bool = False,
    structure: str | Path | Mapping[str, Any] | Sequence[Any],
    structure_index: int | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    out_indices: Sequence[int] | None = None,
) -> nn.Module:
    """Build a classifier, or with `features` the four stage maps, of `structure`.

    structure: a published name (deepmad_r18), a structure file, or its content (see `read_structure`).
    img_size: the size it will run at, checked against the structure; the network itself takes any that fits.
    out_indices: four stages for `features`, default the last four (strides 4, 8, 16, 32).
    """
    plan = read_structure(structure, structure_index)
    if img_size is not None:
        plan.check_size(*((img_size, img_size) if isinstance(img_size, int) else img_size))
    state = {} if checkpoint is None else checkpoint.state
    model: nn.Module
    if features:
        model = DeepMADFeatures(plan, out_indices)
    else:
        model = DeepMAD(plan, num_classes or _classes_of(state))
    if checkpoint is not None:
        name = structure if isinstance(structure, str) else "this DeepMAD structure"
        load_strict(model, state, what=name, ignore=_is_classifier if features else None)
    return model


def _is_classifier(key: str) -> bool:
    return key.startswith(_CLASSIFIER)


def _classes_of(state: Mapping[str, Tensor]) -> int:
    head = state.get(f"{_CLASSIFIER}weight")
    return 1000 if head is None else int(head.shape[0])


class DeepMAD(nn.Module):
    """The classifier: (B, 3, H, W) float32 to logits (B, num_classes)."""

    def __init__(self, structure: Structure, num_classes: int = 1000) -> None:
        super().__init__()
        self.structure = structure
        self.block_list = _blocks(structure)
        self.fc_linear = nn.Linear(structure.blocks[-1].out_channels, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.fc_linear(self.embed(image))

    def embed(self, image: Tensor) -> Tensor:
        """The last map averaged over its positions, (B, C)."""
        x = _checked(image, self.structure)
        for block in self.block_list:
            x = block(x)
        return x.mean((2, 3))


class DeepMADFeatures(nn.Module):
    """The maps at the ends of four stages, finest first, (B, channels[i], H / strides[i], W / strides[i])."""

    def __init__(self, structure: Structure, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        ends = _chosen_ends(structure, out_indices)
        self.structure = structure
        self.out_blocks = ends
        self.channels = tuple(structure.blocks[end].out_channels for end in ends)
        self.strides = tuple(structure.stride_at(end) for end in ends)
        self.block_list = _blocks(structure)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = _checked(image, self.structure)
        maps = []
        for index, block in enumerate(self.block_list):
            x = block(x)
            if index in self.out_blocks:
                maps.append(x)
        return tuple(maps)


def _chosen_ends(structure: Structure, out_indices: Sequence[int] | None) -> tuple[int, ...]:
    """Block indices of the chosen stages."""
    ends = structure.stage_ends()
    stages = range(len(ends))[-4:] if out_indices is None else tuple(out_indices)
    if len(stages) != 4 or sorted(set(stages)) != list(stages) or not set(stages) <= set(range(len(ends))):
        raise UsageError(
            f"features need four stages in ascending order out of 0..{len(ends) - 1}, not {list(stages)}"
        )
    return tuple(ends[stage] for stage in stages)


def _checked(image: Tensor, structure: Structure) -> Tensor:
    """`image`, after refusing sizes that cannot pass; while exporting, dynamic sides are left open."""
    height, width = image.shape[-2:]
    if isinstance(height, int) and isinstance(width, int):
        structure.check_size(height, width)
    return image


def _blocks(structure: Structure) -> nn.ModuleList:
    return nn.ModuleList(
        _conv(block) if block.kind == "conv" else SuperBlock(block) for block in structure.blocks
    )


def _conv(block: Block) -> ConvBN:
    return ConvBN(
        block.in_channels,
        block.out_channels,
        block.kernel,
        block.stride,
        padding=block.padding,
        activation=_activation(block.activation),
    )


def _activation(name: str | None) -> nn.Module:
    activations = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "sigmoid": nn.Sigmoid,
        "swish": nn.SiLU,
        "learkyrelu": nn.LeakyReLU,  # upstream's spelling
    }
    return nn.Identity() if name is None else activations[name]()


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, activation (none by default)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        padding: int | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 if padding is None else padding
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn1(self.conv1(x)))


class SuperBlock(nn.Module):
    """`layers` residual units; the first changes width and map size."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block_list = nn.Sequential(
            *(ResidualUnit(block, is_first=index == 0) for index in range(block.layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block_list(x)


class ResidualUnit(nn.Module):
    """1x1, kxk, 1x1 with a shortcut, (B, in, H, W) to (B, out, H / stride, W / stride).

    Dense units always have a shortcut, projected in the first unit of every super block even where the
    widths agree. Depthwise units have one only where the widths agree. The activation follows the sum too.
    """

    def __init__(self, block: Block, *, is_first: bool) -> None:
        super().__init__()
        in_channels = block.in_channels if is_first else block.out_channels
        stride = block.stride if is_first else 1
        dense, mid, groups = block.kind == "dense", block.mid, block.groups
        self.act = nn.SiLU() if block.kind == "depthwise-se" else nn.ReLU()
        self.conv1 = ConvBN(in_channels, mid, 1, groups=groups)
        self.conv2 = ConvBN(mid, mid, block.kernel, stride, groups=groups if dense else mid)
        self.se2 = SqueezeExcite(mid) if block.kind == "depthwise-se" else nn.Identity()
        self.conv3 = ConvBN(mid, block.out_channels, 1, groups=groups)
        self.has_shortcut = dense or in_channels == block.out_channels
        self.pool = HalvingPool() if stride == 2 else nn.Identity()
        projects = dense and is_first
        self.residual_proj = ConvBN(in_channels, block.out_channels, 1) if projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        main = self.act(self.conv2(self.act(self.conv1(x))))
        main = self.conv3(self.se2(main))
        if self.has_shortcut:
            main = main + self.residual_proj(self.pool(x))
        return self.act(main)


class HalvingPool(nn.Module):
    """Mean of every 2x2 square of a map with even sides (`Structure.check_size` sees to that)."""

    def forward(self, x: Tensor) -> Tensor:
        # Rounding up is the same on even sides, and while they are symbolic it gives the expression that the
        # convolution beside it gives: otherwise the exporter cannot tell that the two can be added.
        is_symbolic = not (isinstance(x.shape[-2], int) and isinstance(x.shape[-1], int))
        return functional.avg_pool2d(x, 2, ceil_mode=is_symbolic)


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channel means, (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = 8 * max(1, round(channels / 4) // 8)
        self.conv1 = ConvBN(channels, squeezed, 1, activation=nn.SiLU())
        self.conv2 = ConvBN(squeezed, channels, 1, activation=nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))
