"""Open Inference Protocol v2 over gRPC, on a port of its own; its errors are status codes of the same outcomes."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from model_store.errors import SuccessorError
from service.access import Permission
from service.api import open_inference_models as models
from service.api.access import authorise
from service.api.common import (
    ARRIVING_S,
    Connection,
    Headers,
    Service,
    deadline_of,
    identify,
    log_fault,
    retry_after_ms,
    with_place,
)
from service.api.endpoint import origin_headers
from service.api.grpc_messages import SERVICE, load_messages
from service.api.open_inference import Inference, infer
from service.api.open_inference_schema import InferParameters
from service.api.parsing import refusal_of
from service.api.tensors import Tensor, Wanted, refuse_unsupported
from service.errors import (
    UNEXPECTED,
    ClientGoneError,
    InvalidRequestError,
    ListenError,
    ModelNotLoadedError,
    Outcome,
    OverloadedError,
    RequestTimeoutError,
    WrongPortError,
    outcome_of,
)
from service.settings import Settings
from service.telemetry import continued

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
# Of what is said of an error: the library gives up an answer whose end is longer than 16 KiB.
_MOST_SAID = 2_000
# Methods that ask a model for answers.
_WORK = {"ModelInfer", "ModelStreamInfer"}

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
            # Else, on a fast line, the library takes megabytes of each message though nobody waits for it.
            ("grpc.http2.bdp_probe", 0),
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


@dataclass(slots=True)
class _Call:
    """One call: what it came with, and what it is told at its end."""

    name: str
    """The method."""
    context: Context
    headers: dict[bytes, bytes]
    request_id: bytes
    arrived: float
    """On the engine's clock: its deadline counts from then."""
    told: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """What it was sent to."""
        return f"/{SERVICE}/{self.name}"

    def asked(self) -> dict[str, str]:
        """What the log says of it."""
        return {"method": "gRPC", "path": self.path, "request_id": self.request_id.decode()}

    def tell(self, metadata: Mapping[str, str]) -> None:
        """Say more at the call's end."""
        self.told |= metadata
        self.context.set_trailing_metadata(tuple(self.told.items()))


Method = Callable[[Any, _Call], Awaitable[Any]]


