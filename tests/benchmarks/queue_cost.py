"""What one request costs the queue when it is short and when it is long."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter

import numpy as np
from prometheus_client import CollectorRegistry

from model_store.encoding import EncodedText, TextItem
from service.batcher import Item, Job, Waiting, form_batch
from service.cost_model import CostModel
from service.metrics import Metrics
from service.served_model import ServedModel
from tests.benchmarks.effort import Effort
from tests.benchmarks.figures import Figure, Report, at_most
from tests.fakes import FakeClassifier, fake_manifest

SHORT, LONG = 10, 10_000
_BATCH = 4
_LONGEST = 64


def measure_queue_cost(effort: Effort, report: Report) -> None:
    """Report the time to queue a request, form a batch and take it out, at both depths, in turns."""
    for subject, unpadded in (("queue, padded file", False), ("queue, file without padding", True)):
        costs: dict[int, list[float]] = {SHORT: [], LONG: []}
        for _ in range(5):
            for depth, taken in costs.items():
                taken.append(asyncio.run(_seconds_a_request(depth, effort.queue_operations, unpadded=unpadded)))
        short, long = (float(np.median(costs[depth])) for depth in (SHORT, LONG))
        for depth, seconds in ((SHORT, short), (LONG, long)):
            report.add(Figure(subject, f"cost of a request at depth {depth}", 1e6 * seconds, "µs"))
        report.add(Figure(subject, f"cost at depth {LONG} ÷ at depth {SHORT}", long / short, bar=at_most(2)))


async def _seconds_a_request(depth: int, operations: int, *, unpadded: bool) -> float:
    """Hold the queue at a depth while requests come and go; futures need a running loop."""
    generator = np.random.default_rng(0)
    metrics = Metrics(CollectorRegistry())
    classifier = FakeClassifier(fake_manifest(unpadded=unpadded))
    model = ServedModel(classifier, None, CostModel(), metrics.for_model("fake", 1), perf_counter, _BATCH)
    loop = asyncio.get_running_loop()

    def request(arrived: float) -> Item:
        ids = [1] * int(generator.integers(4, _LONGEST))
        job = Job(model, arrived, arrived + 30.0, True, False, loop.create_future(), [None], 1, 0.001)
        return Item(job, 0, TextItem("text"), 0.001, EncodedText(ids, [0] * len(ids)))

    waiting = Waiting(patience_s=1.0)
    fresh = deque(request(number * 1e-4) for number in range(depth + operations))
    for _ in range(depth):
        waiting.add(fresh.popleft())
    start = perf_counter()
    while fresh:
        formed = form_batch(waiting, 0.0, _BATCH)
        waiting.remove(formed.batch)
        for _ in range(min(len(formed.batch), len(fresh))):
            waiting.add(fresh.popleft())
    return (perf_counter() - start) / operations
