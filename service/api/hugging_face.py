"""`POST /models/{model}`: text classification in Hugging Face's shape, with one list for each text."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from model_store.classifier import to_scores
from model_store.encoding import TextItem
from model_store.manifest import Side
from service.api.common import Dialect, Reply, with_place
from service.api.endpoint import Call, Endpoint, check_count, timing_headers
from service.api.parsing import Elements, parse_body
from service.api.scores import ranked
from service.errors import Outcome

_HINTS = {"inputs": "inputs must be a text, an object with text and text_pair, or a list of these"}
_FUNCTIONS = {"softmax": "softmax", "sigmoid": "sigmoid", "none": "identity"}


def _show(outcome: Outcome, message: str, param: str | None) -> tuple[int, bytes]:
    return outcome.status, orjson.dumps({"error": with_place(message, param), "error_type": outcome.code})


HUGGING_FACE = Dialect("hugging_face", ("/models/",), _show)


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class TextPair(_Request):
    """A pair of texts, as transformers' pipeline takes it."""

    text: str
    text_pair: str | None = None


class PipelineParameters(_Request):
    """What else a request may say."""

    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="from logits to scores; by default as the model was built for"
    )
    top_k: int | None = Field(None, ge=1, description="only this many labels; by default all")
    truncation: bool | None = Field(None, description="cut texts that are too long for the model, as by default")
    truncation_side: Side | None = Field(None, description="where to cut; by default as the model was built for")


_Input = Annotated[str | TextPair, Field(union_mode="left_to_right")]


class PipelineRequest(_Request):
    """Texts to classify."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": "a warm, funny and moving film"},
                {"inputs": ["dull", "great fun"], "parameters": {"top_k": 1, "function_to_apply": "softmax"}},
                {"inputs": {"text": "A man sleeps.", "text_pair": "A man is awake."}},
            ]
        },
    )

    inputs: Annotated[_Input | Elements[_Input], Field(union_mode="left_to_right")]
    parameters: PipelineParameters | None = None


_DEFAULTS = PipelineParameters()


async def pipeline(call: Call) -> Reply:
    """Answer one request."""
    request = parse_body(PipelineRequest, await call.body(), _HINTS)
    parameters = request.parameters or _DEFAULTS
    route = call.service.registry.route(call.parameters[0])
    contract = route.model.manifest.scores
    function = _FUNCTIONS.get(parameters.function_to_apply or "", contract.function)
    given = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    check_count(len(given), call.service.settings, "inputs")
    texts = [TextItem(one) if isinstance(one, str) else TextItem(one.text, one.text_pair) for one in given]
    answered = await call.ask(
        route,
        texts,
        truncate=parameters.truncation is not False,
        side=parameters.truncation_side,
        raw_scores=function != contract.function,
    )
    rows = [answer.scores for answer in answered.answers]
    if function != contract.function:
        # Not validated: a function that doesn't fit the problem is the caller's choice.
        chosen = contract.model_copy(update={"function": function})
        rows = to_scores(np.asarray(rows, np.float32), chosen).tolist()
    document = [ranked(scores, contract.labels, parameters.top_k) for scores in rows]
    return Reply(200, orjson.dumps(document), timing_headers(answered))


ENDPOINTS = (Endpoint(HUGGING_FACE, "POST", "/models/{model}", pipeline, "infer", work=True),)
