"""The predictor inside NVIDIA Triton: what a generated model.py is.

Triton's Python backend imports model.py, which only imports `TritonPythonModel` from here, and calls its
three methods. Pictures come as the bytes of files. The graph runs in another model of the same server (its
TensorRT or ONNX Runtime backend) or in this process; preprocessing, postprocessing and results are the
predictor's.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saccade
from saccade.engines.engine import Arrays, TensorSpec, check_feeds
from saccade.engines.lifetime import Closing
from saccade.errors import EngineError, InputError, SaccadeError
from saccade.loading import PREDICTORS
from saccade.models.card import Card
from saccade.pictures import decode
from saccade.predictors.predictor import Predictor
from saccade.serving import triton_answers as answers

__all__ = ["SETTINGS", "TritonEngine", "TritonPythonModel"]

SETTINGS = "model.json"  # beside model.py
_LARGEST_PICTURE = 64 * 2**20  # bytes of a file

logger = logging.getLogger("saccade")


class TritonEngine(Closing):
    """An `Engine` whose graph is another model of this server. backend: its module for Python models."""

    def __init__(self, backend: Any, model: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]):
        self.inputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in inputs}
        self.outputs: Mapping[str, TensorSpec] = {spec.name: spec for spec in outputs}
        self._backend, self._model = backend, model

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Ask the model, and wait. EngineError with what it says when it fails."""
        check_feeds(feeds, self.inputs)
        server = self._backend
        request = server.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(self.outputs),
            inputs=[server.Tensor(name, _columns_of(array)) for name, array in feeds.items()],
            preferred_memory=server.PreferredMemory(server.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise EngineError(f"model {self._model!r} failed: {response.error().message()}")
        tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
        # Triton's arrays lie in memory that it takes back; a tensor of the batch alone comes as (N, 1).
        return {
            name: np.array(tensors[name].as_numpy()).reshape(-1)
            if len(spec.shape) == 1
            else np.array(tensors[name].as_numpy())
            for name, spec in self.outputs.items()
        }

    def close(self) -> None:
        """Nothing is owned: the server unloads its models."""


class TritonPythonModel:
    """What Triton's Python backend looks for, by this name."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the predictor. args: what the backend says of the model, with its folder and version."""
        self._server: Any = importlib.import_module("triton_python_backend_utils")
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        self._predictor: Any = _open(settings, folder, self._server, _device(args))
        self._prompts: list[str] = settings["prompts"]
        self._columns = answers.columns(self._predictor.card.task, settings["width"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in their order. A picture that cannot be used fails its own only."""
        pictures: list[Any] = []
        places: dict[int, slice] = {}
        failures: dict[int, SaccadeError] = {}
        for index, request in enumerate(requests):
            try:
                decoded = _pictures(self._server.get_input_tensor_by_name(request, "image").as_numpy())
            except InputError as error:
                failures[index] = error
            else:
                places[index] = slice(len(pictures), len(pictures) + len(decoded))
                pictures += decoded
        try:
            results = self._predict(pictures)
        except SaccadeError as error:
            failures |= dict.fromkeys(places, error)
        return [
            self._failed(failures[index])
            if index in failures
            else self._response(request.requested_output_names(), results[places[index]])
            for index, request in enumerate(requests)
        ]

    def finalize(self) -> None:
        """Free the engines."""
        self._predictor.close()

    def _predict(self, pictures: list[Any]) -> list[Any]:
        if self._prompts and pictures:
            # Here, not in `initialize`: no model may be asked before the server runs. It is remembered.
            return list(self._predictor(pictures, self._prompts))
        return list(self._predictor(pictures))

    def _response(self, wanted: Sequence[str], results: Sequence[Any]) -> Any:
        tensors = [
            self._server.Tensor(
                name,
                answers.json_column(results)
                if name == answers.JSON
                else answers.stacked(self._columns[name], results),
            )
            for name in wanted
        ]
        return self._server.InferenceResponse(output_tensors=tensors)

    def _failed(self, error: SaccadeError) -> Any:
        kind = self._server.TritonError
        code = kind.INVALID_ARG if error.http_status < 500 else kind.INTERNAL
        return self._server.InferenceResponse(error=kind(str(error), code))


def _pictures(files: NDArray[np.object_]) -> list[NDArray[np.uint8]]:
    """Every file's picture, upright, (H, W, 3)."""
    for content in files.reshape(-1):
        if len(content) > _LARGEST_PICTURE:
            raise InputError(f"a picture has {len(content)} bytes; at most {_LARGEST_PICTURE} are read")
    return [np.asarray(decode(content)) for content in files.reshape(-1)]


def _columns_of(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(-1, 1) if array.ndim == 1 else array


def _device(args: Mapping[str, str]) -> str:
    on_gpu = args["model_instance_kind"] == "GPU"
    return f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"


def _open(settings: Mapping[str, Any], folder: Path, server: Any, device: str) -> Predictor[Any]:
    """The predictor over models of this server, or over an engine of its own, which repeats its sample."""
    if "bundle" in settings:
        return saccade.load(
            folder / settings["bundle"],
            precision=settings["precision"],
            device=device,
            threads=settings["threads"],
            prove=settings["prove"],
        )
    card = Card.from_json(settings["card"])
    engines = {
        name: TritonEngine(server, graph["model"], _specs(graph["inputs"]), _specs(graph["outputs"]))
        for name, graph in settings["graphs"].items()
    }
    module, cls = PREDICTORS[card.task].split(":")
    made: Predictor[Any] = getattr(importlib.import_module(module), cls)(
        engines, card, engine_name="triton", untrained=settings["untrained"]
    )
    return made


def _specs(entries: Sequence[Mapping[str, Any]]) -> list[TensorSpec]:
    return [TensorSpec(each["name"], each["dtype"], tuple(each["shape"])) for each in entries]
