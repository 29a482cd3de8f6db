"""The servers of a comparison: started here, one process for each model, or already running; and what they serve."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_store.manifest import Problem
from model_store.store import DEFAULT_ALIAS
from service.comparison.errors import LoadError, ServerStartError

_POLL_SECONDS = 0.05
_LOG_LINES = 4
# Settings of the user's own server that say how models run. All else is that server's business: one that is started
# here listens on this machine alone, lets us in, refuses nothing, and neither reads nor writes that server's state.
_KEPT = frozenset(
    f"SUCCESSOR_{name}"
    for name in ("PROVIDER", "THREADS", "MAX_BATCH_TEXTS", "WORKER_NICENESS", "LONE_MAX_BYTES", "MAX_TEXT_CHARS")
)
# A server is quiet when it takes less than this share of a core, so many looks in a row.
_QUIET_SHARE, _LOOKS, _LOOK_SECONDS = 0.05, 3, 0.5


@dataclass(frozen=True, slots=True)
class Waits:
    """How long a server may take until `ready_path` answers 200, and to end after SIGTERM."""

    ready_seconds: float = 120.0
    stop_seconds: float = 20.0
    ready_path: str = "/health/ready"


WAITS = Waits()


class ServedModel(BaseModel):
    """What `GET /v1/models` says of one version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    name: str
    version: int
    aliases: tuple[str, ...] = ()
    file: str
    precision: str
    bytes: int = Field(gt=0)
    labels: tuple[str, ...]
    problem: Problem
    pair: bool
    provider: str
    threads: int


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs, and its process where it was started here."""

    url: str
    process: psutil.Popen | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """What every request carries."""

    def resident_bytes(self) -> int | None:
        """Bytes of memory that the process and its children have resident; None where the process is not known."""
        with suppress(psutil.NoSuchProcess):  # one ends just now
            return sum(process.memory_info().rss for process in self._processes()) or None
        return None

    def settle(self, most_seconds: float) -> None:
        """Wait until the process does nothing any more: after its start it measures what its calls cost.

        Args:
            most_seconds: after which it is taken as it is.
        """
        give_up, quiet, used = time.monotonic() + most_seconds, 0, self._used_seconds()
        while quiet < _LOOKS and time.monotonic() < give_up:
            time.sleep(_LOOK_SECONDS)
            before, used = used, self._used_seconds()
            quiet = quiet + 1 if used - before < _QUIET_SHARE * _LOOK_SECONDS else 0

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):  # it has ended
            return [] if self.process is None else [self.process, *self.process.children(recursive=True)]
        return []

    def _used_seconds(self) -> float:
        used = 0.0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used += times.user + times.system
        return used

    def models(self) -> list[ServedModel]:
        """What the server serves.

        Raises:
            LoadError: not reachable, or not the answer of such a server.
        """
        import httpx

        try:
            # As the load: to the server itself, whatever proxy there is, and with the system's certificates.
            trust = ssl.create_default_context()
            with httpx.Client(trust_env=False, verify=trust, timeout=10, headers=dict(self.headers)) as client:
                response = client.get(f"{self.url}/v1/models")
            if response.status_code in {401, 403}:
                raise LoadError(f"{self.url} does not let us in ({response.status_code}): see --api-key")
            response.raise_for_status()
            return [ServedModel.model_validate(entry) for entry in response.json()["data"]]
        except httpx.HTTPError as error:
            raise LoadError(f"{self.url}/v1/models can't be read ({error}): is the server running?") from error
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            raise LoadError(f"{self.url} is not a Successor server: its /v1/models has another form") from error


def resolve_served(models: Sequence[ServedModel], reference: str) -> ServedModel:
    """The loaded version that `name`, `name@3` or `name@alias` means, as the server itself would read it.

    Raises:
        LoadError: it isn't loaded; the message lists what is.
    """
    name, at, selector = reference.partition("@")
    versions = sorted((model for model in models if model.name == name), key=lambda model: model.version)
    wanted = selector if at else DEFAULT_ALIAS
    for model in versions:
        if wanted in model.aliases or wanted == str(model.version):
            return model
    if versions and not at:
        return versions[-1]
    loaded = ", ".join(sorted(model.id for model in models)) or "nothing"
    raise LoadError(f"the server has no model {reference!r} loaded: it has {loaded}; name it in SUCCESSOR_MODELS")


@contextmanager
def serving(models: Sequence[str], store: Path, log: Path, **settings: str) -> Iterator[Server]:
    """Run `successor serve` for the models on a free port of this machine; it has ended when this returns.

    Args:
        models: references.
        store: the model store's folder.
        log: gets what the server prints.
        settings: further settings of the server, in lower case: `threads="1"`.

    Raises:
        ServerStartError: it did not become ready; the message ends with its last log lines.
    """
    import orjson

    port = free_port()
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith("SUCCESSOR_") or name.upper() in _KEPT
        },
        "SUCCESSOR_MODELS": orjson.dumps(list(models)).decode(),
        **{f"SUCCESSOR_{name.upper()}": value for name, value in settings.items()},
    }
    # -P: whatever the working folder has under the name `service` is not the server.
    command = [sys.executable, "-P", "-m", "service.cli", "serve", "--store", str(store)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with running(command, environment, f"http://127.0.0.1:{port}", log) as server:
        yield server


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], url: str, log: Path, waits: Waits = WAITS
) -> Iterator[Server]:
    """Run a server's command until the block ends; `GET` of `waits.ready_path` must answer 200 before it begins.

    Raises:
        ServerStartError: it ended, or was not ready in time.
    """
    with (
        exit_on_sigterm(),
        log.open("wb") as output,
        psutil.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as process,
    ):
        try:
            _wait_until_ready(process, url + waits.ready_path, log, waits.ready_seconds)
            yield Server(url, process)
        finally:
            _stop(process, waits.stop_seconds)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: psutil.Popen, url: str, log: Path, seconds: float) -> None:
    import httpx

    deadline = time.monotonic() + seconds
    with httpx.Client(timeout=2, trust_env=False) as client:  # it is on this machine: no proxy leads there
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerStartError(f"the server ended with exit code {process.returncode}: {_last_lines(log)}")
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(_POLL_SECONDS)
    raise ServerStartError(f"the server was not ready within {seconds:g} s: {_last_lines(log)}")


def _stop(process: psutil.Popen, seconds: float) -> None:
    with suppress(psutil.NoSuchProcess):  # it has ended by itself
        process.terminate()
    try:
        process.wait(seconds)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-_LOG_LINES:]) or "it printed nothing"


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that who is ended also ends what it has started.

    What is ignored, as SIGHUP under `nohup`, stays so.
    """

    def leave(signum: int, _: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    try:
        before = {
            number: signal.signal(number, leave)
            for number in (signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        }
    except ValueError:  # not in the main thread, where no handler can be set
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
