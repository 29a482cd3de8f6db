"""Schemathesis loads this: what it may not take for a fault."""

from __future__ import annotations

from typing import Any

import schemathesis

_UNKNOWN = "x-schemathesis-unknown-property"
_DEADLINES = ("request-timeout-ms", "request-deadline-ms")


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:  # noqa: ANN401 - its own types and names
    """Leave out what can't be told from a fault by its status, and is tested by itself.

    That is a header that nobody knows, which HTTP has servers pass over; letting go of the default model, which all
    later requests would miss; and what asks for a 5xx: a deadline of its own, which may be over before the answer, and
    features for which the Open Inference Protocol has 501.
    """
    headers = {name.lower() for name in case.headers or {}}
    unload = case.operation.path.endswith("/unload") and str(case.path_parameters.get("model", "")).startswith("tiny")
    return not (unload or _UNKNOWN in headers or headers.intersection(_DEADLINES) or _asks_for_5xx(case.body))


def _asks_for_5xx(body: Any) -> bool:  # noqa: ANN401 - any JSON
    if not isinstance(body, dict):
        return False
    tensors = [one for name in ("inputs", "outputs") if isinstance(body.get(name), list) for one in body[name]]
    parameters = [owner.get("parameters") for owner in (body, *tensors) if isinstance(owner, dict)]
    named = {name for one in parameters if isinstance(one, dict) for name, value in one.items() if value}
    return bool(named & {"timeout", "sequence_id", "shared_memory_region"})
