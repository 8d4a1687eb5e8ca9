"""Predictions for more pictures than one machine should handle: a folder or Parquet files, through Ray Data.

    from saccade.serving.ray_data import predict_dataset, read_pictures

    predict_dataset("my_bundle", read_pictures("s3://bucket/pictures")).write_parquet("s3://bucket/answers")

Needs `saccade[ray]` on every node, and the bundle under the same path or name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import saccade
from saccade.errors import InputError, MissingDependency, UsageError
from saccade.pictures import PICTURE_SUFFIXES, decode

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = ["DatasetOptions", "predict_dataset", "read_pictures"]


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """workers: at most so many processes, which each hold the bundle; Ray starts them as there is work.
    batch_size: pictures per run. cpus, gpus: what Ray sets aside for each worker. engine, precision,
    threads: as in `saccade.load`. prompts: zero-shot classes. column: the pictures' bytes.
    """

    workers: int = 2
    batch_size: int = 16
    cpus: float = 1
    gpus: float = 0
    engine: str = "auto"
    precision: str = "fp32"
    threads: int | None = 1
    prompts: tuple[str, ...] = ()
    column: str = "bytes"

    def __post_init__(self) -> None:
        if self.workers < 1 or self.batch_size < 1:
            raise UsageError(f"workers {self.workers}, batch_size {self.batch_size}: at least 1 each")


def read_pictures(path: str) -> Dataset:
    """Rows of `path` and `bytes`: the picture files of a folder, in it and below, wherever Ray reads."""
    extensions = [suffix.removeprefix(".") for suffix in sorted(PICTURE_SUFFIXES)]
    return _ray_data().read_binary_files(path, include_paths=True, file_extensions=extensions)


def predict_dataset(bundle: str, pictures: Dataset, options: DatasetOptions | None = None) -> Dataset:
    """`pictures` with their bytes replaced by two columns of text; nothing is read before rows are wanted.

    pictures: rows with the bytes of files in `options.column`, as `read_pictures` or
    `ray.data.read_parquet` gives; other columns stay. `answer`: the result's JSON. `error`: why there is none
    ("" where there is one): a cell that is null or holds text, or a picture that cannot be used, never stops
    the others.
    """
    chosen = options or DatasetOptions()
    predicted: Dataset = pictures.map_batches(
        Worker,
        fn_constructor_args=(bundle, chosen),
        batch_size=chosen.batch_size,
        batch_format="numpy",
        compute=_ray_data().ActorPoolStrategy(min_size=1, max_size=chosen.workers),
        num_cpus=chosen.cpus,
        num_gpus=chosen.gpus,
    )
    return predicted


class Worker:
    """A predictor in a process of its own."""

    def __init__(self, bundle: str, options: DatasetOptions) -> None:
        self._column = options.column
        predictor: Any = saccade.load(
            bundle,
            options.engine,
            precision=options.precision,
            device="cuda" if options.gpus else "cpu",
            threads=options.threads,
        )
        self._predict = predictor.with_classes(options.prompts) if options.prompts else predictor

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        pictures: dict[int, NDArray[np.uint8]] = {}
        files = batch[self._column]
        answers, errors = [""] * len(files), [""] * len(files)
        for row, content in enumerate(files):
            try:
                pictures[row] = _decoded(content)
            except InputError as error:
                errors[row] = str(error)
        for row, result in self._results(pictures).items():
            if isinstance(result, InputError):
                errors[row] = str(result)
            else:
                answers[row] = json.dumps(result.to_json(), ensure_ascii=False)
        kept = {name: values for name, values in batch.items() if name != self._column}
        return {**kept, "answer": np.array(answers, np.object_), "error": np.array(errors, np.object_)}

    def _results(self, pictures: Mapping[int, NDArray[np.uint8]]) -> dict[int, Any]:
        """A result for each row, or an InputError: where one of several cannot be used, each runs alone."""
        try:
            return dict(zip(pictures, self._predict(list(pictures.values())), strict=True))
        except InputError as error:
            if len(pictures) == 1:
                return dict.fromkeys(pictures, error)
        return {
            row: result
            for each, picture in pictures.items()
            for row, result in self._results({each: picture}).items()
        }


def _decoded(content: object) -> NDArray[np.uint8]:
    """The picture in a cell, (H, W, 3) uint8 RGB; InputError where there is none. Text is none: it must not
    become the path of a file here."""
    if not isinstance(content, bytes | bytearray | memoryview):
        raise InputError(f"the cell holds no bytes of a picture: it is a {type(content).__name__}")
    return np.asarray(decode(bytes(content)))


def _ray_data() -> Any:
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingDependency("Ray Data is not installed: pip install 'saccade[ray]'") from error
    return ray.data
