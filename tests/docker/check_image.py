"""What is in the server's image, and what is not."""

from __future__ import annotations

import json
from typing import Any

from tests.docker.commands import run
from tests.docker.deployment import DOCKERFILE, Images
from tests.docker.stand_ins import base_image

MOST_MEGABYTES = 400  # over its base


def inspected(image: str) -> dict[str, Any]:
    """What the engine knows about an image."""
    (known,) = json.loads(run("docker", "image", "inspect", image))
    result: dict[str, Any] = known
    return result


def in_server(images: Images, *command: str, user: int = 10001) -> str:
    """Run a command in a fresh container of the server's image."""
    entry, *arguments = command
    options = ("--rm", "--network", "none", "--user", str(user), "--entrypoint", entry)
    return run("docker", "run", *options, images.server, *arguments)


def test_it_is_small(images: Images, figures: list[str]) -> None:
    size, base = (inspected(name)["Size"] / 1e6 for name in (images.server, base_image(DOCKERFILE.read_text())))
    figures.append(f"server image: {size - base:.0f} MB over a base of {base:.0f} MB, built in {images.seconds:.0f} s")
    assert size - base <= MOST_MEGABYTES


def test_only_what_was_asked_for_is_built(images: Images) -> None:
    assert "server-dependencies" in images.output
    assert "server-gpu" not in images.output
    assert "builder" not in images.output


def test_it_is_described_and_started_as_a_program_and_not_through_a_shell(images: Images) -> None:
    config = inspected(images.server)["Config"]
    assert (config["Entrypoint"], config["Cmd"], config["User"]) == (["successor"], ["serve"], "10001:10001")
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert config["Labels"]["org.opencontainers.image.title"] == "Successor"


def test_it_holds_no_torch_no_compiler_no_pip_of_its_own_and_no_cache(images: Images) -> None:
    listing = (
        "from importlib.metadata import distributions as all; print(*[one.name for one in all(path=sys.path[-1:])])"
    )
    packages = in_server(images, "python", "-c", f"import sys; {listing}").lower().split()
    assert "successor" in packages
    assert "onnxruntime" in packages
    assert not {"torch", "transformers", "optimum", "pip", "onnxruntime-gpu", "pytest"} & set(packages)
    tools = "for tool in cc gcc g++ make ld; do command -v $tool; done"
    left = "find /mnt /requirements /root/.cache /source /tmp /wheels -mindepth 1 2>/dev/null"
    assert in_server(images, "sh", "-c", f"{tools}; {left}; true", user=0) == ""


def test_nothing_that_its_user_could_change_is_run(images: Images) -> None:
    assert in_server(images, "sh", "-c", "id -u; find /opt/venv -writable -not -type l").split() == ["10001"]


def test_the_runtime_reports_to_nobody(images: Images) -> None:
    assert "ORT_DISABLE_TELEMETRY=1" in inspected(images.server)["Config"]["Env"]
    written = in_server(
        images, "sh", "-c", "python -c 'import onnxruntime' && find /var/lib/successor /tmp -mindepth 1"
    )
    assert written == ""
