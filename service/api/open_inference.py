"""Open Inference Protocol v2 over HTTP, as Triton, KServe and MLServer speak it, with the binary tensor extension.

An answer's and a request's body is JSON, which the bytes of tensors may follow; then the header
`Inference-Header-Content-Length` says where the JSON ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from service.api import open_inference_models as models
from service.api.common import Connection, Dialect, Reply, Service, with_place
from service.api.endpoint import Answered, Call, Endpoint, Handler, ask, timing_headers
from service.api.open_inference_schema import InferInput, InferOutput, InferParameters, InferRequest
from service.api.parsing import parse_body
from service.api.tensors import (
    TEXT,
    Output,
    Tensor,
    Wanted,
    check_wanted,
    outputs_named,
    outputs_of,
    refuse_unsupported,
    texts_of,
)
from service.errors import InvalidRequestError, Outcome

JSON_LENGTH = b"inference-header-content-length"
_NO_PARAMETERS = InferParameters()


def _show(outcome: Outcome, message: str, param: str | None) -> tuple[int, bytes]:
    status = 429 if outcome.code == "rate_limited" else _STATUS[outcome.status]
    return status, orjson.dumps({"error": with_place(message, param)})


# A status of the native dialect → the protocol's, which knows a full queue only as a server that isn't ready.
_STATUS = {status: status for status in (400, 401, 403, 404, 405, 408, 409, 413, 415, 431, 499, 500, 501, 503, 504)}
_STATUS[429] = 503

OPEN_INFERENCE = Dialect("open_inference", ("/v2/",), _show)


@dataclass(frozen=True, slots=True)
class Inference:
    """A request for work, whatever carries it."""

    reference: str
    inputs: Sequence[Tensor]
    wanted: Sequence[Wanted]
    """Empty: every output, as `binary` says."""
    parameters: InferParameters
    binary: bool = False

    @property
    def timeout_s(self) -> float | None:
        """How long it may take from when it came."""
        return self.parameters.timeout / 1e6 if self.parameters.timeout else None


async def infer(
    service: Service, request: Inference, *, started: float, deadline: float, connection: Connection
) -> tuple[Answered, list[Wanted], list[Output]]:
    """Have a request's texts classified; returns the answer, with its outputs in the order in which they are wanted.

    Raises:
        SuccessorError: refused, too late, or failed.
    """
    refuse_unsupported({"sequence_id": request.parameters.sequence_id})
    route = service.registry.route(request.reference)
    manifest = route.model.manifest
    if request.wanted:
        wanted = list(request.wanted)
        check_wanted(wanted, manifest.scores)
    else:
        wanted = [Wanted(name, binary=request.binary) for name in outputs_named(manifest.scores)]
    texts = texts_of(request.inputs, service.settings, pair=manifest.inputs.pair)
    answered = await ask(
        service,
        route,
        texts,
        started=started,
        deadline=deadline,
        connection=connection,
        truncate=request.parameters.truncate,
        side=request.parameters.truncation_side,
        raw_scores=request.parameters.raw_scores,
        field_name=f"inputs.{TEXT}.data",
    )
    return answered, wanted, outputs_of(answered, wanted)


async def _infer(call: Call) -> Reply:
    body = await call.body()
    request_id, request = decode(body, call.headers.get(JSON_LENGTH), models.reference_of(*call.parameters))
    answered, wanted, outputs = await infer(
        call.service,
        request,
        started=call.started,
        deadline=call.deadline(request.timeout_s),
        connection=call.connection,
    )
    return render(request_id, answered, wanted, outputs)


def decode(body: bytes, json_length: bytes | None, reference: str) -> tuple[str | None, Inference]:
    """A request's id and the work that it asks of a model.

    Args:
        body: JSON, and the bytes of tensors after it.
        json_length: the header that says where the JSON ends.
        reference: the model, from the path.

    Raises:
        InvalidRequestError: not what the protocol says.
        NotSupportedError: something of the protocol that is not done here.
    """
    head, tail = split(body, json_length)
    request = parse_body(InferRequest, head, {})
    parameters = request.parameters or _NO_PARAMETERS
    binary = parameters.binary_data_output
    inputs = tensors_of(request.inputs, tail)
    wanted = [_wanted(one, default=binary) for one in request.outputs or ()]
    return request.id, Inference(reference, inputs, wanted, parameters, binary)


def split(body: bytes, json_length: bytes | None) -> tuple[bytes, memoryview]:
    """A body's JSON, and the bytes of tensors after it.

    Raises:
        InvalidRequestError: the header that says where the JSON ends is no number, or beyond the end.
    """
    if json_length is None:
        return body, memoryview(b"")
    if not json_length.isdigit() or len(json_length) > 18 or int(json_length) > len(body):
        raise InvalidRequestError(
            "header Inference-Header-Content-Length must be the number of the body's bytes that are JSON",
            param="Inference-Header-Content-Length",
        )
    end = int(json_length)
    return body[:end], memoryview(body)[end:]


def tensors_of(inputs: Sequence[InferInput], tail: memoryview) -> list[Tensor]:
    """The inputs, those that come as bytes with their part of `tail`.

    Raises:
        InvalidRequestError: there are fewer or more bytes than the inputs say.
        NotSupportedError: an input is in shared memory.
    """
    tensors: list[Tensor] = []
    begin = 0
    for one in inputs:
        raw = None
        if one.parameters is not None:
            refuse_unsupported({"shared_memory_region": one.parameters.shared_memory_region})
            if one.parameters.binary_data_size is not None:
                raw = tail[begin : begin + one.parameters.binary_data_size]
                begin += one.parameters.binary_data_size
        tensors.append(Tensor(one.name, one.datatype, one.shape, one.data, raw))
    if begin != len(tail):
        raise InvalidRequestError(
            f"{len(tail)} bytes follow the JSON and the inputs' binary_data_size say {begin}", param="inputs"
        )
    return tensors


def _wanted(output: InferOutput, *, default: bool) -> Wanted:
    if output.parameters is None:
        return Wanted(output.name, binary=default)
    refuse_unsupported({"shared_memory_region": output.parameters.shared_memory_region})
    binary = default if output.parameters.binary_data is None else output.parameters.binary_data
    return Wanted(output.name, output.parameters.classification, binary)


def render(request_id: str | None, answered: Answered, wanted: Sequence[Wanted], outputs: Sequence[Output]) -> Reply:
    """The answer: JSON, and after it the bytes of the outputs that are wanted so."""
    parts: list[bytes] = []
    entries: list[dict[str, Any]] = []
    for one, output in zip(wanted, outputs, strict=True):
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if one.binary:
            parts.append(output.packed())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = output.values
        entries.append(entry)
    manifest = answered.route.model.manifest
    document: dict[str, Any] = {
        "model_name": manifest.name,
        "model_version": str(manifest.version),
        "outputs": entries,
    }
    if request_id is not None:
        document["id"] = request_id
    head = orjson.dumps(document)
    headers = timing_headers(answered)
    if not parts:
        return Reply(200, head, headers)
    headers.append((JSON_LENGTH, b"%d" % len(head)))
    return Reply(200, b"".join([head, *parts]), headers, b"application/octet-stream")


def _json(status: int, document: object) -> Reply:
    return Reply(status, orjson.dumps(document))


async def _server(_: Call) -> Reply:
    return _json(200, models.server_metadata())


async def _live(_: Call) -> Reply:
    return _json(200, {"live": True})


async def _ready(call: Call) -> Reply:
    obstacle = call.service.obstacle
    if obstacle is None:
        return _json(200, {"ready": True})
    return _json(503, {"ready": False, "error": obstacle})


async def _metadata(call: Call) -> Reply:
    return _json(200, models.metadata(call.service, models.reference_of(*call.parameters)))


async def _model_ready(call: Call) -> Reply:
    route = call.service.registry.route(models.reference_of(*call.parameters))
    return _json(200, {"name": route.model.manifest.name, "ready": True})


async def _config(call: Call) -> Reply:
    return _json(200, models.config(call.service, models.reference_of(*call.parameters)))


async def _statistics(call: Call) -> Reply:
    reference = models.reference_of(*call.parameters) if call.parameters else None
    return _json(200, await models.statistics(call.service, reference))


async def _index(call: Call) -> Reply:
    body = await call.body()
    ready = parse_body(models.IndexRequest, body, {}).ready if body.strip() else False
    return _json(200, await models.index(call.service, only_ready=ready))


async def _load(call: Call) -> Reply:
    await call.body()  # what Triton's clients put there concerns Triton's own configuration
    await models.demand(call.service, call.parameters[0], wanted=True)
    return _json(200, {})


async def _unload(call: Call) -> Reply:
    await call.body()  # as above
    await models.demand(call.service, call.parameters[0], wanted=False)
    return _json(200, {})


def _of_models(method: str, path: str, handle: Handler, *, work: bool = False) -> list[Endpoint]:
    """One route with and one without a version."""
    return [
        Endpoint(OPEN_INFERENCE, method, f"/v2/models/{{model}}{version}{path}", handle, "infer", work)
        for version in ("", "/versions/{version}")
    ]


ENDPOINTS = (
    Endpoint(OPEN_INFERENCE, "GET", "/v2", _server, None),
    Endpoint(OPEN_INFERENCE, "GET", "/v2/health/live", _live, None),
    Endpoint(OPEN_INFERENCE, "GET", "/v2/health/ready", _ready, None),
    *_of_models("POST", "/infer", _infer, work=True),
    *_of_models("GET", "", _metadata),
    *_of_models("GET", "/ready", _model_ready),
    *_of_models("GET", "/config", _config),
    *_of_models("GET", "/stats", _statistics),
    Endpoint(OPEN_INFERENCE, "GET", "/v2/models/stats", _statistics, "infer"),
    Endpoint(OPEN_INFERENCE, "POST", "/v2/repository/index", _index, "infer"),
    Endpoint(OPEN_INFERENCE, "POST", "/v2/repository/models/{model}/load", _load, "admin"),
    Endpoint(OPEN_INFERENCE, "POST", "/v2/repository/models/{model}/unload", _unload, "admin"),
)
