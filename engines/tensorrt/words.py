"""What NVIDIA's library says: its log, its error recorder, its parser, with the ONNX node meant."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from saccade.engines.tensorrt.bindings import Bindings, INetworkDefinition, ParserError
from saccade.errors import EngineError, SaccadeError

# One for every node of a function that is used twice: nothing is wrong.
_NOISE = ("the output tensors of this new instance will not be queryable", "is unsupported in TensorRT-RTX")
_KEPT = 100


class Refusal(NamedTuple):
    """NVIDIA's message, and the node of the graph that it names ("" where it names none)."""

    node: str
    message: str

    def __str__(self) -> str:
        return f"node {self.node!r}: {self.message}" if self.node else self.message


def logger(trt: Bindings) -> Any:
    """An ILogger that keeps what is worse than information.

    `.warnings` and `.errors`, each once and at most a hundred. Errors also go to stderr at once: in a child
    process that crashes they are its last words.
    """

    base: Any = trt.ILogger

    class Log(base):
        def __init__(self) -> None:
            base.__init__(self)
            self.warnings: dict[str, None] = {}
            self.errors: dict[str, None] = {}

        def log(self, severity: Any, message: str) -> None:
            if int(severity) > int(trt.ILogger.Severity.WARNING) or any(noise in message for noise in _NOISE):
                return
            worse = int(severity) < int(trt.ILogger.Severity.WARNING)
            kept = self.errors if worse else self.warnings
            if len(kept) < _KEPT:
                kept[message.strip()] = None
            if worse and _speaks_up:
                print(message, file=sys.stderr, flush=True)

    return Log()


_speaks_up = False


def speak_up() -> None:
    """Print errors to stderr from now on: for a process whose stderr somebody reads."""
    global _speaks_up
    _speaks_up = True


def recorder(trt: Bindings) -> Any:
    """An IErrorRecorder; `.messages` is what it holds."""

    base: Any = trt.IErrorRecorder

    class Recorder(base):
        def __init__(self) -> None:
            base.__init__(self)
            self._errors: list[tuple[Any, str]] = []
            self._lock = threading.Lock()

        @property
        def messages(self) -> list[str]:
            with self._lock:
                return [message for _, message in self._errors]

        def clear(self) -> None:
            with self._lock:
                self._errors.clear()

        def get_error_code(self, index: int) -> Any:
            return self._errors[index][0]

        def get_error_desc(self, index: int) -> str:
            return self._errors[index][1]

        def has_overflowed(self) -> bool:
            return False

        def num_errors(self) -> int:
            return len(self._errors)

        def report_error(self, code: Any, description: str) -> bool:
            with self._lock:
                if len(self._errors) < _KEPT:
                    self._errors.append((code, description.strip()))
            return True

    return Recorder()


@contextmanager
def as_engine_error(what: str) -> Iterator[None]:
    """Turn what the bindings raise, which has no common root, into EngineError. Ours pass."""
    try:
        yield
    except SaccadeError:
        raise
    except Exception as error:
        raise EngineError(f"{what}: {str(error).strip() or type(error).__name__}") from error


def parser_refusal(error: ParserError) -> Refusal:
    """A parser error; its message ends with the functions and branches around the node."""
    operator = error.node_operator()
    named = error.node_name() or (f"{operator} #{error.node()}" if error.node() >= 0 else "")
    stack = error.local_function_stack()
    words = (f"{operator}: " if operator else "") + error.desc().strip()
    return Refusal(named, words + (f" (in {' / '.join(stack)})" if stack else ""))


def builder_refusals(network: INetworkDefinition, messages: Iterable[str]) -> list[Refusal]:
    """What the builder said, each with the ONNX node of the layer that it names."""
    nodes: dict[str, str] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        nodes[layer.name] = onnx_node(layer.metadata) or layer.name
    named = [re.findall(r"[\w./:\-]+", message) for message in messages]
    return [
        Refusal(next((nodes[word] for word in words if word in nodes), ""), message)
        for words, message in zip(named, messages, strict=True)
    ]


def onnx_node(metadata: str) -> str:
    """The node's name in a layer's metadata, such as "[ONNX Layer: conv1]"; "" where there is none."""
    match = re.search(r"\[ONNX Layer: ([^\]]+)\]", metadata or "")
    return match.group(1) if match else ""
