"""The Open Inference Protocol over gRPC (grpcio's asyncio server), beside HTTP in one process.

Messages are parsed here and not by grpcio, so that bytes that are no message are the client's mistake
(INVALID_ARGUMENT) and not the server's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from saccade.errors import InputError, SaccadeError, UsageError
from saccade.serving import description
from saccade.serving.gate import is_authorised, request_id, traceparent
from saccade.serving.inference import infer
from saccade.serving.protocol import inference_pb2 as pb
from saccade.serving.refusals import Forbidden, Unauthorised
from saccade.serving.repository import Repository
from saccade.serving.rpc_codec import decode, encode, parse_infer
from saccade.serving.settings import LAST_CALLS_S, ServerSettings
from saccade.serving.shared_memory import SharedMemory
from saccade.serving.tracing import call_span

__all__ = ["RpcServer"]

logger = logging.getLogger("saccade.serving")

_SERVICE = "inference.GRPCInferenceService"
_OPEN = frozenset({"ServerLive", "ServerReady"})
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.RESOURCE_EXHAUSTED,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_STREAM = "ModelStreamInfer"
# Calls whose `name` is a model's; other names are those of shared memory.
_OF_A_MODEL = frozenset({"ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"})
_MAX_NAME = 128
Parse = Callable[[bytes], Any]
Method = Callable[[Any, Any], Awaitable[Message]]


class RpcServer:
    """A server that is bound to `port` but not started. UsageError where the port is taken."""

    def __init__(self, repository: Repository, settings: ServerSettings, memory: SharedMemory) -> None:
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
            ],
            maximum_concurrent_rpcs=settings.max_connections,
        )
        self._drain_s = settings.drain_s
        self._service = _Service(repository, settings, memory)
        handler = grpc.method_handlers_generic_handler(_SERVICE, self._service.handlers())
        self._server.add_generic_rpc_handlers([handler])
        self.port = _bind(self._server, settings)

    async def start(self) -> None:
        """Answer."""
        await self._server.start()

    async def drain(self) -> None:
        """Accept nothing new, answer what was accepted, end streams; close after `drain_s` at the latest."""
        if not self._service.last_calls.done():
            self._service.last_calls.set_result(time.monotonic() + self._drain_s / 2)
        await self._server.stop(self._drain_s)


def _bind(server: grpc.aio.Server, settings: ServerSettings) -> int:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if settings.tls_certificate is None or settings.tls_key is None:
            port = server.add_insecure_port(address)
        else:
            pair = (settings.tls_key.read_bytes(), settings.tls_certificate.read_bytes())
            port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:
        other = "--grpc-port" if settings.tls_key is None else "--grpc-port, or a certificate that gRPC takes"
        raise UsageError(f"gRPC cannot listen on {address}: give another {other}") from error
    return int(port)


class _Service:
    """The protocol's calls, one method each: message in, message out."""

    def __init__(self, repository: Repository, settings: ServerSettings, memory: SharedMemory) -> None:
        self._repository, self._settings, self._memory = repository, settings, memory
        # Done once the server drains: until when streams may go on.
        self.last_calls: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def handlers(self) -> dict[str, Any]:
        """What grpcio calls for each name."""
        unary: dict[str, tuple[Parse, Method]] = {
            "ServerLive": (pb.ServerLiveRequest.FromString, self._live),
            "ServerReady": (pb.ServerReadyRequest.FromString, self._ready),
            "ModelReady": (pb.ModelReadyRequest.FromString, self._model_ready),
            "ServerMetadata": (pb.ServerMetadataRequest.FromString, self._server),
            "ModelMetadata": (pb.ModelMetadataRequest.FromString, self._model),
            "ModelInfer": (parse_infer, self._infer),
            "ModelConfig": (pb.ModelConfigRequest.FromString, self._config),
            "ModelStatistics": (pb.ModelStatisticsRequest.FromString, self._statistics),
            "RepositoryIndex": (pb.RepositoryIndexRequest.FromString, self._index),
            "RepositoryModelLoad": (pb.RepositoryModelLoadRequest.FromString, self._load),
            "RepositoryModelUnload": (pb.RepositoryModelUnloadRequest.FromString, self._unload),
            "SystemSharedMemoryStatus": (pb.SystemSharedMemoryStatusRequest.FromString, self._regions),
            "SystemSharedMemoryRegister": (pb.SystemSharedMemoryRegisterRequest.FromString, self._register),
            "SystemSharedMemoryUnregister": (
                pb.SystemSharedMemoryUnregisterRequest.FromString,
                self._unregister,
            ),
        }
        handlers = {name: self._unary(name, parse, method) for name, (parse, method) in unary.items()}
        stream = grpc.stream_stream_rpc_method_handler(self._stream, response_serializer=_bytes)
        return handlers | {"ModelStreamInfer": stream}

    def _unary(self, name: str, parse: Parse, method: Method) -> Any:
        async def call(data: bytes, context: Any) -> Message:
            line = _Line(name, context)
            try:
                self._admitted(name, line.metadata)
                with call_span(self._settings.tracing, name, line.metadata):
                    request = _parsed(parse, data)
                    line.read(request)
                    answer = await method(request, context)
                line.code = grpc.StatusCode.OK
                return answer
            except Exception as error:
                message = line.fail(error)
                await context.abort(line.code, message)
                raise
            finally:
                line.write()

        return grpc.unary_unary_rpc_method_handler(call, response_serializer=_bytes)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Message]:
        """Answers in the order of the requests; what is wrong with one does not end the stream."""
        line = _Line(_STREAM, context)
        try:
            self._admitted(_STREAM, line.metadata)
        except SaccadeError as error:
            message = line.fail(error)
            line.write()
            await context.abort(line.code, message)
        messages = aiter(requests)
        while (data := await self._next(messages, context)) is not None:
            yield await self._streamed(data, context)

    async def _next(self, messages: AsyncIterator[bytes], context: Any) -> bytes | None:
        """A stream's next message; None where its client has ended it.

        While the server drains, what is on its way is still taken; a silent stream ends as UNAVAILABLE.
        """
        reading: asyncio.Future[Any] = asyncio.ensure_future(anext(messages, None))
        waiting: set[asyncio.Future[Any]] = {reading, self.last_calls}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                left = self.last_calls.result() - time.monotonic()
                await asyncio.wait({reading}, timeout=min(LAST_CALLS_S, max(left, 0)))
            if reading.done():
                message: bytes | None = reading.result()
                return message
        finally:
            reading.cancel()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops: open another stream")
        return None

    async def _streamed(self, data: bytes, context: Any) -> Message:
        """The answer to one message of a stream."""
        line = _Line(_STREAM, context)
        try:
            request = _parsed(parse_infer, data)
            line.read(request)
            answer = pb.ModelStreamInferResponse(infer_response=await self._infer(request, context))
            line.code = grpc.StatusCode.OK
            return answer
        except Exception as error:
            return pb.ModelStreamInferResponse(error_message=line.fail(error))
        finally:
            line.write()

    def _admitted(self, name: str, metadata: Mapping[str, str]) -> None:
        """Unauthorised without the token."""
        if name not in _OPEN and not is_authorised(metadata.get("authorization", ""), self._settings.token):
            raise Unauthorised("this server wants its token: metadata authorization: Bearer TOKEN")

    async def _infer(self, parsed: tuple[Any, list[memoryview]], context: Any) -> Any:
        request, raw = parsed
        decoded = decode(request, raw, context.time_remaining(), self._memory)
        outputs = await infer(self._repository, request.model_name, request.model_version, decoded)
        return encode(request.model_name, decoded, outputs, self._memory)

    async def _live(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self._repository.ready)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self._repository.is_ready(request.name, request.version))

    async def _server(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(**description.server_metadata(self._settings))

    async def _model(self, request: Any, context: Any) -> Any:
        found = description.model_metadata(self._repository, request.name, request.version)
        return pb.ModelMetadataResponse(**found)

    async def _config(self, request: Any, context: Any) -> Any:
        found = description.model_config(self._repository, request.name, request.version)
        return pb.ModelConfigResponse(config=pb.ModelConfig(**found))

    async def _statistics(self, request: Any, context: Any) -> Any:
        found = description.model_statistics(self._repository, request.name, request.version)
        return pb.ModelStatisticsResponse(model_stats=[pb.ModelStatistics(**each) for each in found])

    async def _index(self, request: Any, context: Any) -> Any:
        found = description.index(self._repository, request.ready)
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**each) for each in found]
        )

    async def _load(self, request: Any, context: Any) -> Any:
        self._control(request)
        await self._repository.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Any) -> Any:
        self._control(request)
        await self._repository.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _control(self, request: Any) -> None:
        if not self._settings.control:
            raise Forbidden(
                "models are not loaded or unloaded by requests: the server runs with --no-control"
            )
        if set(request.parameters) - {"unload_dependents"}:
            raise InputError("a bundle is loaded as it is: configurations and files cannot be sent")

    async def _regions(self, request: Any, context: Any) -> Any:
        status = pb.SystemSharedMemoryStatusResponse()
        for each in self._memory.regions(request.name):
            region = status.regions[each.name]
            region.name, region.key = each.name, each.key
            region.offset, region.byte_size = each.offset, each.byte_size
        return status

    async def _register(self, request: Any, context: Any) -> Any:
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def _unregister(self, request: Any, context: Any) -> Any:
        self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()


