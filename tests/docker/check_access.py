"""The service with API keys, which it and Prometheus get as files."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from model_store.store import ModelStore
from service.access import KeyEntry, KeysFile, Permission, digest_of, new_key
from service.cli import main
from tests.docker.deployment import Deployment, Images, deployed

_PATIENCE_S = 60.0


def readable(file: Path, content: str) -> str:
    """A file that the containers' users can read."""
    file.write_text(content)
    file.chmod(0o644)
    return str(file)


def health_of_target(deployment: Deployment) -> str:
    """What Prometheus says of the service, once it has tried to scrape it."""
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        answer = httpx.get(f"{deployment.url('prometheus', 9090)}/api/v1/targets")
        targets = answer.json()["data"]["activeTargets"]
        if targets and targets[0]["health"] != "unknown":
            return str(targets[0]["health"])
        assert time.monotonic() < give_up, targets
        time.sleep(0.2)


def test_callers_without_a_key_stay_out_and_prometheus_scrapes_with_its_own(
    images: Images, full_store: ModelStore, tmp_path: Path
) -> None:
    scopes: dict[str, Permission] = {"shop": "infer", "prometheus": "metrics"}
    keys = {name: new_key() for name in scopes}
    entries = tuple(
        KeyEntry(name=name, sha256=digest_of(key), scopes=(scopes[name],), requests_per_second=None)
        for name, key in keys.items()
    )
    keys_file = readable(tmp_path / "keys.json", KeysFile(anonymous=(), keys=entries).model_dump_json())
    metrics_key = readable(tmp_path / "metrics-key", keys["prometheus"])
    with deployed(
        images, full_store.root, "service", "prometheus", API_KEYS_FILE=keys_file, METRICS_KEY_FILE=metrics_key
    ) as deployment:
        deployment.await_ready(within=60)
        deployment.await_healthy("prometheus", within=60)
        url, body = f"{deployment.url('service', 8000)}/v1/classify", {"model": "tiny", "input": "a good film"}
        assert httpx.post(url, json=body).status_code == 401
        assert httpx.post(url, json=body, headers={"x-api-key": keys["prometheus"]}).status_code == 403
        assert httpx.post(url, json=body, headers={"x-api-key": keys["shop"]}).status_code == 200
        assert httpx.get(f"{deployment.url('service', 8000)}/metrics").status_code == 401
        assert health_of_target(deployment) == "up"
        with pytest.raises(SystemExit) as exited:
            main(["keys", "revoke", "shop", "--file", keys_file], plugins=[])
        assert not exited.value.code
        give_up = time.monotonic() + _PATIENCE_S
        while httpx.post(url, json=body, headers={"x-api-key": keys["shop"]}).status_code != 401:
            assert time.monotonic() < give_up, "the container does not see that the key was revoked"
            time.sleep(0.2)
