"""The environment in which foreign clients run: made once, kept in the cache folder, made anew when its pins change."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent / "clients"
_FILES = (CLIENTS / "requirements.txt", CLIENTS / "constraints.txt")
_CACHE = Path(__file__).parents[2] / "artifacts" / "cache"


def clients_python() -> Path:
    """The interpreter of the clients' environment, made if it isn't there; where pip can't, the test is skipped."""
    cache = Path(os.environ.get("SUCCESSOR_CACHE_DIR") or _CACHE) / "clients"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(sys.version.encode() + b"".join(file.read_bytes() for file in _FILES)).hexdigest()[:16]
    folder = cache / digest
    python = folder / "bin" / "python"
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run side by side
        if not (folder / ".installed").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, python)
            (folder / ".installed").touch()
            for other in cache.iterdir():
                if other.is_dir() and other != folder:
                    shutil.rmtree(other)
    return python


def _make(folder: Path, python: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    requirements, constraints = map(str, _FILES)
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--constraint",
        constraints,
        "--requirement",
        requirements,
    ]
    installed = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if installed.returncode != 0:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        last = (installed.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"pip can't install the foreign clients: {last}")