class _Servicer:
    """The protocol's methods; each takes and gives a message.

    All of them are streams of requests to the library, also those that have one: it hands these over only when they are
    there and parsed, and would wait for them for ever. On the wire there is no difference.

    While the library waits for a message it keeps what has come of it, and says nothing of how much that is. So only
    as many are waited for at a time as may all be as large as one may be: half of them the only ones of their calls,
    half the next ones of streams. A message that nobody waits for stays with its client.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._messages = load_messages()
        settings = service.settings
        most = max(1, settings.max_arriving_bytes // (2 * settings.max_body_bytes))
        self._arriving, self._streams = asyncio.Semaphore(most), asyncio.Semaphore(most)

    def handlers(self) -> Any:  # noqa: ANN401 - gRPC's generic handler
        """What the server dispatches by."""
        unary: dict[str, tuple[Method, Permission | None]] = {
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
            name: grpc.stream_unary_rpc_method_handler(
                functools.partial(self._answer, name, method, permission),
                response_serializer=self._messages[f"{name}Response"].SerializeToString,
            )
            for name, (method, permission) in unary.items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._model_stream_infer,
            response_serializer=self._messages["ModelStreamInferResponse"].SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def _answer(
        self,
        name: str,
        method: Method,
        permission: Permission | None,
        _: object,
        context: Context,
    ) -> Any:  # noqa: ANN401 - a message
        """Answer one request; every error gets its code, and what was not expected tells nothing."""
        call = self._begin(name, context)
        code = grpc.StatusCode.CANCELLED  # unless it comes to another end
        try:
            with self._traced(call):
                self._enter(call, permission)
                # What anybody may ask needs no message: its fields, if it has any, say nothing.
                answer = await method(None if permission is None else await self._read_only(call), call)
        except Exception as error:  # noqa: BLE001 - as the envelope does for HTTP
            code = await self._end(call, error)
        else:
            code = grpc.StatusCode.OK
            return answer
        finally:
            self._log(call, code)

    def _begin(self, name: str, context: Context) -> _Call:
        """What is known of a call before its message is there; its end has its id, and continues its trace."""
        headers = _headers(context)
        request_id = identify(self._service, headers)
        call = _Call(name, context, headers, request_id, self._service.engine.clock())
        call.tell({"x-request-id": request_id.decode()})
        traceparent = continued(headers.get(b"traceparent", b""))
        if traceparent is not None:
            call.tell({"traceparent": traceparent.decode()})
        return call

    def _enter(self, call: _Call, permission: Permission | None) -> None:
        """Let a call in, before its message is read.

        Raises:
            SuccessorError: it may not do this, not here, or there is too much to do.
        """
        if permission == "admin" and self._service.operations_port is not None:
            raise WrongPortError("administration is at the server's operations port, over HTTP")
        if permission is not None:
            authorise(self._service, call.headers, permission, call.asked)
        if call.name in _WORK:
            limit_s = call.context.time_remaining()
            self._service.engine.check_admission(deadline_of(call.headers, call.arrived, math.inf, limit_s))

    async def _read_only(self, call: _Call) -> Any:  # noqa: ANN401 - a message
        """The one message of a call; see `_read`.

        Raises:
            OverloadedError: so many others have been arriving for so long that this one could not.
        """
        within_ms = self._service.settings.receive_timeout_ms
        try:
            async with asyncio.timeout(within_ms / 1e3):
                await self._arriving.acquire()
        except TimeoutError as error:
            raise _too_much() from error
        try:
            request = await self._read(call, f"{call.name}Request", within_ms)
        finally:
            self._arriving.release()
        if request is None:
            raise ClientGoneError("the client ended the call before its message")
        return request

    async def _read(self, call: _Call, kind: str, within_ms: int) -> Any:  # noqa: ANN401 - a message
        """The next message of a call; None: there is no other.

        Raises:
            RequestTimeoutError: it does not come.
            InvalidRequestError: it is none.
        """
        try:
            async with asyncio.timeout(within_ms / 1e3):
                data = await call.context.read()
        except TimeoutError as error:
            raise RequestTimeoutError(f"no message came within {within_ms} ms: call again") from error
        if data is grpc.aio.EOF:
            return None
        try:
            return self._messages[kind].FromString(data)
        except DecodeError as error:
            raise InvalidRequestError(f"the message is no {kind}") from error

    @contextmanager
    def _traced(self, call: _Call) -> Iterator[None]:
        """A span around one request, where OpenTelemetry is configured."""
        if self._service.tracing is None:
            yield
            return
        span, status = self._service.tracing.begin("POST", call.path, call.headers), 200
        call.tell({"traceparent": span.traceparent.decode()})
        try:
            yield
        except SuccessorError as error:
            status = outcome_of(error).status
            raise
        except BaseException:
            status = UNEXPECTED.status
            raise
        finally:
            span.end(f"POST {call.path}", status)

    async def _end(self, call: _Call, error: Exception) -> grpc.StatusCode:
        """End a call with an error, as the library does it: only what has no message is tried again by clients."""
        outcome, message = self._refusal(error, call)
        try:
            await call.context.abort(code_of(outcome), message, tuple(call.told.items()))
        except grpc.aio.AbortError as end:
            end.__traceback__ = None  # the library keeps it, and by it this frame and the request would stay
        return code_of(outcome)

    def _refusal(self, error: Exception, call: _Call) -> tuple[Outcome, str]:
        """What a client is told of an error; it is counted, and logged if it is the server's own fault."""
        self._service.metrics.count_refusal(error)
        if not isinstance(error, SuccessorError):
            log.error("unexpected error", path=call.path, request_id=call.request_id.decode(), exc_info=error)
            return UNEXPECTED, "the server failed in a way that it did not expect: its log has the details"
        log_fault(error, call.path, call.request_id)
        error.__traceback__ = None  # see `Endpoint.answer`
        if isinstance(error, OverloadedError):
            milliseconds = str(retry_after_ms(error))
            # The second is what gRPC clients that retry by themselves go by.
            call.tell({"retry-after-ms": milliseconds, "grpc-retry-pushback-ms": milliseconds})
        said = with_place(str(error), error.param)
        said = said if len(said) <= _MOST_SAID else f"{said[:_MOST_SAID]}…"
        return outcome_of(error), said.encode("utf-8", "replace").decode()

    def _log(self, call: _Call, code: grpc.StatusCode) -> None:
        if self._service.settings.log_requests:
            log.info("request", status=code.name, **call.asked())

    async def _model_infer(self, request: Any, call: _Call) -> Any:  # noqa: ANN401
        response, headers = await self._infer(request, call)
        call.tell({name.decode(): value.decode() for name, value in headers})
        return response

    async def _model_stream_infer(self, _: object, context: Context) -> AsyncIterator[Any]:
        """Answer a stream's requests in their order, each with its answer or its error."""
        make, settings = self._messages["ModelStreamInferResponse"], self._service.settings
        call = self._begin("ModelStreamInfer", context)
        code = grpc.StatusCode.CANCELLED  # as above
        try:
            self._enter(call, "infer")  # which also lets the first request in
            async with self._open_stream():
                admitted, patience_ms = True, settings.receive_timeout_ms
                while True:
                    request_id = ""
                    try:
                        request = await self._read(call, "ModelInferRequest", patience_ms)
                        if request is None:
                            code = grpc.StatusCode.OK
                            break
                        request_id, call.arrived = request.id, self._service.engine.clock()
                        with self._traced(call):
                            if not admitted:
                                self._enter(call, "infer")
                            response, _origin = await self._infer(request, call)
                        yield make(infer_response=response)
                    except RequestTimeoutError:
                        if admitted:
                            raise
                        code = grpc.StatusCode.OK  # idle, as a connection of HTTP that is kept alive for so long
                        break
                    except Exception as error:  # noqa: BLE001 - as above
                        refused = make(error_message=self._refusal(error, call)[1])
                        refused.infer_response.id = request_id
                        yield refused
                    admitted, patience_ms = False, settings.keep_alive_ms
        except Exception as error:  # noqa: BLE001 - as above
            code = await self._end(call, error)
        finally:
            self._log(call, code)

    @asynccontextmanager
    async def _open_stream(self) -> AsyncIterator[None]:
        """A stream's place, until it ends.

        Raises:
            OverloadedError: there is none.
        """
        if self._streams.locked():
            raise _too_much()
        async with self._streams:
            yield

    async def _infer(self, request: Any, call: _Call) -> tuple[Any, Headers]:  # noqa: ANN401
        service = self._service
        started = service.engine.clock()
        inference = inference_of(request)
        left_s = call.context.time_remaining()
        deadline = deadline_of(
            call.headers,
            call.arrived,
            service.settings.request_timeout_ms / 1e3,
            inference.timeout_s,
            None if left_s is None else left_s + started - call.arrived,
        )
        # The library cancels what nobody waits for any more.
        answered, _, outputs = await infer(
            service, inference, started=started, deadline=deadline, connection=Connection()
        )
        model = answered.route.model.manifest.id
        response = self._messages["ModelInferResponse"](
            model_name=model.name, model_version=str(model.version), id=request.id
        )
        for output in outputs:
            response.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
            response.raw_output_contents.append(output.packed())
        return response, origin_headers(answered)

    async def _server_live(self, _: Any, __: _Call) -> Any:  # noqa: ANN401
        return self._messages["ServerLiveResponse"](live=True)

    async def _server_ready(self, _: Any, __: _Call) -> Any:  # noqa: ANN401
        return self._messages["ServerReadyResponse"](ready=self._service.obstacle is None)

    async def _server_metadata(self, _: Any, __: _Call) -> Any:  # noqa: ANN401
        return self._made("ServerMetadataResponse", models.server_metadata())

    async def _model_ready(self, request: Any, _: _Call) -> Any:  # noqa: ANN401
        try:
            self._service.registry.route(models.reference_of(request.name, request.version))
        except ModelNotLoadedError:  # Triton's clients ask after they have unloaded one
            return self._messages["ModelReadyResponse"](ready=False)
        return self._messages["ModelReadyResponse"](ready=True)

    async def _model_metadata(self, request: Any, _: _Call) -> Any:  # noqa: ANN401
        reference = models.reference_of(request.name, request.version)
        return self._made("ModelMetadataResponse", models.metadata(self._service, reference))

    async def _model_config(self, request: Any, _: _Call) -> Any:  # noqa: ANN401
        reference = models.reference_of(request.name, request.version)
        return self._made("ModelConfigResponse", {"config": models.config(self._service, reference)})

    async def _model_statistics(self, request: Any, _: _Call) -> Any:  # noqa: ANN401
        reference = models.reference_of(request.name, request.version) if request.name else None
        return self._made("ModelStatisticsResponse", await models.statistics(self._service, reference))

    async def _index(self, request: Any, _: _Call) -> Any:  # noqa: ANN401
        listed = await models.index(self._service, only_ready=request.ready)
        return self._made("RepositoryIndexResponse", {"models": listed})

    async def _load(self, request: Any, _: _Call) -> Any:  # noqa: ANN401
        await models.demand(self._service, request.model_name, wanted=True)
        return self._messages["RepositoryModelLoadResponse"]()

    async def _unload(self, request: Any, _: _Call) -> Any:  # noqa: ANN401
        await models.demand(self._service, request.model_name, wanted=False)
        return self._messages["RepositoryModelUnloadResponse"]()

    def _made(self, name: str, document: Mapping[str, object]) -> Any:  # noqa: ANN401 - a message
        return ParseDict(document, self._messages[name]())


def _too_much() -> OverloadedError:
    return OverloadedError(
        "as many messages are waited for as may be, by SUCCESSOR_MAX_ARRIVING_BYTES: retry later",
        retry_after_s=ARRIVING_S,
    )


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


def _headers(context: Context) -> dict[bytes, bytes]:
    """A call's metadata, as HTTP's headers."""
    return {
        name.encode(): value if isinstance(value, bytes) else value.encode()
        for name, value in context.invocation_metadata() or ()
    }
