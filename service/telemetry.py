"""Traces: W3C `traceparent` in and out, always; spans by OpenTelemetry, where it is installed and configured."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from service.tracing import Tracing
from model_store.extras import remedy

log = structlog.get_logger(__name__)

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1
_PROTOCOL = "http/protobuf"
EXPORTERS = ("otlp", "console")


def continued(traceparent: bytes) -> bytes | None:
    """The `traceparent` of an answer: the caller's trace, with a span of our own; None if the caller's is not valid.

    Source: W3C Trace Context, level 1, section 3.2; of a version that is not known yet, the known beginning counts.
    """
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None:
        return None
    version, trace, parent, flags, rest = match.groups()
    if version == b"ff" or (version == b"00" and rest is not None) or not trace.strip(b"0") or not parent.strip(b"0"):
        return None
    return b"00-%b-%b-%02x" % (trace, secrets.token_hex(8).encode(), int(flags, 16) & _SAMPLED)


def exporters_of(environment: Mapping[str, str]) -> list[str]:
    """The exporters that OpenTelemetry's standard variables ask for; none unless they name one, or where to send."""

    def value(name: str, default: str = "") -> str:
        return environment.get(name, "").strip() or default

    endpoint = value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or value("OTEL_EXPORTER_OTLP_ENDPOINT")
    named = value("OTEL_TRACES_EXPORTER", "otlp" if endpoint else "none")
    if value("OTEL_SDK_DISABLED").lower() == "true" or named == "none":
        return []
    names = [name.strip() for name in named.split(",")]
    protocol = value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or value("OTEL_EXPORTER_OTLP_PROTOCOL", _PROTOCOL)
    if unknown := sorted({*names} - {*EXPORTERS}):
        log.warning("no traces: OTEL_TRACES_EXPORTER", unknown=unknown, known=[*EXPORTERS, "none"])
        return []
    if "otlp" in names and protocol != _PROTOCOL:
        log.warning("no traces: OTEL_EXPORTER_OTLP_PROTOCOL", unknown=protocol, known=_PROTOCOL)
        return []
    return names


def open_tracing(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Spans, if the environment asks for them and the extra is installed; nothing of its SDK is imported otherwise."""
    exporters = exporters_of(environment)
    if not exporters:
        return None
    try:
        from service.tracing import Tracing, provider_for
    except ImportError:
        log.warning("no traces: OTEL_… is set, but OpenTelemetry is not there", remedy=remedy("otel"))
        return None
    return Tracing(provider_for(exporters))
