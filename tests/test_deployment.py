"""Images and compose files: what can be said of them without a container engine."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from service.settings import PREFIX, Settings
from tests.docker.deployment import COMPOSE_FILE, DOCKERFILE, ROOT, compose_file, drain_bound_s
from tests.docker.engine import NoEngineError, must_be_own
from tests.docker.stand_ins import base_image

SERVICE = compose_file()["services"]["service"]
FILES = (
    DOCKERFILE,
    COMPOSE_FILE,
    ROOT / "docker-compose.gpu.yml",
    *sorted((ROOT / "docker/kubernetes").rglob("*.yaml")),
)


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_needs_nothing_that_is_fetched_to_read_it() -> None:
    assert not re.search(r"^#\s*syntax=", DOCKERFILE.read_text(), re.MULTILINE | re.IGNORECASE)


def test_every_foreign_image_has_the_tag_of_one_release() -> None:
    images = [service["image"] for service in compose_file()["services"].values() if "build" not in service]
    for image in (base_image(DOCKERFILE.read_text()), *images):
        assert re.search(r":v?\d+\.\d+\.\d+(-|$)", image), image


def test_images_and_manifests_name_the_version_that_the_project_has() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"ARG VERSION={version}\n" in DOCKERFILE.read_text()
    for path in (ROOT / "docker/kubernetes").rglob("*.yaml"):
        for named in re.findall(r"image: (\S+)", path.read_text()):
            assert named == f"successor:{version}"


def test_all_that_is_copied_into_an_image_is_there_and_not_ignored() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == set(kept)
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_of_ours_is_a_setting(path: Path) -> None:
    settings = {(PREFIX + field).upper() for field in Settings.model_fields} | {"SUCCESSOR_CACHE_DIR"}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", path.read_text())) <= settings


def test_every_variable_of_the_compose_file_is_documented() -> None:
    readme = (ROOT / "README.md").read_text()
    variables = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
    assert len(variables) > 5
    assert [name for name in sorted(variables) if f"`{name}`" not in readme] == []


def test_no_secret_comes_from_the_environment() -> None:
    for name, service in compose_file()["services"].items():
        for variable in service.get("environment", {}):
            secret = re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable)
            assert variable.endswith("_FILE") or not secret, (name, variable)


@pytest.mark.parametrize("name", ["service", "prometheus", "grafana", "build"])
def test_every_container_is_confined(name: str) -> None:
    service = compose_file()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert name == "build" or service["restart"] == "unless-stopped"
    for volume in service["volumes"]:
        source = volume.partition(":")[0]
        if source.startswith("./"):
            assert (ROOT / source).exists()
            assert volume.endswith(":ro")
    assert all(re.match(r"\$\{\w+:-127\.0\.0\.1:", port) for port in service.get("ports", ()))


def test_the_service_reads_the_store_that_the_build_writes() -> None:
    (written,) = [volume for volume in compose_file()["services"]["build"]["volumes"] if "/store" in volume]
    assert f"{written}:ro" in SERVICE["volumes"]


def test_compose_waits_longer_for_the_end_than_the_service_takes() -> None:
    assert float(SERVICE["stop_grace_period"].removesuffix("s")) > drain_bound_s(
        SERVICE["environment"]["SUCCESSOR_DRAIN_MS"]
    )


def test_an_engine_that_answers_is_used() -> None:
    assert must_be_own({"SUCCESSOR_OWN_DOCKER": "1"}, lambda *_: True) is False


def test_an_engine_without_compose_is_no_use() -> None:
    with pytest.raises(NoEngineError, match="`docker compose` does not: install it"):
        must_be_own({}, lambda *arguments: arguments == ("version",))


def test_without_an_engine_and_without_permission_it_says_why_nothing_is_checked() -> None:
    with pytest.raises(NoEngineError, match="no container engine answers, and SUCCESSOR_OWN_DOCKER=1"):
        must_be_own({}, lambda *_: False)


def test_the_base_image_is_the_one_that_no_stage_makes() -> None:
    assert base_image("FROM python:3 AS base\nFROM base AS server\n") == "python:3"
    with pytest.raises(ValueError, match="unpack"):
        base_image("FROM python:3 AS base\nFROM debian:12 AS other\n")
