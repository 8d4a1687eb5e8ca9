"""What shipped PTX must be, checked as text: launchable by any host from its record alone."""

from __future__ import annotations

import hashlib
import re

from saccade.engines.kernels.ptx import LaunchRecord

MAX_SHARED_BYTES = 48 * 1024  # more needs an opt-in that TensorRT's runner is not known to make
_REGISTERS = {"*": "u64", "i": "u32"}
_ENTRY = re.compile(r"\.visible \.entry (\w+)\(\n(.*?)\n\)\n\.reqntid (\d+)", re.DOTALL)
_PARAMETER = re.compile(r"\.param \.(\w+) .*?(\w+)$")
_FORBIDDEN = {
    r"^\s*\.(loc|file|section)\b": "line information, with paths of the machine that built it",
    r"^\.extern \.func": "a call to a function that is not there",
    r"\.param[^\n]*_param_\d+\[": "a parameter passed by value",
    r"^\.shared": "static shared memory, which the record does not count",
}


def problems(ptx: str, record: LaunchRecord) -> list[str]:
    """Everything that is wrong with `ptx` for `record`; empty if it may ship."""
    found = [text for pattern, text in _FORBIDDEN.items() if re.search(pattern, ptx, re.MULTILINE)]
    if hashlib.sha256(ptx.encode("ascii")).hexdigest() != record.sha256:
        found.append("its sha256 is not the record's")
    if f"\n.version {record.ptx_version}\n" not in ptx:
        found.append(f"its instruction set is not {record.ptx_version}")
    if f"\n.target sm_{record.arch}\n" not in ptx:
        found.append(f"its target is not sm_{record.arch}, which newer GPUs take")
    if record.shared_bytes > MAX_SHARED_BYTES:
        found.append(f"{record.shared_bytes} bytes of shared memory, over {MAX_SHARED_BYTES}")
    entries = _ENTRY.findall(ptx)
    if len(entries) != 1:
        return [*found, f"{len(entries)} kernels, not one"]
    name, listed, threads = entries[0]
    if name != record.kernel:
        found.append(f"its entry is {name}")
    if int(threads) != record.block_x:
        found.append(f"it wants blocks of {threads} threads, the record says {record.block_x}")
    kinds = [match[1] for match in map(_PARAMETER.search, listed.split(",\n")) if match]
    expected = [_REGISTERS[kind[0]] for _, kind in record.parameters]
    if kinds != expected:
        found.append(f"its parameters are {kinds}, the record says {expected}")
    return found


def strip_hidden(ptx: str, parameters: int) -> str:
    """`ptx` without the parameters that Triton appends for scratch memory, which must be unused.

    parameters: how many there are without them. Raises ValueError where one is used.
    """
    header = _ENTRY.search(ptx)
    if header is None:
        raise ValueError("the PTX has no entry with parameters and .reqntid")
    lines = header[2].split(",\n")
    for line in lines[parameters:]:
        named = _PARAMETER.search(line)
        if named is None or ptx.count(named[2]) != sum(other.count(named[2]) for other in lines):
            raise ValueError(f"the hidden parameter {line.strip()} is used")
    return ptx.replace(header[2], ",\n".join(lines[:parameters]), 1)
