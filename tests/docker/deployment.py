"""The images, and a compose project made of them."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from service.processes import _END_MARGIN_S
from service.server import _FAREWELL_S
from tests.docker.commands import run
from tests.docker.engine import Engine

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
REPOSITORY = "successor"

_LOOK_S = 0.02


@dataclass(frozen=True)
class Images:
    """The server's image, built from a Dockerfile as it is.

    Args:
        tag: of this run alone.
        seconds: what the build took.
        output: what it printed.
    """

    tag: str
    seconds: float
    output: str

    @property
    def server(self) -> str:
        """The name that the compose file gives it."""
        return f"{REPOSITORY}:{self.tag}"


@contextlib.contextmanager
def built(engine: Engine, dockerfile: Path = DOCKERFILE) -> Iterator[Images]:
    """Build the default image inside the block, and remove it after it."""
    tag = f"check-{uuid.uuid4().hex[:8]}"
    started = time.monotonic()
    build: tuple[str | Path, ...] = (
        "docker",
        "build",
        "--progress",
        "plain",
        *engine.build_options,
        "--file",
        dockerfile,
    )
    output = run(*build, "--tag", f"{REPOSITORY}:{tag}", ROOT, timeout=1_200)
    try:
        yield Images(tag, time.monotonic() - started, output)
    finally:
        run("docker", "image", "rm", "--force", f"{REPOSITORY}:{tag}")


@dataclass(frozen=True)
class Deployment:
    """A compose project that runs, or ran."""

    project: str
    variables: Mapping[str, str]
    files: tuple[Path, ...] = (COMPOSE_FILE,)

    def compose(self, *arguments: str, timeout: float = 120) -> str:
        """Run `docker compose` on the project."""
        files = [part for file in self.files for part in ("--file", str(file))]
        command: tuple[str | Path, ...] = (
            "docker",
            "compose",
            "--project-name",
            self.project,
            "--project-directory",
            ROOT,
            *files,
        )
        return run(*command, *arguments, variables=self.variables, timeout=timeout)

    def inspect(self, service: str) -> dict[str, Any]:
        """All that the engine knows about a service's container, running or not."""
        labels = (f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}")
        filters = [part for label in labels for part in ("--filter", f"label={label}")]
        (container,) = run("docker", "ps", "--all", "--quiet", *filters).split()
        (known,) = json.loads(run("docker", "inspect", container))
        result: dict[str, Any] = known
        return result

    def container(self, service: str) -> str:
        """The id of a service's container."""
        return str(self.inspect(service)["Id"])

    def url(self, service: str, port: int) -> str:
        """Where a service's port is published."""
        (published,) = self.inspect(service)["NetworkSettings"]["Ports"][f"{port}/tcp"]
        return f"http://{published['HostIp']}:{published['HostPort']}"

    def logs(self, service: str) -> str:
        """What a service has printed."""
        return run("docker", "logs", self.container(service))

    def execute(self, service: str, *command: str) -> str:
        """Run a command in a service's container, as its user."""
        return run("docker", "exec", self.container(service), *command)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of the service's readiness, through the published port."""
        answer = httpx.get(f"{self.url('service', 8000)}/health/ready")
        body: dict[str, Any] = answer.json()
        return answer.status_code, body

    def await_ready(self, within: float) -> None:
        """Wait until the published port says that the service is ready.

        Raises:
            AssertionError: it doesn't, `within` seconds.
        """

        def ready() -> bool:
            if not self.inspect("service")["NetworkSettings"]["Ports"]:
                return False  # between a death and the next start
            with contextlib.suppress(httpx.TransportError):
                return self.health()[0] == 200
            return False

        self._wait(ready, within, "ready")

    def await_healthy(self, service: str, within: float) -> None:
        """Wait until the container's own health check passes.

        Raises:
            AssertionError: it doesn't, `within` seconds; with what it printed.
        """
        container = self.container(service)

        def healthy() -> bool:
            return run("docker", "inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"

        try:
            self._wait(healthy, within, "healthy")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.inspect(service)['State']['Health']}") from error

    def _wait(self, true: Callable[[], bool], within: float, what: str) -> None:
        give_up = time.monotonic() + within
        while not true():
            if time.monotonic() > give_up:
                raise AssertionError(f"not {what} within {within} s:\n{self.logs('service')[-4_000:]}")
            time.sleep(_LOOK_S)


@contextlib.contextmanager
def deployed(images: Images, store: Path, *services: str, **settings: str) -> Iterator[Deployment]:
    """The compose file's services inside the block, on free ports; all of it is gone after it.

    Args:
        images: what to run.
        store: the folder that is mounted.
        services: which of them; all, if none is named.
        settings: further variables of the compose file.
    """
    variables = {
        "IMAGE_TAG": images.tag,
        "SUCCESSOR_STORE_DIR": str(store),
        "SERVICE_BIND": "127.0.0.1:",
        "PROMETHEUS_BIND": "127.0.0.1:",
        **settings,
    }
    deployment = Deployment(f"check-{uuid.uuid4().hex[:8]}", variables)
    try:
        deployment.compose("up", "--detach", "--no-build", "--pull", "missing", *services)
        yield deployment
    finally:
        deployment.compose("down", "--volumes", "--timeout", "30")


def compose_file(path: Path = COMPOSE_FILE) -> dict[str, Any]:
    """A compose file as it is written, variables and all."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def drain_bound_s(milliseconds: str) -> float:
    """The most that a server of several processes takes to end."""
    return _FAREWELL_S + int(milliseconds) / 1e3 + _END_MARGIN_S
