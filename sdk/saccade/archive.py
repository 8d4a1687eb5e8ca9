"""A zipped bundle becomes a folder. The zip may come from anywhere, so nothing in it is believed."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from saccade.errors import BundleError

__all__ = ["is_zip", "unpack"]

MEMBERS_LIMIT = 10_000
UNPACKED_LIMIT = 16 * 2**30  # bytes
# Deflate reaches 1000 on zeros. Weights hardly compress; graphs and labels stay below 20.
RATIO_LIMIT = 200
_CHUNK = 2**20


def is_zip(path: Path) -> bool:
    return path.is_file() and zipfile.is_zipfile(path)


def unpack(archive: Path, target: Path, *, marker: str) -> Path:
    """Unpack the one folder of `archive` that holds the file `marker` as `target`, whole or not at all.

    Where another process has made `target` meanwhile, that one is used. BundleError for names that point
    outside, links, encrypted or doubled members, and sizes that no bundle has.
    """
    staging = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        with zipfile.ZipFile(archive) as packed:
            root = _root([member.filename for member in packed.infolist()], archive, marker)
            members = [member for member in packed.infolist() if not member.is_dir()]
            _check(members, archive, root)
            for member in members:
                _extract(packed, member, staging / PurePosixPath(member.filename).relative_to(root))
        _publish(staging, target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BundleError(f"{archive} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _root(names: list[str], archive: Path, marker: str) -> PurePosixPath:
    """The folder inside the zip that holds the bundle: its top, or one folder below."""
    found = [PurePosixPath(name).parent for name in names if PurePosixPath(name).name == marker]
    if len(found) != 1 or len(found[0].parts) > 1:
        raise BundleError(
            f"{archive} is no zipped bundle: it needs one {marker}, at its top or one folder below"
        )
    return found[0]


def _check(members: list[zipfile.ZipInfo], archive: Path, root: PurePosixPath) -> None:
    """Before anything is written. zipfile itself stops at a member's stated size and checks its CRC."""
    if len(members) > MEMBERS_LIMIT:
        raise BundleError(f"{archive} holds {len(members)} files; at most {MEMBERS_LIMIT} are unpacked")
    if len({member.filename for member in members}) < len(members):
        raise BundleError(f"{archive} holds several files of one name")
    for member in members:
        path = PurePosixPath(member.filename)
        inside = path.is_relative_to(root) and not path.is_absolute() and ".." not in path.parts
        if not inside or "\\" in member.filename:
            raise BundleError(f"{archive}: {member.filename!r} points outside the bundle")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BundleError(f"{archive}: {member.filename!r} is a link or a special file")
    unpacked, packed = (sum(getattr(m, size) for m in members) for size in ("file_size", "compress_size"))
    if unpacked > UNPACKED_LIMIT or unpacked > RATIO_LIMIT * max(packed, _CHUNK):
        raise BundleError(
            f"{archive} unpacks from {packed} to {unpacked} bytes; the limits are {UNPACKED_LIMIT} bytes and "
            f"{RATIO_LIMIT} times the packed size"
        )


def _extract(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with packed.open(member) as source, path.open("xb") as file:
        shutil.copyfileobj(source, file, _CHUNK)


def _publish(staging: Path, target: Path) -> None:
    try:
        os.rename(staging, target)
    except OSError:
        if not target.is_dir():
            raise
