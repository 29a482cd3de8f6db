"""What may import what: the contracts, and a server that runs where no torch can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKED = (
    "torch",
    "transformers",
    "optimum",
    "datasets",
    "accelerate",
    "sklearn",
    "scipy",
    "onnx",
    "model_store.builder",
)

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    program = BLOCKER.format(blocked=BLOCKED) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["service.app", "service.server", "service.cli", "model_store.classifier"])
def test_the_server_needs_neither_torch_nor_the_builder(module: str) -> None:
    done = run(f"import {module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", BLOCKED)
def test_the_blocker_blocks(module: str) -> None:
    done = run(f"import {module}")
    assert done.returncode == 1
    assert "is blocked" in done.stderr


@pytest.mark.slow
def test_the_import_contracts_hold() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout
