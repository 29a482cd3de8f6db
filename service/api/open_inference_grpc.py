"""Open Inference Protocol v2 over gRPC, on a port of its own; its errors are status codes of the same outcomes."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import structlog
from google.protobuf.json_format import ParseDict
from pydantic import ValidationError

from model_store.errors import SuccessorError
from service.access import Permission
from service.api import open_inference_models as models
from service.api.access import authorise, check_port
from service.api.common import Headers, Service, deadline_of, identify, log_fault
from service.api.endpoint import origin_headers
from service.api.grpc_messages import SERVICE, load_messages
from service.api.open_inference import Inference, infer
from service.api.open_inference_schema import InferParameters
from service.api.parsing import refusal_of
from service.api.tensors import Tensor, Wanted, refuse_unsupported
from service.errors import UNEXPECTED, InvalidRequestError, ListenError, Outcome, OverloadedError, outcome_of
from service.settings import Settings

log = structlog.get_logger(__name__)

# A status of the native dialect → gRPC's code.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    431: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
# Calls at a time on one connection.
_MOST_STREAMS = 256
_LEAST_GRACE_S = 0.5
# The library's options are numbers of 32 bits.
_MOST = 2**31 - 1
_MOST_PARAMETERS = 64

Context = Any  # grpc.aio.ServicerContext; the package has no types


def code_of(outcome: Outcome) -> grpc.StatusCode:
    """GRPC's code for an outcome."""
    return CODES[outcome.status]


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[int]:
    """A gRPC server until the block ends; gives the port. What is in flight at the end has `drain_ms` to finish.

    Raises:
        ListenError: the port is taken.
    """
    settings = service.settings
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", min(_MOST, settings.max_body_bytes)),
            ("grpc.so_reuseport", int(settings.processes > 1)),
            ("grpc.max_allowed_incoming_connections", min(_MOST, settings.max_connections)),
            ("grpc.max_concurrent_streams", _MOST_STREAMS),
            ("grpc.max_connection_idle_ms", min(_MOST, settings.keep_alive_ms)),
            ("grpc.server_handshake_timeout_ms", min(_MOST, settings.receive_timeout_ms)),
        )
    )
    server.add_generic_rpc_handlers([_Servicer(service).handlers()])
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port: int = _add_port(server, f"{host}:{settings.grpc_port}", settings)
    except RuntimeError as error:
        raise ListenError(
            f"can't listen on {host}:{settings.grpc_port} for gRPC: choose another SUCCESSOR_GRPC_PORT"
        ) from error
    await server.start()
    log.info("gRPC", address=f"{host}:{port}")
    try:
        yield port
    finally:
        # HTTP has been waiting since the signal, and so have the calls that are in flight here.
        await server.stop(max(_LEAST_GRACE_S, service.seconds_to_drain()))


def _add_port(server: Any, address: str, settings: Settings) -> int:  # noqa: ANN401 - gRPC has no types
    """Listen, with TLS where the settings have a certificate; returns the port."""
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return int(server.add_insecure_port(address))
    pair = (settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())
    return int(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))


