"""Triton's system shared memory: tensors that a client on this machine leaves in, and finds in, /dev/shm.

Regions are read and written with pread and pwrite, not mapped: a client that cuts its region short gets an
error, where a mapping would end the server with SIGBUS; and what the engine reads cannot change under it.
"""

from __future__ import annotations

import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saccade.errors import InputError, OverloadedError
from saccade.serving.refusals import Forbidden, UnknownModel

__all__ = ["Region", "SharedMemory"]

FOLDER = Path("/dev/shm")
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9_.-]{0,254})")  # no second slash, no leading dot
_MAX_REGIONS = 1024
_MAX_NAME = 256
_MAX_BYTES = 2**48


@dataclass(frozen=True, slots=True)
class Region:
    """A registered part of a shared-memory object; `key` is the object's name. writable: for outputs."""

    name: str
    key: str
    offset: int
    byte_size: int
    descriptor: int
    writable: bool


class SharedMemory:
    """The regions of one server by name. Off unless `enabled`: then every use is Forbidden."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open `key` in /dev/shm, a plain file and no link, and call a part of it `name`."""
        self._require_enabled()
        match = _KEY.fullmatch(key)
        if match is None or not 0 < len(name) <= _MAX_NAME:
            raise InputError(f"{key[:64]!r} as {name[:64]!r}: a key is one name in {FOLDER}, without folders")
        if name in self._regions:
            raise InputError(f"region {name!r} is registered already: unregister it first")
        if len(self._regions) >= _MAX_REGIONS:
            raise OverloadedError(f"{_MAX_REGIONS} regions are registered: unregister some")
        if not (0 <= offset < _MAX_BYTES and 0 < byte_size < _MAX_BYTES):
            raise InputError(f"region {name!r}: offset {offset} and size {byte_size} are out of range")
        descriptor, writable = _open(match[1])
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or offset + byte_size > status.st_size:
            os.close(descriptor)
            raise InputError(f"{key!r} has {status.st_size} bytes, the region ends at {offset + byte_size}")
        self._regions[name] = Region(name, key, offset, byte_size, descriptor, writable)

    def unregister(self, name: str = "") -> None:
        """Forget the region `name`, or all; one that is unknown is none."""
        self._require_enabled()
        for each in [name] if name else list(self._regions):
            if each in self._regions:
                os.close(self._regions.pop(each).descriptor)

    def regions(self, name: str = "") -> list[Region]:
        """The region `name`, or all of them."""
        self._require_enabled()
        return [self._region(name)] if name else list(self._regions.values())

    def read(
        self, region: str, offset: int, byte_size: int, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> NDArray[Any]:
        """An array of its own from `byte_size` bytes of a region."""
        place = self._place(region, offset, byte_size)
        if math.prod(shape) * dtype.itemsize != byte_size:
            raise InputError(f"shape {list(shape)} of {dtype} is not {byte_size} bytes")
        array = np.empty(shape, dtype)
        if (
            byte_size
            and os.preadv(place.descriptor, [array.data.cast("B")], place.offset + offset) != byte_size
        ):
            raise InputError(f"region {region!r} is shorter than when it was registered")
        return array

    def check(self, region: str, offset: int, byte_size: int) -> None:
        """Refuse an output's place before anything runs."""
        if not self._place(region, offset, byte_size).writable:
            raise InputError(f"region {region!r} may not be written by the server")

    def write(self, region: str, offset: int, byte_size: int, array: NDArray[Any]) -> None:
        """Put an output into a region."""
        if array.nbytes > byte_size:
            raise InputError(f"an output of {array.nbytes} bytes does not fit {byte_size} of {region!r}")
        place = self._place(region, offset, byte_size)
        if place.offset + offset + byte_size > os.fstat(place.descriptor).st_size:
            raise InputError(f"region {region!r} is shorter than when it was registered")
        if array.nbytes:
            whole = np.ascontiguousarray(array)
            os.pwrite(place.descriptor, whole.data.cast("B"), place.offset + offset)

    def close(self) -> None:
        """Forget everything."""
        for region in self._regions.values():
            os.close(region.descriptor)
        self._regions.clear()

    def _require_enabled(self) -> None:
        if not self._enabled:
            raise Forbidden("shared memory is off: start the server with --shared-memory")

    def _region(self, name: str) -> Region:
        self._require_enabled()
        if name not in self._regions:
            raise UnknownModel(f"no region is registered as {name[:64]!r}")
        return self._regions[name]

    def _place(self, name: str, offset: int, byte_size: int) -> Region:
        region = self._region(name)
        if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
            raise InputError(
                f"bytes {offset} to {offset + byte_size} are not all in region {name!r} of {region.byte_size}"
            )
        return region


def _open(name: str) -> tuple[int, bool]:
    """A descriptor of the object, and whether it may be written."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    for mode, writable in ((os.O_RDWR, True), (os.O_RDONLY, False)):
        try:
            return os.open(FOLDER / name, mode | flags), writable
        except PermissionError:
            continue
        except OSError as error:
            raise InputError(f"there is no shared memory {name!r}: {error.strerror}") from error
    raise InputError(f"the server may not open the shared memory {name!r}")
