"""The PTX in the wheel, with what is needed to launch it: `engines/data/ptx`, written by `compile`.

Reading it takes neither Triton nor torch nor a GPU.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from saccade.errors import EngineError, UsageError

RECORDS = "records.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """One compiled kernel.

    kernel: its name, which is the PTX entry too. file: beside the records, gzip. sha256: of the PTX text.
    arch: compute capability 75, 80, ...; newer GPUs take it too. ptx_version: of the PTX instruction set,
    which the driver must know. dtype: of the tensors (of the output, where the inputs have their own types).
    constants: what is compiled in. parameters: (name, type) in order, pointers as "*float32". grid: formulas
    of the parameters and constants. alignment: bytes, of every pointer.
    """

    kernel: str
    file: str
    sha256: str
    arch: int
    ptx_version: str
    triton: str
    dtype: str
    constants: Mapping[str, int]
    num_warps: int
    shared_bytes: int
    parameters: tuple[tuple[str, str], ...]
    grid: tuple[str, ...]
    alignment: int

    @property
    def block_x(self) -> int:
        """Threads of one program."""
        return 32 * self.num_warps

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LaunchRecord:
        """Read what `to_json` wrote."""
        parameters = tuple((name, kind) for name, kind in data["parameters"])
        return cls(**{**data, "parameters": parameters, "grid": tuple(data["grid"])})


@cache
def records() -> tuple[LaunchRecord, ...]:
    """Every kernel that ships with this version."""
    data = json.loads(_folder().joinpath(RECORDS).read_text("utf-8"))
    if data["schema"] != SCHEMA:
        raise EngineError(
            f"{RECORDS} has schema {data['schema']}, this version reads {SCHEMA}: reinstall saccade"
        )
    return tuple(map(LaunchRecord.from_json, data["kernels"]))


def find(kernel: str, dtype: str, compute_capability: int, **constants: int) -> LaunchRecord:
    """The record for a GPU of `compute_capability` (89 for 8.9): the newest architecture not above it.

    Raises UsageError, naming what there is, where nothing serves.
    """
    named = [record for record in records() if record.kernel == kernel]
    fitting = [
        record
        for record in named
        if record.dtype == dtype
        and record.arch <= compute_capability
        and all(record.constants.get(name) == value for name, value in constants.items())
    ]
    if not fitting:
        there = sorted({(r.arch, r.dtype, *r.constants.items()) for r in named}, key=str)
        raise UsageError(
            f"no PTX of {kernel} for {dtype}, compute capability {compute_capability}, {constants}; "
            f"there is {there or 'no kernel of that name'}"
        )
    return max(fitting, key=lambda record: record.arch)


def load(record: LaunchRecord) -> str:
    """The PTX text of `record`, its sha256 checked."""
    return _read(record.file, record.sha256)


@cache
def _read(file: str, sha256: str) -> str:
    text = gzip.decompress(_folder().joinpath(file).read_bytes()).decode("ascii")
    found = hashlib.sha256(text.encode("ascii")).hexdigest()
    if found != sha256:
        raise EngineError(f"{file} has sha256 {found}, not {sha256}: reinstall saccade")
    return text


def _folder() -> Any:
    return resources.files("saccade.engines").joinpath("data", "ptx")
