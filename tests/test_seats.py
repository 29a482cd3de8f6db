"""A processor for each thread of a lone call."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence

import pytest

from model_store.classifier import Logits, OnnxClassifier
from model_store.encoding import EncodedText, TextItem
from model_store.manifest import ModelId
from model_store.seats import Seats, seats_for
from model_store.store import ModelStore
from service.workers import Ran, WorkerPool
from tests.fakes import FakeClassifier
from tests.serving import item, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads are kept on processors on Linux alone")


def test_there_is_a_seat_for_each_thread_where_there_are_just_as_many_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1, 2})
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    assert seats_for(3) == Seats(1, (2, 3))
    assert seats_for(2) is None
    assert seats_for(4) is None
    assert seats_for(1) is None


def test_a_sandbox_that_refuses_has_no_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert seats_for(len(os.sched_getaffinity(0))) is None


def test_a_session_with_seats_answers_as_one_without(store: ModelStore, tiny: ModelId) -> None:
    version = store.open(tiny)
    first, *others = sorted(os.sched_getaffinity(0))
    seats = Seats(first, (others[0] if others else first,))
    seated, plain = OnnxClassifier(version, intra_op_threads=2, seats=seats), OnnxClassifier(version)
    encoded = plain.encode(TextItem("a good film"))
    assert seated.run([encoded])[0].tolist() == pytest.approx(plain.run([encoded])[0].tolist(), abs=1e-5)


class Located(FakeClassifier):
    """Notes where it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.where: list[set[int]] = []

    def run(self, batch: Sequence[EncodedText]) -> Logits:
        self.where.append(os.sched_getaffinity(0))
        return super().run(batch)


def pool_of(workers: int, on_ran: Callable[[Ran], None], clock: Callable[[], float]) -> WorkerPool:
    """A pool of which no worker may die or be given up."""

    def fail(*why: object) -> None:
        raise AssertionError(why)

    return WorkerPool(
        workers=workers, patience_s=1.0, on_ran=on_ran, on_death=fail, on_return=fail, niceness=0, clock=clock
    )


@pytest.mark.parametrize("there", [True, False])
def test_a_worker_takes_its_seat_for_lone_calls_and_leaves_it_for_others(there: bool) -> None:
    everywhere = os.sched_getaffinity(0)
    seat = max(everywhere) if there else 4_000  # of a processor that was taken away
    lone, shared = Located(), Located()
    model = served(shared, lone=lone)
    assert model.lone is not None
    model.lone.seats = Seats(seat, ())
    answered = threading.Semaphore(0)
    now = 10.0
    ran: list[Ran] = []

    def note(one: Ran) -> None:
        ran.append(one)
        answered.release()

    pool = pool_of(1, note, clock=lambda: now)
    try:
        for pause in (0.0, 0.001, 0.001, 1.0):  # the first and the last find other threads asleep, and take one core
            now += pause
            pool.put([item(model)])
            assert answered.acquire(timeout=10)
    finally:
        pool.close(5.0)
    assert [one.all_cores for one in ran] == [False, True, True, False]
    assert lone.where == [{seat} if there else everywhere] * 2
    assert shared.where == [everywhere] * 2


def test_only_one_worker_has_the_seat() -> None:
    everywhere = os.sched_getaffinity(0)
    lone = Located()
    model = served(Located(), lone=lone)
    assert model.lone is not None
    model.lone.seats = Seats(max(everywhere), ())
    answered = threading.Semaphore(0)
    pool = pool_of(2, lambda _: answered.release(), clock=lambda: 10.0)
    try:
        model.lone.ended = 10.0
        for _ in range(20):
            pool.put([item(model)])
            assert answered.acquire(timeout=10)
        seated = [worker for worker in pool.live if os.sched_getaffinity(worker.native_id) != everywhere]
        assert len(seated) == (1 if len(everywhere) > 1 else 0)
    finally:
        pool.close(5.0)
