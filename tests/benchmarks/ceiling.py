"""What a service without any overhead would reach in a closed loop, as a share of the engine alone.

The engine alone may sort all texts by length before it runs them; a service has only those that wait. With 16
connections, batches are formed from a dozen texts, and some of the best arrangement's rate is out of reach whatever a
request costs. Both rates come from the same cost model, which is fitted to measured calls, so that noise cancels.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from model_store.encoding import EncodedText
from service.batcher import Item, Waiting, form_batch
from service.cost_model import CostModel
from service.served_model import ServedModel
from tests.benchmarks.engine import BATCHES, EngineAlone, in_threads
from tests.serving import item, served

_TEXTS = (1, 2, 4, 8, 16)
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_REPEATS = 6
_ANSWERS = 4_000


def fitted_cost(engine: EngineAlone, callers: int) -> CostModel:
    """A cost model of calls that were measured while every caller kept its core busy."""
    lengths = np.array([len(text) for text in engine.subject.encoded])
    classifier = engine.classifiers[1]
    batched = engine.subject.artifact.batch_invariant
    cost = CostModel()

    def call() -> None:
        for _ in range(_REPEATS):
            for texts, quantile in itertools.product(_TEXTS if batched else (1,), _QUANTILES):
                longest = int(np.quantile(lengths, quantile))
                batch = [EncodedText([1] * longest, [0] * longest)] * texts
                start = perf_counter()
                classifier.run(batch)
                cost.observe(texts, longest, perf_counter() - start)

    in_threads(callers, call)
    return cost


def share_of_engine(engine: EngineAlone, connections: int, callers: int) -> float:
    """The closed loop's rate without overhead ÷ the best arrangement's, both with the same fitted costs."""
    artifact = engine.subject.artifact
    model = served(max_batch_texts=max(_TEXTS) if artifact.batch_invariant else 1)
    model.unpadded = artifact.unpadded
    model.cost = fitted_cost(engine, callers)
    lengths = [len(text) for text in engine.subject.encoded]
    batches = BATCHES if artifact.batch_invariant else (1,)
    ordered = sorted(lengths)
    best = max(callers * len(lengths) / _seconds(model, ordered, batch) for batch in batches)
    return ClosedLoop(model, lengths, connections, callers).rate(_ANSWERS) / best


def _seconds(model: ServedModel, lengths: Sequence[int], batch: int) -> float:
    return sum(_call(model, lengths[start : start + batch]) for start in range(0, len(lengths), batch))


def _call(model: ServedModel, lengths: Sequence[int]) -> float:
    longest = max(lengths)
    tokens = model.computed_tokens(len(lengths), longest, sum(lengths))
    return model.cost.predict(len(lengths), longest, tokens)


@dataclass
class ClosedLoop:
    """Clients that ask again the moment they are answered, and workers whose calls take exactly what is predicted.

    Args:
        model: with the costs.
        lengths: tokens of the texts, asked in turn.
        connections: clients.
        workers: calls at a time.
    """

    model: ServedModel
    lengths: Sequence[int]
    connections: int
    workers: int
    _asked: itertools.count[int] = field(default_factory=itertools.count)

    def rate(self, answers: int) -> float:
        """Texts a second over at least so many answers."""
        waiting, idle, now, done = Waiting(patience_s=math.inf), self.workers, 0.0, 0
        running: list[tuple[float, int, list[Item]]] = []
        for _ in range(self.connections):
            self._ask(waiting, now)
        while done < answers:
            while idle and len(waiting):
                batch = form_batch(waiting, now, math.ceil(len(waiting) / self.workers)).batch
                waiting.remove(batch)
                idle -= 1
                seconds = _call(self.model, [len(one.encoded) for one in batch])
                heapq.heappush(running, (now + seconds, done + len(running), batch))
            now, _, batch = heapq.heappop(running)
            idle += 1
            done += len(batch)
            for _ in batch:
                self._ask(waiting, now)
        return done / now

    def _ask(self, waiting: Waiting, now: float) -> None:
        tokens = self.lengths[next(self._asked) % len(self.lengths)]
        waiting.add(item(self.model, tokens, arrived=now, deadline=math.inf))
