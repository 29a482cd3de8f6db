"""One frozen `Settings`: environment variables with the prefix `SUCCESSOR_`, units in the names."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model_store.errors import SuccessorError
from model_store.machine import usable_cores
from model_store.manifest import DEFAULT_STORE

PREFIX = "SUCCESSOR_"
# Variables of the same prefix that belong to other parts of the project.
FOREIGN_VARIABLES = frozenset({"SUCCESSOR_API_KEY", "SUCCESSOR_CACHE_DIR", "SUCCESSOR_OWN_DOCKER"})
# What Kubernetes tells each container of Services, here of one whose name begins with "successor".
_SERVICE_LINK = re.compile(r"SUCCESSOR_(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT_\d+_\w+=|PORT=\w+://)")


class InvalidSettingsError(SuccessorError):
    """A setting is unknown or has a value that it can't have."""


class Settings(BaseSettings):
    """Everything about a server that can be chosen; `SUCCESSOR_PORT=9000` sets `port`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    store_dir: Path = Field(DEFAULT_STORE, description="the model store; may be mounted read-only")
    state_dir: Path | None = Field(
        None, description="a writable folder for what outlives a process; None: nothing does"
    )
    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="the port to listen on; 0 takes a free one")
    grpc_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="the port of the Open Inference Protocol over gRPC (extra `grpc`); 0 takes a free one; None: none",
    )
    processes: int = Field(1, ge=1, le=64, description="server processes that share the port")
    provider: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run; auto: CUDA if it is there")
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="workers of one process; None: the cores that may be used, divided by processes; 2 on a GPU",
    )

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="references to load, as JSON or with commas; empty: every name's default and aliased versions"
    )
    default_model: str | None = Field(None, description="the model of a request that names none")
    store_poll_ms: int = Field(1_000, ge=0, description="how often to look for new versions and aliases; 0: never")
    worker_niceness: int = Field(
        0,
        ge=0,
        le=19,
        description="lowers the workers' priority, so that requests are read and answered sooner (Linux);"
        " 10 in the image: outside a container it lets any neighbour go first",
    )
    lone_max_bytes: int = Field(
        128 * 2**20,
        ge=0,
        description="model files up to this size get a second session, all cores for a lone request, and in idle time"
        " a version's other files up to this size are measured",
    )

    api_keys_file: Path | None = Field(
        None, description="the file of API keys; None: anybody may infer, and administration is off"
    )
    operations_port: int | None = Field(
        None, ge=0, le=65535, description="a port of their own for metrics and administration; None: the same port"
    )
    operations_host: str | None = Field(None, description="the address of that port; None: that of host")
    tls_cert_file: Path | None = Field(None, description="the certificate and its chain, in PEM; None: no TLS")
    tls_key_file: Path | None = Field(None, description="the certificate's private key, in PEM")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="origins whose pages may call, as JSON or with commas, or *; empty: none"
    )

    max_connections: int = Field(
        4_096, ge=1, description="open connections of one process; one more is answered with 503 and closed"
    )
    max_header_bytes: int = Field(32 * 2**10, ge=1_024, description="bytes of a request's line and header")
    max_body_bytes: int = Field(4 * 2**20, ge=1_024, description="bytes of a request's body")
    max_arriving_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="bytes of all bodies that are arriving in one process, and as many again over gRPC",
    )
    max_text_chars: int = Field(20_000, ge=1, description="characters of one text, before it is tokenised")
    max_texts_per_request: int = Field(256, ge=1, description="texts in one request")
    max_batch_texts: int | None = Field(
        None, ge=1, le=1_024, description="texts that the engine runs together; None: 16 on a CPU, 256 on a GPU"
    )

    max_wait_ms: int = Field(2_000, ge=1, description="a request that would wait longer in the queue is refused")
    request_timeout_ms: int = Field(30_000, ge=1, description="the deadline of a request that states none")
    receive_timeout_ms: int = Field(
        30_000, ge=10, description="a request whose header and body take longer to arrive is refused"
    )
    keep_alive_ms: int = Field(
        65_000, ge=10, description="a connection on which nothing has been asked for this long is closed"
    )
    stuck_call_ms: int = Field(30_000, ge=10, description="a call into engine or tokeniser that is longer is given up")
    drain_ms: int = Field(10_000, ge=0, description="after SIGTERM, the most time for requests in flight")

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least level that is logged"
    )
    log_requests: bool = Field(
        default=False, description="one log line for every request, not only for the server's failures"
    )

    @field_validator("port", mode="before")
    @classmethod
    def _no_service_link(cls, value: object) -> object:
        if isinstance(value, str) and value.startswith("tcp://"):
            raise ValueError(
                "Kubernetes has set it for a Service with the name successor: set enableServiceLinks: false in the pod"
            )
        return value

    @field_validator("models", "cors_origins", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return json.loads(value)
        return [entry.strip() for entry in value.split(",") if entry.strip()]

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS needs both SUCCESSOR_TLS_CERT_FILE and SUCCESSOR_TLS_KEY_FILE")
        return self

    @model_validator(mode="after")
    def _ports_that_tell(self) -> Self:
        if self.operations_port is not None and self.operations_port == self.port != 0:
            raise ValueError("SUCCESSOR_OPERATIONS_PORT must be another than SUCCESSOR_PORT, on another host too")
        if self.grpc_port == 0 and self.processes > 1:
            raise ValueError("SUCCESSOR_GRPC_PORT must be a number where there are several processes: all listen on it")
        return self

    @model_validator(mode="after")
    def _room_for_one(self) -> Self:
        if self.max_arriving_bytes < self.max_body_bytes:
            raise ValueError("SUCCESSOR_MAX_ARRIVING_BYTES must have room for one body: SUCCESSOR_MAX_BODY_BYTES")
        return self

    @model_validator(mode="after")
    def _no_unknown_variables(self) -> Self:
        known = {(PREFIX + field).upper() for field in type(self).model_fields} | FOREIGN_VARIABLES
        strangers = sorted(
            name
            for name, value in os.environ.items()
            if name.upper().startswith(PREFIX)
            and name.upper() not in known
            and not _SERVICE_LINK.match(f"{name}={value}")
        )
        if strangers:
            raise ValueError(
                f"unknown environment variables: {', '.join(_with_hint(name, known) for name in strangers)}"
            )
        return self

    def workers(self, *, on_cpu: bool) -> int:
        """Worker threads of one process: one for each core; on a GPU, one runs while the other prepares."""
        return self.threads or (max(1, math.floor(usable_cores()) // self.processes) if on_cpu else 2)

    def batch_texts(self, *, on_cpu: bool) -> int:
        """The most texts in one call."""
        return self.max_batch_texts or (16 if on_cpu else 256)


def load_settings(**chosen: object) -> Settings:
    """Settings from the environment, overridden by `chosen`.

    Raises:
        InvalidSettingsError: one line that names the setting and what is wrong.
    """
    try:
        return Settings(**chosen)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise InvalidSettingsError(
                f"unknown setting {_with_hint(repr(first['loc'][0]), map(repr, Settings.model_fields))}"
            ) from error
        field = "_".join(str(part) for part in first["loc"])
        where = f"{PREFIX}{field.upper()}: " if field else ""
        raise InvalidSettingsError(where + first["msg"].removeprefix("Value error, ")) from error


def _with_hint(name: str, known: Iterable[str]) -> str:
    """An unknown name, with the known one that it looks like."""
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"{name}: did you mean {nearest[0]}?" if nearest else name
