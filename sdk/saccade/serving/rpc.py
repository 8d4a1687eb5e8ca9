"""The Open Inference Protocol over gRPC (grpcio's asyncio server), beside HTTP in one process.

Messages are parsed here and not by grpcio, so that bytes that are no message are the client's mistake
(INVALID_ARGUMENT) and not the server's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from saccade.errors import InputError, SaccadeError, UsageError
from saccade.serving import description
from saccade.serving.gate import is_authorised
from saccade.serving.inference import infer
from saccade.serving.protocol import inference_pb2 as pb
from saccade.serving.refusals import Forbidden, Unauthorised
from saccade.serving.repository import Repository
from saccade.serving.rpc_codec import decode, encode, parse_infer
from saccade.serving.settings import ServerSettings
from saccade.serving.shared_memory import SharedMemory
from saccade.serving.tracing import call_span

__all__ = ["create_rpc_server"]

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
Parse = Callable[[bytes], Any]
Method = Callable[[Any, Any], Awaitable[Message]]


def create_rpc_server(
    repository: Repository, settings: ServerSettings, memory: SharedMemory
) -> tuple[grpc.aio.Server, int]:
    """A server that is bound but not started, and its port. UsageError where the port is taken."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
        ],
        maximum_concurrent_rpcs=settings.max_connections,
    )
    service = _Service(repository, settings, memory)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, service.handlers())])
    return server, _bind(server, settings)


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
        raise UsageError(f"gRPC cannot listen on {address}: give another --grpc-port") from error
    return int(port)


class _Service:
    """The protocol's calls, one method each: message in, message out."""

    def __init__(self, repository: Repository, settings: ServerSettings, memory: SharedMemory) -> None:
        self._repository, self._settings, self._memory = repository, settings, memory

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
            begun, code = time.monotonic_ns(), grpc.StatusCode.CANCELLED
            try:
                metadata = self._admitted(name, context)
                with call_span(self._settings.tracing, name, metadata):
                    answer = await method(_parsed(parse, data), context)
                code = grpc.StatusCode.OK
                return answer
            except Exception as error:
                code, message = _status(error)
                await context.abort(code, message)
                raise
            finally:
                if logger.isEnabledFor(logging.INFO):
                    logger.info("request", extra=_line(name, code, begun, context))

        return grpc.unary_unary_rpc_method_handler(call, response_serializer=_bytes)

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Message]:
        """Answers in the order of the requests; what is wrong with one does not end the stream."""
        try:
            self._admitted("ModelStreamInfer", context)
        except SaccadeError as error:
            await context.abort(*_status(error))
        async for data in requests:
            try:
                answer = await self._infer(_parsed(parse_infer, data), context)
            except Exception as error:
                yield pb.ModelStreamInferResponse(error_message=_status(error)[1])
            else:
                yield pb.ModelStreamInferResponse(infer_response=answer)

    def _admitted(self, name: str, context: Any) -> dict[str, str]:
        """The call's metadata; Unauthorised without the token."""
        metadata = {
            key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        if name not in _OPEN and not is_authorised(metadata.get("authorization", ""), self._settings.token):
            raise Unauthorised("this server wants its token: metadata authorization: Bearer TOKEN")
        return metadata

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


def _line(name: str, code: grpc.StatusCode, begun: int, context: Any) -> dict[str, Any]:
    """The fields of a call's log line; a caller's own request id and trace, where it sent them."""
    metadata = dict(context.invocation_metadata() or ())
    named = {"x-request-id": "request_id", "traceparent": "traceparent"}
    own = {field: str(metadata[key])[:128] for key, field in named.items() if key in metadata}
    milliseconds = round((time.monotonic_ns() - begun) / 1e6, 3)
    return {"method": name, "status": code.name, "milliseconds": milliseconds, **own}


def _bytes(message: Message) -> bytes:
    return message.SerializeToString()


def _parsed(parse: Parse, data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise InputError(f"the bytes are no message of this call: {str(error)[:200]}") from error


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What the client hears of an error."""
    if isinstance(error, SaccadeError):
        return _CODES.get(error.http_status, grpc.StatusCode.INTERNAL), str(error)
    logger.error("internal error", exc_info=error)
    return grpc.StatusCode.INTERNAL, "internal error: see the server's log"
