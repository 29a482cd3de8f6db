"""An environment for each peer: their pins contradict each other and the project's."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.peers.catalogue import Peer
from tests.benchmarks.peers.errors import PeerError
from tests.benchmarks.peers.processes import Family

_INSTALL_SECONDS = 1_200.0
_MARK = ".installed"


def environment(peer: Peer, folder: Path, *, seconds: float = _INSTALL_SECONDS) -> Path:
    """The interpreter of the peer's environment in `folder`, which is made unless it is there with these versions.

    Raises:
        PeerError: pip could not install it, or not within `seconds`.
    """
    home = folder.absolute() / peer.key
    python = home / "bin" / "python"
    wanted = hashlib.sha256(peer.constraints.read_bytes() + repr(peer.packages).encode()).hexdigest()
    mark = home / _MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(home)], seconds)
    install = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(peer.constraints)]
    _run([*install, *peer.packages], seconds)
    mark.write_text(wanted, encoding="utf-8")
    return python


def _run(command: Sequence[str], seconds: float) -> None:
    with Family() as family:
        try:
            done = subprocess.run(
                command,
                env=family.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerError(f"it could not be installed: {error}") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reasons = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["pip says nothing"]
        raise PeerError(f"it could not be installed: {reasons[-1].strip()}")