class _Servicer:
    """The protocol's methods; each takes and gives a message."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._messages = load_messages()

    def handlers(self) -> Any:  # noqa: ANN401 - gRPC's generic handler
        """What the server dispatches by."""
        unary: dict[str, tuple[Callable[[Any, Context], Awaitable[Any]], Permission | None]] = {
            "ServerLive": (self._server_live, None),
            "ServerReady": (self._server_ready, None),
            "ServerMetadata": (self._server_metadata, None),
            "ModelReady": (self._model_ready, "infer"),
            "ModelMetadata": (self._model_metadata, "infer"),
            "ModelConfig": (self._model_config, "infer"),
            "ModelStatistics": (self._model_statistics, "infer"),
            "ModelInfer": (self._model_infer, "infer"),
            "RepositoryIndex": (self._index, "infer"),
            "RepositoryModelLoad": (self._load, "admin"),
            "RepositoryModelUnload": (self._unload, "admin"),
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                functools.partial(self._answer, method, permission),
                request_deserializer=self._messages[f"{name}Request"].FromString,
                response_serializer=self._messages[f"{name}Response"].SerializeToString,
            )
            for name, (method, permission) in unary.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._model_stream_infer,
            request_deserializer=self._messages["ModelInferRequest"].FromString,
            response_serializer=self._messages["ModelStreamInferResponse"].SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _answer(
        self,
        method: Callable[[Any, Context], Awaitable[Any]],
        permission: Permission | None,
        request: Any,  # noqa: ANN401 - a message
        context: Context,
    ) -> Any:  # noqa: ANN401 - a message
        """Answer one request; every error gets its code, and what was not expected tells nothing."""
        headers = _headers(context)
        path = _path(type(request).__name__.removesuffix("Request"))
        request_id = self._identified(headers, context)
        try:
            if permission is not None:
                check_port(self._service, {}, permission)
                authorise(self._service, headers, permission)
            with self._traced(path, headers):
                return await method(request, context)
        except Exception as error:  # noqa: BLE001 - as the envelope does for HTTP
            outcome, message, metadata = self._refusal(error, path, request_id)
        await context.abort(code_of(outcome), message, (*metadata, *context.trailing_metadata()))
        return None

    def _identified(self, headers: Mapping[bytes, bytes], context: Context) -> bytes:
        """A call's id, which is also with its answer."""
        request_id = identify(self._service, headers)
        context.set_trailing_metadata((("x-request-id", request_id.decode()),))
        return request_id

    @contextmanager
    def _traced(self, path: str, headers: Mapping[bytes, bytes]) -> Iterator[None]:
        """A span around one request, where OpenTelemetry is configured."""
        if self._service.tracing is None:
            yield
            return
        span, status = self._service.tracing.begin("POST", path, headers), 200
        try:
            yield
        except SuccessorError as error:
            status = outcome_of(error).status
            raise
        except BaseException:
            status = UNEXPECTED.status
            raise
        finally:
            span.end(f"POST {path}", status)

    def _refusal(
        self, error: Exception, path: str, request_id: bytes
    ) -> tuple[Outcome, str, tuple[tuple[str, str], ...]]:
        """What a client is told of an error; it is counted, and logged if it is the server's own fault."""
        self._service.metrics.count_refusal(error)
        if not isinstance(error, SuccessorError):
            log.error("unexpected error", path=path, request_id=request_id.decode(), exc_info=error)
            return UNEXPECTED, "the server failed in a way that it did not expect: its log has the details", ()
        log_fault(error, path, request_id)
        metadata: tuple[tuple[str, str], ...] = ()
        if isinstance(error, OverloadedError):
            milliseconds = f"{max(1, round(error.retry_after_s * 1e3))}"
            # The second is what gRPC clients that retry by themselves go by.
            metadata = (("retry-after-ms", milliseconds), ("grpc-retry-pushback-ms", milliseconds))
        return outcome_of(error), str(error).encode("utf-8", "replace").decode(), metadata

    async def _model_infer(self, request: Any, context: Context) -> Any:  # noqa: ANN401
        response, headers = await self._infer(request, context)
        origin = ((name.decode(), value.decode()) for name, value in headers)
        context.set_trailing_metadata((*context.trailing_metadata(), *origin))
        return response

    async def _model_stream_infer(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """Answer a stream's requests in their order, each with its answer or its error."""
        make = self._messages["ModelStreamInferResponse"]
        headers, path = _headers(context), _path("ModelStreamInfer")
        request_id = self._identified(headers, context)
        async for request in requests:
            try:
                authorise(self._service, headers, "infer")
                with self._traced(path, headers):
                    response, _ = await self._infer(request, context)
                yield make(infer_response=response)
            except Exception as error:  # noqa: BLE001 - as above
                refused = make(error_message=self._refusal(error, path, request_id)[1])
                refused.infer_response.id = request.id
                yield refused

    async def _infer(self, request: Any, context: Context) -> tuple[Any, Headers]:  # noqa: ANN401
        service = self._service
        service.engine.check_admission()
        started = service.engine.clock()
        inference = inference_of(request)
        deadline = deadline_of(_headers(context), started, service.settings.request_timeout_ms / 1e3)
        for within_s in (inference.timeout_s, context.time_remaining()):
            if within_s is not None:
                deadline = min(deadline, started + within_s)
        answered, _, outputs = await infer(service, inference, started=started, deadline=deadline)
        model = answered.route.model.manifest.id
        response = self._messages["ModelInferResponse"](
            model_name=model.name, model_version=str(model.version), id=request.id
        )
        for output in outputs:
            response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
            response.raw_output_contents.append(output.packed())
        return response, origin_headers(answered)

    async def _server_live(self, _: Any, __: Context) -> Any:  # noqa: ANN401
        return self._messages["ServerLiveResponse"](live=True)

    async def _server_ready(self, _: Any, __: Context) -> Any:  # noqa: ANN401
        return self._messages["ServerReadyResponse"](ready=self._service.obstacle is None)

    async def _server_metadata(self, _: Any, __: Context) -> Any:  # noqa: ANN401
        return self._made("ServerMetadataResponse", models.server_metadata())

    async def _model_ready(self, request: Any, _: Context) -> Any:  # noqa: ANN401
        self._service.registry.route(models.reference_of(request.name, request.version))
        return self._messages["ModelReadyResponse"](ready=True)

    async def _model_metadata(self, request: Any, _: Context) -> Any:  # noqa: ANN401
        reference = models.reference_of(request.name, request.version)
        return self._made("ModelMetadataResponse", models.metadata(self._service, reference))

    async def _model_config(self, request: Any, _: Context) -> Any:  # noqa: ANN401
        reference = models.reference_of(request.name, request.version)
        return self._made("ModelConfigResponse", {"config": models.config(self._service, reference)})

    async def _model_statistics(self, request: Any, _: Context) -> Any:  # noqa: ANN401
        reference = models.reference_of(request.name, request.version) if request.name else None
        return self._made("ModelStatisticsResponse", await models.statistics(self._service, reference))

    async def _index(self, request: Any, _: Context) -> Any:  # noqa: ANN401
        listed = await models.index(self._service, only_ready=request.ready)
        return self._made("RepositoryIndexResponse", {"models": listed})

    async def _load(self, request: Any, _: Context) -> Any:  # noqa: ANN401
        await models.demand(self._service, request.model_name, wanted=True)
        return self._messages["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any, _: Context) -> Any:  # noqa: ANN401
        await models.demand(self._service, request.model_name, wanted=False)
        return self._messages["RepositoryModelUnloadResponse"]()

    def _made(self, name: str, document: Mapping[str, object]) -> Any:  # noqa: ANN401 - a message
        return ParseDict(document, self._messages[name]())


def inference_of(request: Any) -> Inference:  # noqa: ANN401 - a ModelInferRequest
    """The work that a request asks for.

    Raises:
        InvalidRequestError: not what the protocol says.
        NotSupportedError: something of the protocol that is not done here.
    """
    # Before anything is made of them: an empty one is two bytes of a message.
    for name, most in (("inputs", 2), ("outputs", 3)):
        if len(getattr(request, name)) > most:
            raise InvalidRequestError(f"no model has more than {most} {name}", param=name)
    raw: Sequence[bytes] = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw)} elements and there are {len(request.inputs)} inputs: all or none of"
            " them come raw",
            param="raw_input_contents",
        )
    tensors: list[Tensor] = []
    for index, one in enumerate(request.inputs):
        refuse_unsupported(_plain(one.parameters))
        if raw and one.HasField("contents"):
            raise InvalidRequestError("an input comes raw or in its contents, not both", param=f"inputs.{one.name}")
        data = None if raw else list(one.contents.bytes_contents)
        tensors.append(Tensor(one.name, one.datatype, one.shape, data, memoryview(raw[index]) if raw else None))
    try:
        parameters = InferParameters.model_validate(_plain(request.parameters))
        wanted = [_wanted(one) for one in request.outputs]
    except ValidationError as error:
        raise refusal_of(error, InferParameters, {}) from error
    return Inference(models.reference_of(request.model_name, request.model_version), tensors, wanted, parameters)


def _wanted(output: Any) -> Wanted:  # noqa: ANN401 - an InferRequestedOutputTensor
    parameters = _plain(output.parameters)
    refuse_unsupported(parameters)
    classification = parameters.get("classification", 0)
    if not isinstance(classification, int):
        raise InvalidRequestError("classification must be a number", param=f"outputs.{output.name}.classification")
    return Wanted(output.name, classification)


def _plain(parameters: Mapping[str, Any]) -> dict[str, object]:
    """Parameters by their names, without those that have no value.

    Raises:
        InvalidRequestError: there are more than could mean something.
    """
    if len(parameters) > _MOST_PARAMETERS:
        raise InvalidRequestError(f"a request has at most {_MOST_PARAMETERS} parameters", param="parameters")
    chosen = {name: one.WhichOneof("parameter_choice") for name, one in parameters.items()}
    return {name: getattr(parameters[name], choice) for name, choice in chosen.items() if choice is not None}


def _path(method: str) -> str:
    """What a method's requests are sent to."""
    return f"/{SERVICE}/{method}"


def _headers(context: Context) -> dict[bytes, bytes]:
    """A call's metadata, as HTTP's headers."""
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode()
        for name, value in context.invocation_metadata() or ()
    }
