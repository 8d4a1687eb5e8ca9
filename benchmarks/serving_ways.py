"""A model that costs nothing, and the ways to ask its server: one call each, by clients that cost little."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import saccade
from saccade import bundle as bundles
from saccade.models.card import Card, Preprocessing
from saccade.serving.protocol import inference_pb2 as pb

__all__ = ["FLOOR", "trivial_bundle", "ways"]

_INFER = "/v2/models/model/infer"

TRIVIAL = """<ir_version: 9, opset_import: ["": 20]>
trivial (float[batch, 3, {side}, {side}] image) => (float[batch, 3] logits) {{
    pooled = GlobalAveragePool (image)
    logits = Flatten <axis = 1> (pooled)
}}"""

# A server that reads what is sent, over HTTP and gRPC, and gives everyone the same answer. The time
# that takes is the clients', the kernel's and grpcio's. One line out: its ports.
FLOOR = """
import concurrent.futures, socket, threading, grpc
del bytearray(2**24)[:]  # keep freed memory, as the server does
ANSWER = b"HTTP/1.1 200 OK\\r\\ncontent-length: 200\\r\\n\\r\\n" + bytes(200)
def read(connection, buffer):
    count, end = 0, None
    while end is None or count < end:
        received = connection.recv_into(buffer[count:])
        if not received:
            return False
        count += received
        if end is None:
            head, found, _ = bytes(buffer[: min(count, 4096)]).lower().partition(b"\\r\\n\\r\\n")
            if found:
                length = head.partition(b"\\r\\ncontent-length: ")[2].partition(b"\\r")[0]
                end = len(head) + 4 + int(length)
    return True
def serve():
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(2**21))
    while read(connection, buffer):
        connection.sendall(ANSWER)
def handler(details):
    return grpc.unary_unary_rpc_method_handler(lambda request, context: bytes(200))
class Everything(grpc.GenericRpcHandler):
    service = staticmethod(handler)
listener = socket.create_server(("127.0.0.1", 0))
server = grpc.server(concurrent.futures.ThreadPoolExecutor(1), handlers=[Everything()])
rpc_port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(listener.getsockname()[1], rpc_port, flush=True)
serve()
"""


def trivial_bundle(out: Path, side: int) -> Path:
    """A classifier whose logits are the means of the channels."""
    import onnx

    card = Card(
        name="trivial",
        family="test",
        preprocessing=Preprocessing(input_size_hw=(side, side), resize_hw=(side, side)),
        labels=("red", "green", "blue"),
    )

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "graphs").mkdir()
        onnx.save(onnx.parser.parse_model(TRIVIAL.format(side=side)), folder / "graphs" / "model.onnx")
        tensors = {"image": ["batch", 3, side, side], "logits": ["batch", 3]}
        image, logits = ([{"name": n, "dtype": "float32", "shape": s}] for n, s in tensors.items())
        files = {"source": "graphs/model.onnx"}
        graph = {"inputs": image, "outputs": logits, "files": files, "sample": None}
        return {
            "name": card.name,
            "task": card.task,
            "card": card.to_json(),
            "graphs": {"model": graph},
            "derived": {},
            "untrained": False,
        }

    return bundles.write(out, fill).path


@contextlib.contextmanager
def ways(
    bundle: Path, row: NDArray[np.float32], http_port: int, grpc_port: int, shared: str
) -> Iterator[Mapping[str, Callable[[], Any]]]:
    """Calls by name; "engine" is the bare engine in this process. shared: a name in /dev/shm."""
    import grpc

    region = Path("/dev/shm", shared)
    region.write_bytes(row.tobytes())
    try:
        with (
            saccade.load(bundle, threads=1) as predictor,
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", http_port)) as connection,
            grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel,
        ):
            _register(connection, shared, row.nbytes)
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            tensor = {"name": "image", "datatype": "FP32", "shape": list(row.shape)}
            size = {"binary_data_size": row.nbytes}
            head = json.dumps({"inputs": [tensor | {"parameters": size}]}).encode()
            place = {"shared_memory_region": shared, "shared_memory_byte_size": row.nbytes}
            by_region = json.dumps({"inputs": [tensor | {"parameters": place}]}).encode()
            body, messages = head + row.tobytes(), _messages(row, shared)
            length = {"Inference-Header-Content-Length": str(len(head))}
            yield {
                "engine": lambda: predictor.engine.run({"image": row}),
                "http": lambda: _post(connection, _INFER, body, length),
                "http_shared_memory": lambda: _post(connection, _INFER, by_region, {}),
                "grpc": lambda: call(messages[0]),
                "grpc_shared_memory": lambda: call(messages[1]),
            }
    finally:
        region.unlink()


def _register(connection: http.client.HTTPConnection, shared: str, size: int) -> None:
    body = json.dumps({"key": shared, "offset": 0, "byte_size": size}).encode()
    _post(connection, f"/v2/systemsharedmemory/region/{shared}/register", body, {})


def _post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: Mapping[str, str]
) -> bytes:
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {content[:200]!r}")
    return content


def _messages(row: NDArray[np.float32], shared: str) -> tuple[bytes, bytes]:
    """The same request with raw bytes and with a region."""
    raw, region = (pb.ModelInferRequest(model_name="model") for _ in range(2))
    for message in (raw, region):
        message.inputs.add(name="image", datatype="FP32", shape=row.shape)
    raw.raw_input_contents.append(row.tobytes())
    region.inputs[0].parameters["shared_memory_region"].string_param = shared
    region.inputs[0].parameters["shared_memory_byte_size"].int64_param = row.nbytes
    return raw.SerializeToString(), region.SerializeToString()
