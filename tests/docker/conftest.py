"""One engine, one build and one running deployment for all checks; each is ended by whoever began it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.benchmarks.artificial import artificial_subject
from tests.docker.commands import run
from tests.docker.deployment import DOCKERFILE, Deployment, Images, built, compose_file, deployed
from tests.docker.engine import Engine, NoEngineError, docker_works, install, must_be_own, own_engine
from tests.docker.stand_ins import base_image, import_base, make_base_archive, make_prometheus
from tests.tiny import make_tiny_version

# The schema of the release that the compose file runs, and the compiler that checks against it.
GRAFANA_SCHEMA = "@grafana/schema@12.1.1"
TYPESCRIPT = "typescript@5.9.2"
_FIGURES = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """End as Ctrl-C does, with everything cleaned up, when told to by a signal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.stash[_FIGURES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured, or why it was not."""
    for figure in config.stash[_FIGURES]:
        terminalreporter.write_line(figure)


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> list[str]:
    """What is printed in the end: a line for each thing that was measured."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture(scope="session")
def engine(pytestconfig: pytest.Config) -> Iterator[Engine]:
    """The engine that answers, or one of our own with base images that are made here."""
    try:
        if not must_be_own(os.environ, docker_works):
            yield Engine(own=False)
            return
        install()
        # A short name: a socket's path has at most 107 characters.
        folder = Path(tempfile.mkdtemp(prefix="sd-", dir="/tmp"))
        try:
            with ThreadPoolExecutor(1) as pool:
                archive = pool.submit(make_base_archive, folder)
                with own_engine(folder) as engine:
                    base = base_image(DOCKERFILE.read_text())
                    import_base(archive.result(), base)
                    make_prometheus(folder, base, compose_file()["services"]["prometheus"]["image"])
                    yield engine
        finally:
            shutil.rmtree(folder)
    except NoEngineError as why:
        pytestconfig.stash[_FIGURES].append(f"what needs a container engine is skipped: {why}")
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def images(engine: Engine) -> Iterator[Images]:
    """The server's image."""
    with built(engine) as images:
        yield images


@pytest.fixture(scope="session")
def full_store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A store with a model of real size (6 layers, 23 M weights, int8) and a tiny one."""
    store = ModelStore(tmp_path_factory.mktemp("full") / "store")
    make_tiny_version(store, aliases=("production",))
    artificial_subject(store, 6, "dynamic", ["a good film", "a dull story that is not warm", "it is a great film"])
    return store


@pytest.fixture(scope="session")
def running(images: Images, full_store: ModelStore) -> Iterator[Deployment]:
    """The service and Prometheus, ready."""
    with deployed(images, full_store.root, "service", "prometheus") as deployment:
        deployment.await_ready(within=60)
        yield deployment


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Grafana's types and a compiler."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm, which brings Grafana's types")
    folder = tmp_path_factory.mktemp("modules")
    (folder / "package.json").write_text("{}")
    run("npm", "install", "--silent", "--no-audit", "--no-fund", GRAFANA_SCHEMA, TYPESCRIPT, folder=folder)
    return folder
