"""Schemathesis loads this: what it may not take for a fault."""

from __future__ import annotations

from typing import Any

import schemathesis

_UNKNOWN = "x-schemathesis-unknown-property"


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:  # noqa: ANN401 - its own types and names
    """Leave out requests whose only fault is a header that nobody knows: HTTP has servers pass over those."""
    return _UNKNOWN not in (case.headers or {})
