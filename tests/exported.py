"""Run a torch module through its exported graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from saccade.engines.export import export_graph
from saccade.engines.inputs import Input


class Exported:
    """`module` as one graph, traced with `samples`; each input's free axes are given by name.

    Calling it with tensors returns what ONNX Runtime computes, as tensors.
    """

    def __init__(
        self,
        module: nn.Module,
        samples: Mapping[str, Tensor],
        free: Mapping[str, Mapping[int, str]],
        outputs: Sequence[str],
    ) -> None:
        inputs = [_input(name, sample, free.get(name, {})) for name, sample in samples.items()]
        self.graph = export_graph(module, inputs, outputs=outputs, name="test")
        self.session = onnxruntime.InferenceSession(
            self.graph.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        self.names = list(samples)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        feeds = {name: tensor.numpy() for name, tensor in zip(self.names, tensors, strict=True)}
        return tuple(torch.from_numpy(np.asarray(each)) for each in self.session.run(None, feeds))


def _input(name: str, sample: Tensor, free: Mapping[int, str]) -> Input:
    shape = tuple(free.get(axis, size) for axis, size in enumerate(sample.shape))
    sizes = {label: sample.shape[axis] for axis, label in free.items()}

    def draw(
        _: np.random.Generator, wanted: tuple[int, ...]
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        repeats = [-(-want // have) for want, have in zip(wanted, sample.shape, strict=True)]
        tiled = np.tile(sample.numpy(), repeats)
        return tiled[tuple(slice(want) for want in wanted)]

    return Input(name, shape, sizes, draw)
