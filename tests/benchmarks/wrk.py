"""`wrk` as the load generator: in C, it costs the server's machine least. Without it, the comparison's own."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.comparison import load
from service.comparison.connection import Origin
from service.comparison.errors import LoadError

_SCRIPT = Path(__file__).with_name("cycle.lua")


@dataclass(frozen=True, slots=True)
class Driven:
    """What a closed loop saw: answers a second, how many were not 200 or did not come, and the median latency."""

    answers_a_second: float
    failed: int
    p50_ms: float
    generator_ms: float
    """Processor time that each answer cost the generator, with what the system does for it."""


def generator() -> str:
    """What drives the throughput measurements here."""
    return "wrk" if shutil.which("wrk") else "this process (wrk is not installed)"


def drive(url: str, path: str, bodies: Sequence[object], connections: int, seconds: float) -> Driven:
    """Post the bodies (as JSON) again and again over keep-alive connections, for a time.

    Raises:
        LoadError: the server could not be reached.
    """
    if shutil.which("wrk") is None:
        return load.run(_drive(url, path, bodies, connections, seconds))
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps(body) + "\n" for body in bodies)
        file.flush()
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s"]
        command += ["--timeout", "30s", "--script", str(_SCRIPT), url + path, "--", file.name]
        before = processor_seconds(resource.RUSAGE_CHILDREN)
        result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        spent = processor_seconds(resource.RUSAGE_CHILDREN) - before
    if result.returncode != 0 or not result.stdout.strip():
        raise LoadError(f"wrk failed on {url}: {' '.join((result.stderr or result.stdout).split())}")
    seen = json.loads(result.stdout.strip().splitlines()[-1])
    good, failed = seen["requests"] - seen["bad"], seen["bad"] + seen["lost"]
    return Driven(good / seen["seconds"], failed, seen["p50_ms"], 1000 * spent / max(1, seen["requests"]))


async def _drive(url: str, path: str, bodies: Sequence[object], connections: int, seconds: float) -> Driven:
    origin = Origin.parse(url)
    requests = itertools.cycle([origin.post(path, body) for body in bodies])
    before = processor_seconds(resource.RUSAGE_SELF)
    async with load.Client(url, connections, strict=False) as client:
        replies = await client.closed_loop(requests, seconds=seconds)
    start = min(reply.sent for reply in replies)
    good = [reply for reply in replies if reply.status == 200 and reply.ended <= start + seconds]
    p50_ms = 1000 * float(np.median([reply.latency for reply in replies]))
    generator_ms = 1000 * (processor_seconds(resource.RUSAGE_SELF) - before) / len(replies)
    return Driven(len(good) / seconds, sum(reply.status != 200 for reply in replies), p50_ms, generator_ms)


def processor_seconds(who: int) -> float:
    """Processor seconds, in programs and in the system."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime
