"""What the reference says of each route of the dialects: in words, in types and by an example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model_store import errors as store
from model_store.errors import SuccessorError
from service import errors
from service.api.classify_schema import ClassifyAnswer, ClassifyRequest, LabelScore
from service.api.hugging_face import PipelineRequest
from service.api.open_inference_models import IndexRequest
from service.api.open_inference_schema import InferRequest
from service.api.text_embeddings_inference import PredictRequest

_ANY_REQUEST = (errors.UnsupportedEncodingError, errors.RequestTimeoutError, errors.InvalidRequestError)
READING = (*_ANY_REQUEST, errors.ModelNotLoadedError)
WORK = (
    *READING,
    errors.NoTextsError,
    store.InvalidTextError,
    store.TextTooLongError,
    errors.BodyTooLargeError,
    errors.TooManyTextsError,
    errors.TextTooLargeError,
    errors.OverloadedError,
    errors.DeadlineUnreachableError,
    store.InferenceError,
    errors.ShuttingDownError,
    errors.WorkerLostError,
    errors.DeadlineExceededError,
)
ADMINISTRATION = (
    *READING,
    errors.BodyTooLargeError,
    errors.NotPermittedError,
    store.InvalidReferenceError,
    store.ModelNotFoundError,
    store.IntegrityError,
    errors.DemandNotKeptError,
    errors.NotAcknowledgedError,
)


@dataclass(frozen=True, slots=True)
class About:
    """One route."""

    tag: str
    summary: str
    answer: dict[str, Any]
    """JSON schema of the answer with 200; empty: an answer without a body."""
    example: object
    """An answer."""
    request: type[BaseModel] | None = None
    needs_body: bool = True
    binary: bool = False
    """Bytes of tensors may follow the JSON, there and back."""
    refusals: tuple[type[SuccessorError], ...] = _ANY_REQUEST
    unready: object = field(default=None)
    """An answer with 503, where that is no error but what was asked about."""


class TensorDescription(BaseModel):
    """An input or output of a model."""

    name: str
    datatype: str
    shape: list[int] = Field(description="-1: as many as there are texts")


class ModelMetadata(BaseModel):
    """What a model reads and gives."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


class OutputTensor(BaseModel):
    """One output of an answer."""

    model_config = ConfigDict(extra="forbid")

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, int] | None = Field(None, description="`binary_data_size`, where its bytes follow the JSON")


class InferAnswer(BaseModel):
    """Scores, labels and whether texts were cut."""

    model_config = ConfigDict(extra="forbid")

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class IndexEntry(BaseModel):
    """One version of the store."""

    name: str
    version: str
    state: str = Field(description="READY or UNAVAILABLE")
    reason: str


ANSWERS = (ClassifyAnswer, LabelScore, TensorDescription, ModelMetadata, OutputTensor, InferAnswer, IndexEntry)


def _of(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(**properties: str) -> dict[str, Any]:
    schemas = {name: {"type": kind} for name, kind in properties.items()}
    return {"type": "object", "required": [*properties], "properties": schemas}


_V2, _TEI = "open inference protocol", "text embeddings inference"
_RANKED = [{"label": "positive", "score": 0.98}, {"label": "negative", "score": 0.02}]
_TENSORS = {
    "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
    "outputs": [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "truncated", "datatype": "BOOL", "shape": [-1]},
    ],
}
_COUNT = {"count": 7, "ns": 21000000}
_STATISTICS = {
    "model_stats": [
        {
            "name": "sentiment",
            "version": "3",
            "last_inference": 1700000000000,
            "inference_count": 7,
            "execution_count": 7,
            "inference_stats": {"success": _COUNT, "queue": _COUNT, "compute_input": _COUNT, "compute_infer": _COUNT},
            "batch_stats": [],
        }
    ]
}
_STATISTICS_SCHEMA = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {"model_stats": _list(_object(name="string", version="string", inference_count="integer"))},
}
_PREDICT = About(
    _TEI,
    "Classify with the default model; a single input is answered flat, a batch with a list for each",
    {"anyOf": [_list(_of(LabelScore)), _list(_list(_of(LabelScore)))]},
    _RANKED,
    PredictRequest,
    refusals=WORK,
)
_HEALTH = About(
    _TEI,
    "Requests will be answered",
    {},
    None,
    unready={"error": "the server is going down", "error_type": "Unhealthy"},
)
_INFER = About(
    _V2,
    "Classify texts, as JSON or as binary tensors",
    _of(InferAnswer),
    {
        "model_name": "sentiment",
        "model_version": "3",
        "id": "1",
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [1, 2], "data": [0.02, 0.98]},
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["positive"]},
            {"name": "truncated", "datatype": "BOOL", "shape": [1], "data": [False]},
        ],
    },
    InferRequest,
    binary=True,
    refusals=(*WORK, errors.NotSupportedError),
)
_MODEL: dict[str, About] = {
    "": About(
        _V2,
        "What a model reads and gives",
        _of(ModelMetadata),
        {"name": "sentiment", "versions": ["3"], "platform": "onnxruntime_onnx", **_TENSORS},
        refusals=READING,
    ),
    "/ready": About(
        _V2,
        "Whether a model answers",
        _object(name="string", ready="boolean"),
        {"name": "sentiment", "ready": True},
        refusals=READING,
    ),
    "/config": About(
        _V2,
        "A model's configuration, with its labels among the parameters",
        {"type": "object", "required": ["name", "input", "output", "parameters"]},
        {
            "name": "sentiment",
            "input": [{"name": "text", "data_type": "TYPE_STRING", "dims": [-1]}],
            "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [-1, 2]}],
            "parameters": {"labels": {"string_value": '["negative", "positive"]'}},
        },
        refusals=READING,
    ),
    "/stats": About(
        _V2, "What a version has done since the server started", _STATISTICS_SCHEMA, _STATISTICS, refusals=READING
    ),
}
_VERSIONED = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")


