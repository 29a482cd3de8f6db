"""ONNX Runtime alone: what the processor can do with a file when nothing else is in the way.

An arrangement is a number of callers (threads that each run one batch after another), the threads inside one call, the
texts in a batch, and whether the texts are sorted by length first. Only arrangements that give the answers that one
text at a time gets are allowed: a file whose answers depend on the batch is run in batches of one.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from model_store.classifier import Classifier
from model_store.encoding import EncodedText, TextItem
from tests.benchmarks.subjects import Subject

BATCHES = (1, 4, 8, 16)
# Logits that differ by less are the same answer: sums in another order differ in their last bits.
SAME_LOGITS = 1e-4


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How texts are run."""

    callers: int
    threads: int
    batch: int
    by_length: bool

    def __str__(self) -> str:
        order = "sorted" if self.by_length else "unsorted"
        return f"{self.callers} callers × {self.threads} threads, batch {self.batch}, {order}"


def arrangements(cores: int, *, batched: bool) -> list[Arrangement]:
    """Every arrangement that is tried; batches of one are not sorted, it would change nothing."""
    shapes = {(1, cores), (cores, 1)}
    batches = BATCHES if batched else (1,)
    return [
        Arrangement(callers, threads, batch, by_length)
        for callers, threads in sorted(shapes)
        for batch in batches
        for by_length in ((False, True) if batch > 1 else (False,))
    ]


class EngineAlone:
    """A subject's file in sessions of this process.

    Args:
        subject: the file and its texts.
        cores: as many callers, or threads in a call, as there are.
    """

    def __init__(self, subject: Subject, cores: int) -> None:
        self.subject = subject
        self.classifiers = {threads: subject.classifier(threads) for threads in sorted({1, cores})}
        self.allowed = arrangements(cores, batched=subject.artifact.batch_invariant)

    def texts_a_second(self, arrangement: Arrangement, seconds: float, *, tokenise: bool = False) -> float:
        """Run the texts again and again for a time.

        Args:
            arrangement: how.
            seconds: no batch is begun later, but each caller's first.
            tokenise: make the ids anew for each text, instead of having them prepared.
        """
        classifier = self.classifiers[arrangement.threads]
        batches = itertools.cycle(self._batches(arrangement))
        run = _encode_and_run if tokenise else _run
        done = 0
        lock = threading.Lock()
        start = perf_counter()

        def call() -> None:
            nonlocal done
            count = 0
            while count == 0 or perf_counter() - start < seconds:
                with lock:
                    batch = next(batches)
                run(classifier, self.subject, batch)
                count += len(batch)
            with lock:
                done += count

        in_threads(arrangement.callers, call)
        return done / (perf_counter() - start)

    def largest_difference(self, arrangement: Arrangement, texts: int) -> float:
        """How far logits are from those of one text at a time, over the first `texts` texts."""
        classifier = self.classifiers[arrangement.threads]
        encoded = self.subject.encoded[:texts]
        alone = np.concatenate([classifier.run([item]) for item in encoded])
        largest = 0.0
        for batch in self._batches(arrangement, texts):
            together = classifier.run([encoded[index] for index in batch])
            largest = max(largest, float(np.abs(together - alone[list(batch)]).max()))
        return largest

    def service_times(self, callers: int) -> NDArray[np.float64]:
        """Seconds `(texts,)` that each text takes alone in a call, while the other callers keep their cores busy."""
        times = np.zeros(len(self.subject.texts))
        classifier = self.classifiers[1]
        indices = iter(range(len(times)))
        lock = threading.Lock()

        def call() -> None:
            while True:
                with lock:
                    index = next(indices, None)
                if index is None:
                    return
                start = perf_counter()
                classifier.run([self.subject.encoded[index]])
                times[index] = perf_counter() - start

        in_threads(callers, call)
        return times

    def latencies(self, arrivals: Sequence[float], callers: int) -> NDArray[np.float64]:
        """Latencies `(requests,)`, seconds, of texts that arrive at given times and are run in order, one by one.

        A real queue without a server around it: it has the processor's noise and the cold caches after a pause, which
        an ideal one has not.
        """
        latencies = np.zeros(len(arrivals))
        waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        classifier, encoded = self.classifiers[1], self.subject.encoded
        start = perf_counter()

        def call() -> None:
            while (index := waiting.get()) is not None:
                classifier.run([encoded[index % len(encoded)]])
                latencies[index] = perf_counter() - start - arrivals[index]

        def schedule() -> None:
            for index, arrival in enumerate(arrivals):
                time.sleep(max(0.0, start + arrival - perf_counter()))
                waiting.put(index)
            for _ in range(callers):
                waiting.put(None)

        scheduler = threading.Thread(target=schedule)
        scheduler.start()
        in_threads(callers, call)
        scheduler.join()
        return latencies

    def _batches(self, arrangement: Arrangement, texts: int | None = None) -> list[tuple[int, ...]]:
        order: Sequence[int] = range(len(self.subject.texts[:texts]))
        if arrangement.by_length:
            order = sorted(order, key=lambda index: len(self.subject.encoded[index]))
        batches = list(_chunks(order, arrangement.batch))
        # Else a time that is not a whole number of turns would end among the short ones, and count more of them.
        random.Random(0).shuffle(batches)
        return batches


def in_threads(count: int, call: Callable[[], None]) -> None:
    """Run `call` in `count` threads and wait for all; the first error is raised again here."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _run(classifier: Classifier, subject: Subject, batch: Sequence[int]) -> None:
    classifier.run([subject.encoded[index] for index in batch])


def _encode_and_run(classifier: Classifier, subject: Subject, batch: Sequence[int]) -> None:
    encoded: list[EncodedText] = [classifier.encode(TextItem(subject.texts[index])) for index in batch]
    classifier.run(encoded)


def _chunks(order: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(order), size):
        yield tuple(order[start : start + size])
