"""Swaps, SIGTERM, memory and start: what a server must keep doing right while it changes."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np
import orjson
import scipy.stats
from numpy.typing import NDArray

from model_store.classifier import to_scores
from model_store.store import ModelStore
from service.access import KeyEntry, KeysFile, digest_of, new_key
from service.comparison import load
from service.comparison.connection import END_OF_STREAM, NO_ANSWER, Reply
from service.comparison.servers import Server, serving
from tests.benchmarks.effort import Effort
from tests.benchmarks.figures import Figure, Report, at_most
from tests.benchmarks.servers import Target, service, service_target
from tests.benchmarks.subjects import Subject, republish

CONNECTIONS = 16
_NAME, _ALIAS = "swapped", "live"
_KEY = new_key()
_AUTHORIZATION = {"authorization": f"Bearer {_KEY}"}
# Probabilities that differ by less are the same answer: a lone request adds up in another order.
_SAME = 1e-3
_RELOADS = 40
# The first versions find a heap that has never held more.
_FIRST_RELOADS = 2


def measure_swaps(first: Subject, second: Subject, effort: Effort, report: Report, logs: Path) -> None:
    """Move an alias between two different models under full load; count failed and wrong answers."""
    with _two_versions(first, second, logs) as target:
        expected = [_probabilities(subject, first.texts) for subject in (first, second)]
        replies = load.run(_load_and_swap(target, effort))
    failed = sum(reply.status != 200 for reply in replies)
    wrong = sum(
        not _right(reply.body, reply.index % len(first.texts), expected) for reply in replies if reply.status == 200
    )
    note = f"{len(replies)} answers, {effort.swaps} swaps, each loads one version and lets go of the other"
    report.add(Figure(first.label, "swaps under load: failed answers", failed, bar=at_most(0), note=note))
    report.add(Figure(first.label, "swaps under load: wrong answers", wrong, bar=at_most(0), note=note))


def measure_termination(subject: Subject, effort: Effort, report: Report, logs: Path) -> None:
    """End the server under full load; count requests that it had read and never answered, and exits other than 0."""
    lost = bad_exits = answered = 0
    for _ in range(effort.terminations):
        with service(subject, logs) as target:
            replies, code = load.run(_load_and_end(target))
        answered += sum(reply.status != NO_ANSWER for reply in replies)
        lost += sum(reply.status == NO_ANSWER and reply.body.endswith(END_OF_STREAM.encode()) for reply in replies)
        bad_exits += code != 0
    note = f"{effort.terminations} times, {answered} answers"
    report.add(Figure(subject.label, "SIGTERM under load: read and not answered", lost, bar=at_most(0), note=note))
    report.add(Figure(subject.label, "SIGTERM under load: exit code not 0", bad_exits, bar=at_most(0), note=note))


def measure_memory(subject: Subject, effort: Effort, report: Report, logs: Path) -> None:
    """Ask texts of mixed lengths with reloads between; fit a line through resident memory after each of them.

    What a version's own buffers grow to depends on the largest of its batches, which differs by a tenth of it all from
    one to the next: memory at the end ÷ early on would say little of a leak.
    """
    texts = [*subject.texts, *(" ".join(subject.texts[start : start + 6]) for start in range(0, 60, 6))]
    resident = []
    with _two_versions(subject, subject, logs) as target:
        mixed = service_target(target.server, f"{_NAME}@{_ALIAS}", texts)
        for number in range(_RELOADS):
            _promote(target.server, 2 - number % 2)  # the alias begins with 1
            load.run(_ask(mixed, effort.soak_requests // _RELOADS))
            resident.append(target.server.resident_bytes() or 0)
    growth, low, high = growth_over(resident[_FIRST_RELOADS:])
    course = ", ".join(f"{size / 1e6:.0f}" for size in resident)
    note = f"{effort.soak_requests} requests, {_RELOADS} reloads; MB after each: {course}"
    name = "growth of memory"
    report.add(Figure(subject.label, name, growth, interval=(low, high), bar=at_most(0.05), note=note))


def growth_over(course: Sequence[float]) -> tuple[float, float, float]:
    """By what share a noisy course grew from its first to its last value, with its interval of 95 %.

    The line is Theil and Sen's: the median of the slopes between any two values.

    Args:
        course: at least two values at equal distances.
    """
    slope, start, low, high = scipy.stats.theilslopes(course)
    length = len(course) - 1
    return slope * length / start, low * length / start, high * length / start


def measure_start(subject: Subject, effort: Effort, report: Report, logs: Path) -> None:
    """Time from the process's start to readiness."""
    seconds = []
    for _ in range(effort.starts):
        start = perf_counter()
        with service(subject, logs):
            seconds.append(perf_counter() - start)
    interval = (min(seconds), max(seconds))
    report.add(Figure(subject.label, "start to ready", float(np.median(seconds)), "s", interval, at_most(2)))


