"""How fast the service is there, and how it goes and comes back."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.docker.commands import run
from tests.docker.deployment import Deployment, Images, deployed

READY_S = 5.0
_LOAD = Path(__file__).with_name("load.py")


@pytest.fixture(scope="module")
def alone(images: Images, full_store: ModelStore) -> Iterator[Deployment]:
    """The service without company."""
    with deployed(images, full_store.root, "service") as deployment:
        deployment.await_ready(within=60)
        yield deployment


@contextlib.contextmanager
def loaded(deployment: Deployment, images: Images, model: str) -> Iterator[str]:
    """A container beside the service that loads it, once answers flow."""
    name = f"load-{uuid.uuid4().hex[:8]}"
    network = ("--network", f"{deployment.project}_default")
    program = ("--volume", f"{_LOAD}:/load.py:ro", "--entrypoint", "python", images.server, "/load.py")
    run("docker", "run", "--detach", "--name", name, *network, *program, "service", "8000", model)
    try:
        give_up = time.monotonic() + 60
        while "loaded" not in (said := run("docker", "logs", name)):
            assert time.monotonic() < give_up, said
            time.sleep(0.05)
        yield name
    finally:
        run("docker", "rm", "--force", name)


def test_it_is_ready_within_five_seconds_of_its_start(alone: Deployment, figures: list[str]) -> None:
    alone.compose("stop", "service")
    started = time.monotonic()
    alone.compose("start", "service")
    alone.await_ready(within=30)
    seconds = time.monotonic() - started
    figures.append(f"ready {seconds:.1f} s after its start")
    assert seconds <= READY_S


def test_stopped_under_load_it_answers_all_that_it_accepted_and_exits_with_0(
    alone: Deployment, images: Images, full_store: ModelStore, figures: list[str]
) -> None:
    (model,) = [name for name in full_store.names() if name.startswith("random")]
    with loaded(alone, images, model) as load:
        started = time.monotonic()
        run("docker", "stop", "--time", "30", alone.container("service"))
        seconds = time.monotonic() - started
        assert run("docker", "wait", load).strip() == "0"
        result = json.loads(run("docker", "logs", load).splitlines()[-1])
    figures.append(f"stopped under load in {seconds:.1f} s: {result}")
    assert result["lost"] == []
    assert set(result["statuses"]) == {"200"}
    assert alone.inspect("service")["State"]["ExitCode"] == 0
    alone.compose("start", "service")
    alone.await_ready(within=30)


def test_killed_it_is_started_again_and_becomes_ready(alone: Deployment, figures: list[str]) -> None:
    before = alone.inspect("service")
    started = time.monotonic()
    with contextlib.suppress(AssertionError):  # the shell goes down with the container that it kills
        alone.execute("service", "sh", "-c", "kill -9 -1")
    while alone.inspect("service")["RestartCount"] == before["RestartCount"]:
        assert time.monotonic() < started + 30, alone.inspect("service")["State"]
        time.sleep(0.05)
    alone.await_ready(within=30)
    figures.append(f"ready again {time.monotonic() - started:.1f} s after it was killed")
    assert alone.inspect("service")["State"]["Pid"] != before["State"]["Pid"]