class _Line:
    """The log line of a call, or of one request of a stream: begun now, written once."""

    def __init__(self, method: str, context: Any) -> None:
        self.begun, self.method, self.code = time.monotonic_ns(), method, grpc.StatusCode.CANCELLED
        given = context.invocation_metadata() or ()
        self.metadata = {key: value for key, value in given if isinstance(value, str)}
        self.model = ""
        self._given_id = self.metadata.get("x-request-id", "")

    @cached_property
    def id(self) -> str:
        """Asked for once the request was read, as far as it can be."""
        return request_id(self._given_id)

    def read(self, request: Any) -> None:
        """Take from `request` which model it is for, and its id where the call has none."""
        message = request[0] if isinstance(request, tuple) else request
        named = message.name if self.method in _OF_A_MODEL else getattr(message, "model_name", "")
        self.model = named[:_MAX_NAME]
        if "x-request-id" not in self.metadata:
            self._given_id = getattr(message, "id", "")

    def fail(self, error: Exception) -> str:
        """Take the status of `error`; what the client hears of it."""
        if isinstance(error, SaccadeError):
            self.code = _CODES.get(error.http_status, grpc.StatusCode.INTERNAL)
            return str(error)
        self.code = grpc.StatusCode.INTERNAL
        logger.error("internal error", exc_info=error, extra={"request_id": self.id})
        return "internal error: see the server's log"

    def write(self) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        trace = traceparent(self.metadata.get("traceparent", ""))
        more = {"traceparent": trace} if trace else {}
        fields = {
            "request_id": self.id,
            "method": self.method,
            "model": self.model,
            "status": self.code.name,
            "milliseconds": round((time.monotonic_ns() - self.begun) / 1e6, 3),
            **more,
        }
        logger.info("request", extra=fields)


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _parsed(parse: Parse, data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise InputError(f"the bytes are no message of this call: {str(error)[:200]}") from error
