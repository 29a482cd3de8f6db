"""Foreign programs: run, or fail with what they said."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class CommandError(AssertionError):
    """A program failed; the message has its command line and the end of its output."""


def run(
    *command: str | Path, folder: Path | None = None, variables: Mapping[str, str] | None = None, timeout: float = 600
) -> str:
    """Run a program and return its stdout and stderr, as they were mixed.

    Raises:
        CommandError: it is not there, its exit code is not 0, or it took longer than `timeout` seconds.
    """
    line = " ".join(map(str, command))
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=folder,
            env={**os.environ, **(variables or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"{line}: {error}") from error
    if done.returncode != 0:
        raise CommandError(f"{line} ended with {done.returncode}:\n{done.stdout[-4_000:]}")
    return done.stdout
