"""What tests of the queue, the workers and the engine share: served fakes, jobs and items without a server."""

from __future__ import annotations

import asyncio
import functools
import time

from prometheus_client import CollectorRegistry

from model_store.classifier import Classifier
from model_store.encoding import EncodedText, TextItem
from service.batcher import Item, Job
from service.cost_model import Coefficients, CostModel
from service.metrics import Metrics
from service.served_model import LoneSession, ServedModel
from tests.fakes import FakeClassifier, fake_manifest

# A call costs 10 ms and 1 ms for each of its tokens: two texts of 10 tokens, 30 ms together and 40 ms apart.
CHEAPER_TOGETHER: Coefficients = (0.010, 0.128, 0.0, 0.0)


@functools.cache
def closed_loop() -> asyncio.AbstractEventLoop:
    """A loop that futures may belong to and that never runs."""
    loop = asyncio.new_event_loop()
    loop.close()
    return loop


def served(
    classifier: Classifier | None = None,
    *,
    lone: Classifier | None = None,
    coefficients: Coefficients = CHEAPER_TOGETHER,
    max_batch_texts: int = 8,
    metrics: Metrics | None = None,
    unpadded: bool = False,
) -> ServedModel:
    """A served model whose costs are known."""
    cost = CostModel()
    cost.coefficients = coefficients
    return ServedModel(
        classifier=classifier or FakeClassifier(fake_manifest(unpadded=unpadded)),
        lone=None if lone is None else LoneSession(lone),
        cost=cost,
        instruments=(metrics or Metrics(CollectorRegistry())).for_model("fake", 1),
        work_clock=time.thread_time,
        max_batch_texts=max_batch_texts,
    )


def item(
    model: ServedModel, tokens: int = 10, *, arrived: float = 0.0, deadline: float = 1_000.0, raw_scores: bool = False
) -> Item:
    """A tokenised text of a request of its own; its future belongs to a loop that never runs."""
    job = Job(model, arrived, deadline, True, raw_scores, closed_loop().create_future(), [None], 1, 0.02)
    made = Item(job, 0, TextItem("text"), 0.02)
    made.encoded = EncodedText(list(range(tokens)), [0] * tokens)
    return made
