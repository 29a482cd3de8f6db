"""The servers that are driven, started as processes of their own, and the requests that they take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.comparison.connection import Origin
from service.comparison.servers import Server, free_port, running, serving
from tests.benchmarks.subjects import Subject


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how a subject's texts are sent to it."""

    name: str
    server: Server
    path: str
    bodies: list[dict[str, Any]]

    def requests(self, headers: Mapping[str, str] | None = None) -> list[bytes]:
        """Prepared requests, one for each text."""
        origin = Origin.parse(self.server.url)
        return [origin.post(self.path, body, headers) for body in self.bodies]


@contextmanager
def service(subject: Subject, logs: Path, **settings: str) -> Iterator[Target]:
    """`successor serve` with one version."""
    with serving([str(subject.model)], subject.store.root, logs / "service.log", **settings) as server:
        yield service_target(server, str(subject.model), subject.texts)


def service_target(server: Server, reference: str, texts: list[str]) -> Target:
    """A running service as a target."""
    return Target("service", server, "/v1/classify", [{"model": reference, "input": text} for text in texts])


@contextmanager
def plain_endpoint(subject: Subject, threads: int, logs: Path) -> Iterator[Target]:
    """The plain FastAPI endpoint with one session."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.plain_endpoint", str(subject.store.root), str(subject.model)]
    command += [str(threads), str(port)]
    with running(command, os.environ, f"http://127.0.0.1:{port}", logs / f"plain-{threads}.log") as server:
        name = f"plain endpoint, {threads} intra-op"
        yield Target(name, server, "/classify", [{"text": text} for text in subject.texts])


@contextmanager
def least_endpoint(subject: Subject, logs: Path, threads: int | None = None) -> Iterator[Target]:
    """The least endpoint, for the requests that the service gets; with the model where `threads` are given."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.least_endpoint", str(port)]
    if threads is not None:
        command += ["--store", str(subject.store.root), "--model", str(subject.model), "--threads", str(threads)]
    with running(command, os.environ, f"http://127.0.0.1:{port}", logs / f"least-{threads or 0}.log") as server:
        yield replace(service_target(server, str(subject.model), subject.texts), name="least endpoint")


def server_seconds(target: Target) -> float:
    """What a server that was started here has used of the processor, the system's work for it included."""
    if target.server.process is None:
        raise ValueError(f"{target.name} was not started here")
    times = target.server.process.cpu_times()
    return float(times.user + times.system)
