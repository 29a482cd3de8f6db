"""Text Embeddings Inference, as a classifier has it: `/predict`, `/`, `/invocations`, `/info`, `/health`, `/ping`.

No route names a model: the setting `default_model` does. A single input is answered flat, a batch with a list for each.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from model_store.encoding import TextItem
from model_store.manifest import Precision
from service.api.common import Dialect, Headers, Reply, with_place
from service.api.endpoint import Answered, Call, Endpoint, check_count, origin_headers
from service.api.parsing import Elements, parse_body
from service.api.scores import ranked
from service.errors import InvalidRequestError, ModelNotLoadedError, Outcome
from service.registry import Route

_DTYPES: dict[Precision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
_HINTS = {"inputs": "inputs must be a text, a pair [text, text], or a list of [text] and [text, text]"}

# By code, else by status of the native dialect: this dialect's status and error type.
_BY_CODE = {
    "no_texts": (400, "Empty"),
    "invalid_text": (422, "Tokenizer"),
    "model_not_found": (503, "Unhealthy"),
}
_BY_STATUS = {
    400: (422, "Validation"),
    403: (403, "Unauthorized"),
    404: (404, "Validation"),
    405: (405, "Validation"),
    408: (408, "Validation"),
    409: (424, "Backend"),
    413: (413, "Validation"),
    415: (415, "Validation"),
    429: (429, "Overloaded"),
    431: (431, "Validation"),
    499: (499, "Backend"),
    500: (424, "Backend"),
    501: (422, "Validation"),
    503: (503, "Unhealthy"),
    504: (504, "Backend"),
}


def _show(outcome: Outcome, message: str, param: str | None) -> tuple[int, bytes]:
    if outcome.status == 401:
        return 401, b""
    status, error_type = _BY_CODE.get(outcome.code) or _BY_STATUS[outcome.status]
    return status, orjson.dumps({"error": with_place(message, param), "error_type": error_type})


TEXT_EMBEDDINGS_INFERENCE = Dialect("text_embeddings_inference", (), _show)


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


_Side = Annotated[
    Literal["right", "left"],
    BeforeValidator(_lower),
    WithJsonSchema({"type": "string", "pattern": "^([Rr][Ii][Gg][Hh][Tt]|[Ll][Ee][Ff][Tt])$"}),
]


class PredictRequest(BaseModel):
    """Texts or pairs to classify."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="ignore",
        json_schema_extra={
            "examples": [
                {"inputs": "What is Deep Learning?"},
                {"inputs": ["What is Deep Learning?", "Deep Learning is not..."], "raw_scores": True},
                {"inputs": [["dull"], ["great fun"]], "truncate": True, "truncation_direction": "Left"},
            ]
        },
    )

    inputs: Annotated[str | Elements[str] | Elements[Elements[str]], Field(union_mode="left_to_right")] = Field(
        description="a text; `[text]`; one pair `[text, text]`; or a batch, a list of the latter two"
    )
    truncate: bool | None = Field(None, description="cut texts that are too long for the model, as by default")
    truncation_direction: _Side | None = Field(
        None, description="where to cut, in any case; by default as the model was built for"
    )
    raw_scores: bool = Field(default=False, description="logits instead of probabilities")


async def predict(call: Call) -> Reply:
    """Answer one request."""
    request = parse_body(PredictRequest, await call.body(), _HINTS)
    route = _default_route(call)
    if isinstance(request.inputs, list) and not (request.inputs and isinstance(request.inputs[0], str)):
        check_count(len(request.inputs), call.service.settings, "inputs")  # a list of texts is one pair
    texts, single = texts_of(request.inputs)
    answered = await call.ask(
        route,
        texts,
        truncate=request.truncate is not False,
        side=request.truncation_direction,
        raw_scores=request.raw_scores,
    )
    labels = route.model.manifest.scores.labels
    predictions = [ranked(answer.scores, labels) for answer in answered.answers]
    headers = _headers(answered, texts, call.service.provider)
    return Reply(200, orjson.dumps(predictions[0] if single else predictions), headers)


