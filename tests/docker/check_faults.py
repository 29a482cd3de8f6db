"""What the service says, and does, when its store is no good."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import httpx

from model_store.store import ModelStore
from tests.docker.deployment import Deployment, Images, deployed
from tests.tiny import MODEL_FILE, make_tiny_version


def await_live(deployment: Deployment, within: float = 30) -> None:
    give_up = time.monotonic() + within
    while True:
        try:
            assert httpx.get(f"{deployment.url('service', 8000)}/health/live").status_code == 200
        except httpx.TransportError:
            assert time.monotonic() < give_up, deployment.logs("service")
            time.sleep(0.1)
        else:
            return


def test_with_an_empty_store_it_is_live_and_not_ready_and_says_what_to_run(images: Images, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    with deployed(images, store, "service") as deployment:
        await_live(deployment)
        status, body = deployment.health()
        assert (status, body["status"]) == (503, "unavailable")
        for said in (body["detail"], deployment.logs("service")):
            assert "no model is loaded from /store" in said
            assert "successor build RECIPE" in said
        make_tiny_version(ModelStore(store), aliases=("production",))
        deployment.await_ready(within=10)


def test_a_corrupted_version_is_never_served_and_the_log_says_which_file_it_is(
    images: Images, full_store: ModelStore, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(full_store.root / "tiny", store / "tiny")
    model = store / "tiny" / "1" / MODEL_FILE
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.chmod(0o644)
    model.write_bytes(content)
    with deployed(images, store, "service") as deployment:
        await_live(deployment)
        status, body = deployment.health()
        assert (status, set(body["failures"])) == (503, {"tiny", "tiny@1", "tiny@production"})
        for said in (body["detail"], deployment.logs("service")):
            assert MODEL_FILE in said
            assert "no model is loaded from /store" in said
        assert deployment.inspect("service")["State"]["Running"] is True
