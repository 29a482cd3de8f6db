"""A wheel in an environment of its own, far from the checkout: what a user of the package has."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from model_store.store import ModelStore

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CHECKED_OUT = ("pyproject.toml", "README.md", "LICENSE", "model_store", "service")


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it, and a folder elsewhere to work in."""

    wheel: Path
    programs: Path
    folder: Path

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment without anything that leads back to the checkout."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("SUCCESSOR_", "PYTHON", "COV"))
        }
        return kept | {"SUCCESSOR_CACHE_DIR": str(self.folder / "cache"), **variables}

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


def build_wheel(folder: Path) -> Path:
    """Build from a copy of the checkout, so that nothing generated comes along or stays behind."""
    source = folder / "source"
    source.mkdir()
    for name in CHECKED_OUT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    arguments = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)]
    if importlib.util.find_spec("setuptools") and int(importlib.metadata.version("setuptools").split(".")[0]) >= 77:
        arguments.append("--no-isolation")  # faster, and needs no network
    subprocess.run(arguments, check=True, capture_output=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in a new environment, which sees this one's third-party packages but not the checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    wheel = build_wheel(folder)
    home = folder / "venv"
    venv.create(home, symlinks=True)
    programs = home / "bin"
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python")]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    (site_packages,) = home.glob("lib/python*/site-packages")
    # a path file adds the folder as it stands: the path files inside it, which lead to the checkout, are not followed
    (site_packages / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "elsewhere").mkdir()
    return Installation(wheel, programs, folder / "elsewhere")


def test_the_wheel_holds_both_packages_the_recipes_and_the_type_markers(installation: Installation) -> None:
    with zipfile.ZipFile(installation.wheel) as wheel:
        names = set(wheel.namelist())
    assert {"service/cli.py", "service/py.typed", "model_store/py.typed", "model_store/recipes/sentiment.yaml"} <= names
    checked_out = {
        str(path.relative_to(ROOT))
        for package in ("service", "model_store")
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".binpb", ".proto", ".py", ".yaml"}
    }
    assert {name for name in names if ".dist-info/" not in name and not name.endswith("py.typed")} == checked_out


def test_the_installed_package_is_not_the_checkout(installation: Installation) -> None:
    done = installation.run(
        "python", "-c", "import service, model_store; print(service.__file__, model_store.__file__)"
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout
    assert done.stdout.count(str(installation.programs.parent)) == 2


def test_a_shipped_recipe_is_found_and_checked_anywhere(installation: Installation) -> None:
    done = installation.run("successor", "build", "sentiment", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "theseus" in done.stdout


def test_a_shipped_study_is_found_anywhere_and_leaves_its_records_outside_the_installation(
    installation: Installation,
) -> None:
    done = installation.run("successor", "study", "theseus-12-to-6", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("finished; the records are in artifacts/studies/theseus-12-to-6")


def test_a_build_where_torch_is_missing_names_the_extra(installation: Installation) -> None:
    (installation.folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'optimum', 'sklearn'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    done = subprocess.run(
        [installation.programs / "successor", "build", "sentiment"],
        cwd=installation.folder,
        env=installation.environment(PYTHONPATH=str(installation.folder)),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "pip install '.[build]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def server(installation: Installation, tiny_store: ModelStore) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`successor serve` of the installed package on a free port; killed if the test did not stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [installation.programs / "successor", "serve", "--store", tiny_store.root, "--port", str(port)],
        cwd=installation.folder,
        env=installation.environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    pytest.fail(f"the server did not become ready; exit code {process.poll()}")


def test_the_installed_server_answers_and_stops_when_told(server: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = server
    wait_until_ready(process, url)
    answer = httpx.post(f"{url}/v1/classify", json={"model": "tiny", "input": "a good film"}, timeout=30)
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["data"]
    assert row["label"] in {"negative", "positive"}
    assert sum(row["probs"]) == pytest.approx(1, abs=1e-5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