def texts_of(inputs: str | list[str] | list[list[str]]) -> tuple[list[TextItem], bool]:
    """The texts, and whether they are one input rather than a batch.

    Raises:
        InvalidRequestError: an input that is neither a text nor a pair.
    """
    if isinstance(inputs, str):
        return [TextItem(inputs)], True
    batch = [one for one in inputs if isinstance(one, list)]
    if inputs and not batch:
        batch = [[one for one in inputs if isinstance(one, str)]]
    if not all(1 <= len(one) <= 2 for one in batch):
        raise InvalidRequestError(_HINTS["inputs"], param="inputs")
    return [TextItem(*one) for one in batch], len(inputs) > 0 and isinstance(inputs[0], str)


def _default_route(call: Call) -> Route:
    if call.service.settings.default_model is None:
        raise ModelNotLoadedError("this route names no model: set SUCCESSOR_DEFAULT_MODEL to the one that it means")
    return call.service.registry.route(None)


def _headers(answered: Answered, texts: list[TextItem], provider: str) -> Headers:
    """Who answered, and what it took."""
    queue_s, tokenisation_s, inference_s = answered.parts_s

    def milliseconds(seconds: float) -> bytes:
        return b"%d" % round(1e3 * seconds)

    total = milliseconds(answered.total_s)
    return [
        *origin_headers(answered),
        (b"x-compute-type", b"gpu" if provider.startswith("CUDA") else b"cpu"),
        (b"x-compute-time", total),
        (b"x-compute-characters", b"%d" % sum(len(item.text) + len(item.text_pair or "") for item in texts)),
        (b"x-compute-tokens", b"%d" % sum(answer.tokens for answer in answered.answers)),
        (b"x-total-time", total),
        (b"x-tokenization-time", milliseconds(tokenisation_s)),
        (b"x-queue-time", milliseconds(queue_s)),
        (b"x-inference-time", milliseconds(inference_s)),
    ]


async def info(call: Call) -> Reply:
    """What is served here, and within which limits."""
    served, settings = _default_route(call).model, call.service.settings
    manifest, artifact = served.manifest, served.classifier.artifact
    labels = manifest.scores.labels
    document: dict[str, Any] = {
        "model_id": served.reference,
        "model_sha": artifact.sha256,
        "model_dtype": _DTYPES[artifact.precision],
        "served_model_name": manifest.name,
        "model_type": {
            "classifier": {
                "id2label": {str(index): label for index, label in enumerate(labels)},
                "label2id": {label: index for index, label in enumerate(labels)},
            }
        },
        "max_concurrent_requests": settings.max_connections,
        "max_input_length": manifest.inputs.max_length,
        "max_batch_tokens": served.max_batch_texts * manifest.inputs.max_length,
        "max_batch_requests": served.max_batch_texts,
        "max_client_batch_size": settings.max_texts_per_request,
        "auto_truncate": True,
        "tokenization_workers": call.service.engine.workers,
        "version": version("successor"),
        "sha": None,
        "docker_label": None,
    }
    return Reply(200, orjson.dumps(document))


async def health(call: Call) -> Reply:
    """Nothing, if requests will be answered; of a default model, where there is one."""
    obstacle = call.service.obstacle
    if obstacle is None and call.service.settings.default_model is not None:
        try:
            _default_route(call)
        except ModelNotLoadedError as error:
            open_to_all = call.service.open_to_all
            obstacle = str(error) if open_to_all else "the default model is not served: the log says why"
    if obstacle is not None:
        return Reply(503, orjson.dumps({"error": obstacle, "error_type": "Unhealthy"}))
    return Reply(200, b"")


ENDPOINTS = (
    *(
        Endpoint(TEXT_EMBEDDINGS_INFERENCE, "POST", path, predict, "infer", work=True)
        for path in ("/predict", "/", "/invocations")
    ),
    Endpoint(TEXT_EMBEDDINGS_INFERENCE, "GET", "/info", info, "infer"),
    *(Endpoint(TEXT_EMBEDDINGS_INFERENCE, "GET", path, health, None) for path in ("/health", "/ping", "/")),
)