def _change(what: str) -> About:
    return About(_V2, f"{what} a model, in every server process", {"type": "object"}, {}, refusals=ADMINISTRATION)


ROUTES: dict[str, About] = {
    "POST /v1/classify": About(
        "classify",
        "Classify texts",
        _of(ClassifyAnswer),
        {
            "id": "classify-5f1d-1",
            "object": "list",
            "created": 1700000000,
            "model": "sentiment@3",
            "data": [
                {"index": 0, "label": "positive", "probs": [0.02, 0.98], "num_classes": 2, "truncated": False},
            ],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        },
        ClassifyRequest,
        refusals=WORK,
    ),
    **{f"POST {base}/infer": _INFER for base in _VERSIONED},
    **{f"GET {base}{path}": about for base in _VERSIONED for path, about in _MODEL.items()},
    "GET /v2/models/stats": About(
        _V2, "What all loaded versions have done since the server started", _STATISTICS_SCHEMA, _STATISTICS
    ),
    "GET /v2": About(
        _V2,
        "Name, version and extensions of the server",
        {
            "type": "object",
            "required": ["name", "version", "extensions"],
            "properties": {
                "name": {"type": "string"},
                "version": {"type": "string"},
                "extensions": _list({"type": "string"}),
            },
        },
        {"name": "successor", "version": "1.0.0", "extensions": ["binary_tensor_data", "classification"]},
    ),
    "GET /v2/health/live": About(_V2, "The process works", _object(live="boolean"), {"live": True}),
    "GET /v2/health/ready": About(
        _V2,
        "Requests will be answered",
        _object(ready="boolean"),
        {"ready": True},
        unready={"ready": False, "error": "the server is going down"},
    ),
    "POST /v2/repository/index": About(
        _V2,
        "Every version of the store, and whether it answers",
        _list(_of(IndexEntry)),
        [
            {"name": "sentiment", "version": "3", "state": "READY", "reason": ""},
            {"name": "sentiment", "version": "2", "state": "UNAVAILABLE", "reason": "not asked for"},
        ],
        IndexRequest,
        needs_body=False,
        refusals=(*_ANY_REQUEST, errors.BodyTooLargeError, store.IntegrityError),
    ),
    "POST /v2/repository/models/{model}/load": _change("Load"),
    "POST /v2/repository/models/{model}/unload": _change("Let go of"),
    **{f"POST {path}": _PREDICT for path in ("/predict", "/", "/invocations")},
    "GET /info": About(
        _TEI,
        "What the default model is, and within which limits it is served",
        _object(model_id="string", model_type="object", max_input_length="integer", max_client_batch_size="integer"),
        {
            "model_id": "sentiment@3",
            "model_type": {
                "classifier": {
                    "id2label": {"0": "negative", "1": "positive"},
                    "label2id": {"negative": 0, "positive": 1},
                }
            },
            "max_input_length": 128,
            "max_client_batch_size": 256,
        },
        refusals=READING,
    ),
    **{f"GET {path}": _HEALTH for path in ("/health", "/ping", "/")},
    "POST /models/{model}": About(
        "hugging face",
        "Classify texts as Hugging Face's inference API does: a list for each text",
        _list(_list(_of(LabelScore))),
        [_RANKED],
        PipelineRequest,
        refusals=WORK,
    ),
}
