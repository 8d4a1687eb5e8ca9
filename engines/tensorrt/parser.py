"""NVIDIA's own verdict on a graph: its parser and builder, run in a child process.

TensorRT for RTX parses, and builds engines for chosen compute capabilities, without a GPU or driver. It may
abort the process it runs in, so it never runs in ours: `judge` starts this module as a program, which prints
one line of JSON. A verdict says what NVIDIA's library answered; where it gave no answer (crash, time or
memory limit) `judge` raises EngineError with the library's last words.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from saccade.errors import EngineError, MissingDependency, UsageError

_PACKAGES = ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")
_COMPLAINTS_KEPT = 20
_POLL_SECONDS = 0.05


class BatchRange(NamedTuple):
    """Batch sizes an engine serves: the first dimension of every input."""

    min: int = 1
    opt: int = 4
    max: int = 8


class ShapeRange(NamedTuple):
    """Shapes of one input: the least, the one to optimise for, the greatest."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Refusal(NamedTuple):
    """NVIDIA's message, and the node that it names ("" where it names none)."""

    node: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What parser and builder said.

    built: None where no build was asked for, or parsing failed. layers: of the network after parsing, local
    functions inlined. plan_bytes: size of the plan, which is not kept. errors: why it was refused.
    peak_memory_mib: most memory that the process held.
    """

    parsed: bool
    built: bool | None
    layers: int
    parse_seconds: float
    build_seconds: float | None
    plan_bytes: int | None
    errors: tuple[Refusal, ...]
    peak_memory_mib: int
    tensorrt_rtx: str
    compute_capabilities: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Parsed, and built if that was asked for."""
        return self.parsed and self.built is not False

    def to_json(self) -> dict[str, Any]:
        """Plain dict of JSON types."""
        refusals = [refusal._asdict() for refusal in self.errors]
        return {**dataclasses.asdict(self), "ok": self.ok, "errors": refusals}