@contextmanager
def _two_versions(first: Subject, second: Subject, logs: Path) -> Iterator[Target]:
    """A server for an alias that may point at either of two versions; it begins with the first."""
    store = ModelStore(logs / f"store-{perf_counter()}")
    for subject in (first, second):
        republish(subject.store, subject.model, store, _NAME)
    store.promote(store.resolve(f"{_NAME}@1"), _ALIAS)
    reference = f"{_NAME}@{_ALIAS}"
    keys = logs / "keys.json"
    everything = KeyEntry(name="benchmark", sha256=digest_of(_KEY), scopes=("infer", "admin"))
    keys.write_text(KeysFile(keys=(everything,)).model_dump_json())
    with serving([reference], store.root, logs / "swap.log", api_keys_file=str(keys), store_poll_ms="0") as server:
        yield service_target(server, reference, first.texts)


def _promote(server: Server, version: int) -> None:
    answer = httpx.put(
        f"{server.url}/v1/admin/models/{_NAME}/aliases/{_ALIAS}",
        json={"version": version},
        headers=_AUTHORIZATION,
        timeout=60,
    )
    answer.raise_for_status()


async def _load_and_swap(target: Target, effort: Effort) -> list[Reply]:
    swapped = asyncio.Event()

    def requests() -> Iterator[bytes]:
        prepared = target.requests(_AUTHORIZATION)
        for number in itertools.count():
            if swapped.is_set() and number >= effort.swap_requests:
                return
            yield prepared[number % len(prepared)]

    async def swap() -> None:
        for number in range(effort.swaps):
            await asyncio.to_thread(_promote, target.server, 2 - number % 2)
        swapped.set()

    async with load.Client(target.server.url, CONNECTIONS, strict=False) as client, asyncio.TaskGroup() as group:
        group.create_task(swap())
        replies = group.create_task(client.closed_loop(requests()))
    return replies.result()


async def _load_and_end(target: Target) -> tuple[list[Reply], int | None]:
    ended = asyncio.Event()
    prepared = itertools.cycle(target.requests())
    process = target.server.process
    if process is None:
        raise ValueError("the server to be ended must have been started here")

    async def end() -> int | None:
        await asyncio.sleep(0.5)  # full load by now
        process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(process.wait, 30)
        ended.set()
        return code

    async with load.Client(target.server.url, CONNECTIONS, strict=False) as client, asyncio.TaskGroup() as group:
        code = group.create_task(end())
        replies = group.create_task(client.closed_loop(itertools.takewhile(lambda _: not ended.is_set(), prepared)))
    return replies.result(), code.result()


async def _ask(target: Target, count: int) -> None:
    async with load.Client(target.server.url, CONNECTIONS) as client:
        await client.closed_loop(itertools.islice(itertools.cycle(target.requests(_AUTHORIZATION)), count))


def _probabilities(subject: Subject, texts: Sequence[str]) -> NDArray[np.float32]:
    """`(texts, labels)`, one text at a time."""
    classifier = subject.classifier(threads=1)
    rows = [to_scores(classifier.run([item]), classifier.manifest.scores) for item in subject.encoded[: len(texts)]]
    return np.concatenate(rows)


def _right(body: bytes, text: int, expected: Sequence[NDArray[np.float32]]) -> bool:
    """Whether an answer is that of the version that it names."""
    answer = orjson.loads(body)
    version = int(answer["model"].rpartition("@")[2])
    return bool(np.allclose(answer["data"][0]["probs"], expected[version - 1][text], atol=_SAME))