def judge(
    path: str | Path,
    *,
    profile: BatchRange | Mapping[str, ShapeRange] = BatchRange(),  # noqa: B008 - immutable
    compute_capabilities: Sequence[str] = ("80",),
    build: bool = True,
    timeout_s: float = 600.0,
    memory_limit_mib: int = 8192,
) -> Verdict:
    """Parse the ONNX file at `path` (external weights beside it) and build it, on CPU, in a child process.

    profile: shapes of inputs with dynamic dimensions; a BatchRange serves those whose batch alone is
    dynamic. compute_capabilities: such as ("80", "120"); one plan serves all. memory_limit_mib: resident
    memory above which the child is ended. Raises EngineError where the child crashed or overran a limit,
    UsageError where the request does not fit the graph, MissingDependency without TensorRT for RTX.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise UsageError(f"{path} is no file; pass the ONNX graph, such as BUNDLE/graphs/model.onnx")
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingDependency(
            f"TensorRT for RTX is not installed (no {missing[0]}): pip install 'saccade[tensorrt-rtx]'"
        )
    request = {
        "path": str(path),
        "profile": list(profile) if isinstance(profile, BatchRange) else dict(profile),
        "compute_capabilities": list(compute_capabilities),
        "build": build,
    }
    answer = _ask(request, timeout_s, memory_limit_mib)
    if "unusable" in answer:
        raise UsageError(f"{path.name}: {answer['unusable']}")
    errors = tuple(Refusal(*refusal) for refusal in answer.pop("errors"))
    return Verdict(**answer, errors=errors, compute_capabilities=tuple(compute_capabilities))


def _ask(request: Mapping[str, Any], timeout_s: float, memory_limit_mib: int) -> dict[str, Any]:
    """Run the child on `request`; its answer, or EngineError with what it last said on stderr."""
    command = [sys.executable, "-m", "saccade.engines.tensorrt.parser", json.dumps(request)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            failure = _watch(child, timeout_s, memory_limit_mib)
        finally:
            child.kill()
            child.wait()
        out.seek(0)
        err.seek(0)
        if failure:
            name = Path(request["path"]).name
            raise EngineError(
                f"TensorRT for RTX gave no verdict on {name}: {failure}.{_last_words(err.read())}"
            )
        answer: dict[str, Any] = json.loads(out.read())
        return answer


def _watch(child: subprocess.Popen[bytes], timeout_s: float, memory_limit_mib: int) -> str:
    """Wait for the child within its limits. Why it gave no answer, or "" if it did.

    Memory is watched and not limited by rlimit: under an address-space limit the library hangs.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            code = child.wait(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            held = _resident_mib(child.pid)
            if held > memory_limit_mib:
                return (
                    f"it held {held} MiB, over the limit of {memory_limit_mib}; allow more: memory_limit_mib"
                )
        else:
            return f"its process ended with {_status(code)}" if code else ""
    return f"it was not done within {timeout_s:g} s; allow more: timeout_s"


def _resident_mib(pid: int) -> int:
    """Resident memory of a process; 0 once it is gone, and where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize() >> 20


def _last_words(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()][-8:]
    return "\n".join((" It last said:", *lines)) if lines else ""


def _status(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


# --- the child -----------------------------------------------------------------------------------------


class _Unusable(Exception):
    """The request does not fit the graph or the library."""


def _main(argument: str) -> None:
    """Answer the JSON request in `argument` with one line of JSON; what the library prints goes to stderr."""
    answer_to = os.dup(1)
    os.dup2(2, 1)
    request = json.loads(argument)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = _parse_and_build(request)
    except _Unusable as error:
        answer = {"unusable": str(error)}
    with os.fdopen(answer_to, "w") as out:
        json.dump(answer, out)
        out.flush()
        os._exit(0)  # the library's own shutdown has nothing to add and can crash


def _parse_and_build(request: Mapping[str, Any]) -> dict[str, Any]:
    import tensorrt_rtx_libs  # noqa: F401, I001 - loads the libraries that the bindings link to
    import tensorrt_rtx_bindings as trt

    log = _complaints(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    started = time.perf_counter()
    parsed = parser.parse_from_file(request["path"])
    parse_seconds = time.perf_counter() - started
    errors = [_refusal(parser.get_error(i)) for i in range(parser.num_errors)]
    answer = {
        "parsed": parsed,
        "built": None,
        "layers": network.num_layers,
        "parse_seconds": round(parse_seconds, 3),
        "build_seconds": None,
        "plan_bytes": None,
        "tensorrt_rtx": trt.__version__,
    }
    if parsed and request["build"]:
        config = _configured(trt, builder, network, request)
        log.messages.clear()
        started = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        answer["build_seconds"] = round(time.perf_counter() - started, 3)
        answer["built"] = plan is not None
        answer["plan_bytes"] = None if plan is None else plan.nbytes
    if answer["built"] is False or (not parsed and not errors):
        errors += [("", message) for message in log.messages[-_COMPLAINTS_KEPT:]]
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**answer, "errors": errors, "peak_memory_mib": peak_kib >> 10}


def _complaints(trt: Any) -> Any:
    """A logger that keeps errors in `.messages` and echoes them, so that a crash leaves its reason."""

    class Complaints(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.messages.append(message)
                print(message, file=sys.stderr, flush=True)

    return Complaints()


def _refusal(error: Any) -> tuple[str, str]:
    """Node and message of a parser error; the message ends with the functions and branches around it."""
    named = error.node_name() or (f"{error.node_operator()} #{error.node()}" if error.node() >= 0 else "")
    stack = error.local_function_stack()
    operator = f"{error.node_operator()}: " if error.node_operator() else ""
    return named, operator + error.desc().strip() + (f" (in {' / '.join(stack)})" if stack else "")


def _configured(trt: Any, builder: Any, network: Any, request: Mapping[str, Any]) -> Any:
    """A builder configuration with the request's targets and one optimisation profile."""
    config = builder.create_builder_config()
    targets = [_target(trt, name) for name in request["compute_capabilities"]]
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(target, index)
    profile = builder.create_optimization_profile()
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for tensor in inputs:
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *_shapes(tensor.name, tuple(tensor.shape), request["profile"]))
    if config.add_optimization_profile(profile) < 0:
        wanted = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        raise _Unusable(f"the profile {request['profile']} does not fit the inputs {wanted}")
    return config


def _target(trt: Any, name: str) -> Any:
    target = getattr(trt.ComputeCapability, f"SM{name}", None)
    if target is None:
        known = sorted(n.removeprefix("SM") for n in trt.ComputeCapability.__members__ if n.startswith("SM"))
        raise _Unusable(f"compute capability {name!r} is unknown; this release has {', '.join(known)}")
    return target


def _shapes(name: str, shape: tuple[int, ...], profile: Any) -> list[tuple[int, ...]]:
    """Least, best and greatest shape of a dynamic input: given by name, or its batch filled in."""
    if isinstance(profile, dict):
        if name not in profile:
            raise _Unusable(f"input {name!r} has dynamic dimensions {shape}; give its shapes in the profile")
        return [tuple(sizes) for sizes in profile[name]]
    if -1 in shape[1:]:
        raise _Unusable(
            f"input {name!r} has dynamic dimensions {shape} beyond the batch; pass a profile with its shapes"
        )
    return [(batch, *shape[1:]) for batch in profile]


if __name__ == "__main__":
    _main(sys.argv[1])
