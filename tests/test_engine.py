"""Admission, deadlines, isolation, lost workers: the engine with fake classifiers and a fake clock."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from model_store.encoding import EncodedText, TextItem
from model_store.errors import InferenceError, InvalidTextError, TextTooLongError
from model_store.manifest import Side
from service.batcher import Item, Job
from service.cost_model import CostModel
from service.engine import _CLOSE_TIMEOUT_S, WATCHDOG_S, Engine
from service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    OverloadedError,
    ShuttingDownError,
    WorkerLostError,
)
from service.metrics import Metrics
from service.served_model import ServedModel
from service.workers import Ran
from tests.fakes import FakeClassifier, fake_ids
from tests.serving import served


class Clock:
    """Stands still unless a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """An engine, its clock and its metrics."""

    def __init__(self, engine: Engine, clock: Clock, metrics: Metrics, registry: CollectorRegistry) -> None:
        self.engine = engine
        self.clock = clock
        self.metrics = metrics
        self._registry = registry

    def submit(self, model: ServedModel, *texts: str, timeout_s: float = 60.0, **options: bool) -> Job:
        return self.engine.submit(
            model,
            [TextItem(text) for text in texts],
            truncate=options.get("truncate", True),
            raw_scores=options.get("raw_scores", False),
            deadline=self.clock.now + timeout_s,
        )

    def sample(self, name: str, **labels: str) -> float:
        return self._registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def bench(workers: int = 1, max_wait_s: float = 10.0, stuck_call_s: float = 30.0) -> AsyncIterator[Bench]:
    clock, registry = Clock(), CollectorRegistry()
    metrics = Metrics(registry)
    engine = Engine(
        workers=workers,
        metrics=metrics,
        max_wait_s=max_wait_s,
        stuck_call_s=stuck_call_s,
        clock=clock,
    )
    try:
        yield Bench(engine, clock, metrics, registry)
    finally:
        await engine.close()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def begun(classifier: FakeClassifier) -> None:
    """A call into the classifier has begun."""
    assert await asyncio.to_thread(classifier.started.acquire, timeout=10)


async def true(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


async def failure(awaitable: Awaitable[object]) -> BaseException:
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001 - the error is what is asked for
        return error
    raise AssertionError("no error")


def test_texts_are_answered_together_in_order_with_what_they_cost() -> None:
    async def scenario() -> None:
        async with bench() as it:
            answers = await it.submit(served(), "one", "two words", "three whole words").future
            assert [answer.tokens for answer in answers] == [3, 4, 5]
            assert [len(answer.scores) for answer in answers] == [2, 2, 2]
            assert it.engine.idle
            assert it.engine.predicted_wait_s == 0

    run(scenario)


def test_what_waits_together_runs_together() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier)
        async with bench() as it:
            first = it.submit(model, "first")
            await begun(classifier)
            others = [it.submit(model, f"other {number}") for number in range(3)]
            classifier.release()
            await asyncio.gather(first.future, *(job.future for job in others))
        assert [len(batch) for batch in classifier.batches] == [1, 3]

    run(scenario)


def test_two_workers_run_two_calls_at_once() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        async with bench(workers=2) as it:
            jobs = [it.submit(served(classifier), "first"), it.submit(served(classifier), "second")]
            await begun(classifier)
            await begun(classifier)
            classifier.release()
            await asyncio.gather(*(job.future for job in jobs))

    run(scenario)


def test_a_cancelled_caller_is_never_computed_and_its_neighbours_are() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier)
        async with bench() as it:
            first = it.submit(model, "first")
            await begun(classifier)
            gone, stays = it.submit(model, "gone"), it.submit(model, "stays")
            it.engine.abandon(gone)
            assert isinstance(await failure(gone.future), ClientGoneError)
            classifier.release()
            await asyncio.gather(first.future, stays.future)
        assert [ids for batch in classifier.batches for ids in batch] == [fake_ids("first"), fake_ids("stays")]

    run(scenario)


def test_a_caller_whose_task_was_cancelled_leaves_the_engine_sound() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        async with bench() as it:
            job = it.submit(served(classifier), "text")
            await begun(classifier)
            job.future.cancel()
            classifier.release()
            await true(lambda: it.engine.idle)

    run(scenario)


def test_a_job_that_passes_its_deadline_in_the_queue_fails_and_is_never_computed() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier)
        async with bench() as it:
            first = it.submit(model, "first")
            await begun(classifier)
            late = it.submit(model, "late", timeout_s=5)
            it.clock.now += 6
            assert isinstance(await failure(late.future), DeadlineExceededError)
            classifier.release()
            await first.future
        assert classifier.batches == [[fake_ids("first")]]

    run(scenario)


def test_deadlines_are_looked_at_more_often_than_gauges_are_set() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        async with bench() as it:
            await true(lambda: it.sample("successor_resident_memory_bytes") > 0)
            jobs = [it.submit(served(classifier), text) for text in ("first", "second")]
            late = it.submit(served(classifier), "late", timeout_s=5)
            it.clock.now += 6
            assert isinstance(await failure(late.future), DeadlineExceededError)
            assert it.sample("successor_queue_depth") == 0
            await begun(classifier)
            it.engine.sample()
            assert it.sample("successor_queue_depth") >= 1
            classifier.release()
            await asyncio.gather(*(job.future for job in jobs))

    run(scenario)


def test_a_batch_that_cant_be_counted_ends_nothing() -> None:
    class Broken(CostModel):
        def observe(self, *_: object, **__: object) -> None:
            raise ZeroDivisionError

    async def scenario() -> None:
        async with bench() as it:
            model = served()
            model.cost = Broken()
            await it.submit(model, "text").future
            await asyncio.sleep(2 * WATCHDOG_S)
            late = it.submit(served(FakeClassifier(blocked=True)), "text", timeout_s=1)
            it.clock.now += 2
            with pytest.raises(DeadlineExceededError):
                await late.future

    run(scenario)


def test_a_deadline_in_the_past_is_refused_at_once() -> None:
    async def scenario() -> None:
        async with bench() as it:
            with pytest.raises(DeadlineExceededError):
                it.submit(served(), "text", timeout_s=-1)

    run(scenario)


def test_a_request_that_would_miss_its_deadline_is_refused_with_the_wait() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier)
        async with bench() as it:
            job = it.submit(model, *["word"] * 100)
            model.cost.calls = 100
            with pytest.raises(DeadlineUnreachableError, match="deadline would be missed") as caught:
                it.submit(model, "text", timeout_s=0.5)
            # When so much of the queue is gone, 1.5 times the rest and the text itself fit into what was allowed.
            wait, own = it.engine.predicted_wait_s, model.estimate_s(TextItem("text"))
            assert 1.5 * (wait - caught.value.retry_after_s) + own == pytest.approx(0.5)
            classifier.release()
            await job.future

    run(scenario)


def test_many_texts_are_reckoned_side_by_side() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier, coefficients=(0.01, 0.0, 0.0, 0.0))
        model.cost.calls = 100
        async with bench(workers=4) as it:
            busy = it.submit(model, "one")
            jobs = [busy, it.submit(model, *["word"] * 256, timeout_s=1.0)]  # 2.56 s of one worker, 0.64 of four
            with pytest.raises(DeadlineExceededError, match="the answer is predicted to take 640 ms: send fewer"):
                it.submit(model, *["word"] * 256, timeout_s=0.4)
            with pytest.raises(DeadlineExceededError, match="is predicted to take 10 ms"):
                it.submit(model, "word", timeout_s=0.006)
            classifier.release()
            await asyncio.gather(*(job.future for job in jobs))

    run(scenario)


def test_a_prediction_of_a_model_that_nothing_is_known_of_refuses_nothing_that_need_not_wait() -> None:
    async def scenario() -> None:
        model = served(coefficients=(10.0, 0.0, 0.0, 0.0))
        async with bench() as it:
            await it.submit(model, "word", timeout_s=1.0).future
            model.cost.calls, model.cost.coefficients = 0, (10.0, 0.0, 0.0, 0.0)
            busy = FakeClassifier(blocked=True)
            beside = [it.submit(served(busy), "word"), it.submit(model, "word", timeout_s=1.0)]
            busy.release()
            await asyncio.gather(*(job.future for job in beside))
            model.cost.calls, model.cost.coefficients = 100, (10.0, 0.0, 0.0, 0.0)
            with pytest.raises(DeadlineExceededError):
                it.submit(model, "word", timeout_s=1.0)

    run(scenario)


def test_calls_that_fail_say_nothing_of_what_one_costs() -> None:
    async def scenario() -> None:
        model = served(FakeClassifier(errors={"bad": InferenceError("broken")}))
        async with bench() as it:
            before = it.engine._drain_ratio, model.cost.calls
            for _ in range(20):
                assert isinstance(await failure(it.submit(model, "bad").future), InferenceError)
            await true(lambda: not it.engine._ran)
            assert (it.engine._drain_ratio, model.cost.calls) == before
            await it.submit(model, "good").future
            await true(lambda: model.cost.calls == 1)

    run(scenario)


def test_a_full_queue_refuses_with_the_time_until_there_is_room() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        async with bench(max_wait_s=1.0) as it:
            it.engine.check_admission()
            job = it.submit(served(classifier), *["word"] * 200)
            assert it.engine.predicted_wait_s > 1
            with pytest.raises(OverloadedError, match="queue is full") as caught:
                it.engine.check_admission()
            assert caught.value.retry_after_s == pytest.approx(it.engine.predicted_wait_s - 1)
            classifier.release()
            await job.future
            it.engine.check_admission()

    run(scenario)


def test_those_whose_bodies_came_late_are_refused_as_those_who_come_then() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        async with bench(max_wait_s=1.0) as it:
            for _ in range(2):
                it.engine.check_admission()
            job = it.submit(served(classifier), *["word"] * 200)
            with pytest.raises(OverloadedError, match="queue is full"):
                it.submit(served(classifier), "word")
            classifier.release()
            await job.future

    run(scenario)


def test_predictions_of_a_wait_follow_the_measured_rate() -> None:
    async def scenario() -> None:
        slow = served(coefficients=(10.0, 0.0, 0.0, 0.0))
        async with bench() as it:
            for _ in range(60):
                await it.submit(slow, "text").future  # predicted to take 10 s, measured (on a still clock) at 0
            it.engine.sample()
            blocked = FakeClassifier(blocked=True)
            job = it.submit(served(blocked, coefficients=(10.0, 0.0, 0.0, 0.0)), "text")
            assert it.engine.predicted_wait_s < 1
            blocked.release()
            await job.future

    run(scenario)


def test_a_text_that_breaks_the_engine_fails_alone() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(errors={"bad": RuntimeError("broken")}, blocked=True)
        model = served(classifier)
        async with bench() as it:
            first = it.submit(model, "first")
            await begun(classifier)
            bad, good = it.submit(model, "bad"), it.submit(model, "good")
            classifier.release()
            assert isinstance(await failure(bad.future), InferenceError)
            await asyncio.gather(first.future, good.future)

    run(scenario)


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (TextTooLongError("too long"), TextTooLongError),
        (RuntimeError("tokeniser broke"), InvalidTextError),
    ],
)
def test_a_text_that_cannot_be_tokenised_fails_alone(raised: Exception, seen: type[Exception]) -> None:
    async def scenario() -> None:
        model = served(FakeClassifier(encode_errors={"bad": raised}))
        async with bench() as it:
            bad, good = it.submit(model, "bad"), it.submit(model, "good")
            error = await failure(bad.future)
            assert type(error) is seen
            await good.future

    run(scenario)


def test_a_request_of_several_texts_fails_with_the_position_of_the_one_that_failed() -> None:
    async def scenario() -> None:
        async with bench() as it:
            job = it.submit(served(FakeClassifier(encode_errors={"bad": InvalidTextError("no good")})), "good", "bad")
            error = await failure(job.future)
            assert isinstance(error, InvalidTextError)
            assert str(error) == "no good"
            assert job.failed == 1

    run(scenario)


class Killer(BaseException):
    """Not an Exception: nothing in a worker catches it."""


def test_a_worker_that_dies_is_replaced_and_only_the_text_that_kills_fails() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(errors={"kill": Killer()}, blocked=True)
        model = served(classifier)
        async with bench() as it:
            first = it.submit(model, "first")
            await begun(classifier)
            kill, good = it.submit(model, "kill"), it.submit(model, "good")
            classifier.release()
            assert isinstance(await failure(kill.future), WorkerLostError)
            await asyncio.gather(first.future, good.future)
            assert it.engine.able
            assert it.sample("successor_worker_restarts_total", reason="died") == 2

    run(scenario)


def test_a_call_that_does_not_come_back_is_given_up_and_its_worker_replaced() -> None:
    async def scenario() -> None:
        stuck = FakeClassifier(blocked=True)
        async with bench(stuck_call_s=5.0) as it:
            lost = it.submit(served(stuck), "lost")
            await begun(stuck)
            it.clock.now += 6
            assert isinstance(await failure(lost.future), WorkerLostError)
            await it.submit(served(), "next").future
            assert it.sample("successor_worker_restarts_total", reason="stuck") == 1
            stuck.release()

    run(scenario)


class StuckTokeniser(FakeClassifier):
    """Whose tokenisation of one text does not come back."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.leave = threading.Semaphore(0), threading.Event()

    def encode(self, item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
        if item.text == "endless":
            self.reached.release()
            assert self.leave.wait(10)
        return super().encode(item, truncate=truncate, side=side)


def test_a_text_whose_tokenisation_does_not_come_back_is_lost_alone() -> None:
    async def scenario() -> None:
        classifier = StuckTokeniser()
        model = served(classifier)
        async with bench(stuck_call_s=5.0) as it:
            jobs = [it.submit(model, text) for text in ("before", "endless", "after")]
            assert await asyncio.to_thread(classifier.reached.acquire, timeout=10)
            it.clock.now += 6
            assert isinstance(await failure(jobs[1].future), WorkerLostError)
            await asyncio.gather(jobs[0].future, jobs[2].future)
            assert it.sample("successor_worker_restarts_total", reason="stuck") == 1
            classifier.leave.set()
            await it.submit(model, "later").future
            await true(lambda: sum(thread.name.startswith("worker-") for thread in threading.enumerate()) == 1)
        assert [ids for batch in classifier.batches for ids in batch].count(fake_ids("before")) == 1
        assert fake_ids("endless") not in [ids for batch in classifier.batches for ids in batch]

    run(scenario)


def test_a_text_whose_tokenisation_hangs_holds_up_none_that_its_worker_took_with_it() -> None:
    async def scenario() -> None:
        classifier = StuckTokeniser()
        model = served(classifier)
        async with bench(workers=2) as it:
            jobs = [it.submit(model, text) for text in ("before", " ", "endless", "after")]
            # Nothing is given up here: the clock stands still.
            assert isinstance(await failure(jobs[1].future), InvalidTextError)
            await asyncio.gather(jobs[0].future, jobs[3].future)
            classifier.leave.set()
            await jobs[2].future

    run(scenario)


def test_a_slow_tokenisation_that_comes_back_is_answered() -> None:
    async def scenario() -> None:
        classifier = StuckTokeniser()
        async with bench(stuck_call_s=5.0) as it:
            job = it.submit(served(classifier), "endless")
            assert await asyncio.to_thread(classifier.reached.acquire, timeout=10)
            it.clock.now += 4
            classifier.leave.set()
            (answer,) = await job.future
            assert answer.tokenisation_s == 4
            it.clock.now += 6
            await asyncio.sleep(2 * WATCHDOG_S)
            assert it.sample("successor_worker_restarts_total", reason="stuck") == 0

    run(scenario)


def test_a_server_whose_calls_keep_getting_stuck_is_not_able_any_more() -> None:
    async def scenario() -> None:
        stuck = FakeClassifier(blocked=True)
        async with bench(stuck_call_s=5.0) as it:
            for _ in range(5):
                assert it.engine.able
                job = it.submit(served(stuck), "lost")
                await begun(stuck)
                it.clock.now += 6
                assert isinstance(await failure(job.future), WorkerLostError)
            assert not it.engine.able
            with pytest.raises(ShuttingDownError):
                it.engine.check_admission()
            stuck.release()
            await true(lambda: it.engine.able)
            await it.submit(served(), "they have come back").future
            await true(lambda: it.sample("successor_worker_restarts_total", reason="stuck") == 5)

    run(scenario)


def test_calls_that_are_slow_and_come_back_never_use_up_the_workers() -> None:
    async def scenario() -> None:
        async with bench(stuck_call_s=5.0) as it:
            for _ in range(10):
                slow = FakeClassifier(blocked=True)
                job = it.submit(served(slow), "slow")
                await begun(slow)
                it.clock.now += 6
                assert isinstance(await failure(job.future), WorkerLostError)
                slow.release()
                await it.submit(served(), "next").future
                await true(lambda: it.engine._stuck == 0)

    run(scenario)


def test_a_lone_request_takes_the_session_with_all_cores_and_one_in_a_crowd_or_after_a_pause_does_not() -> None:
    async def scenario() -> None:
        shared, lone = FakeClassifier(), FakeClassifier(blocked=True)
        model = served(shared, lone=lone)
        async with bench(workers=2) as it:
            await it.submit(model, "before all").future
            first = it.submit(model, "first")
            await begun(lone)
            await it.submit(model, "beside it").future
            lone.release()
            await first.future
            await it.submit(model, "soon after").future
            it.clock.now += 1
            await it.submit(model, "much later").future
            await it.submit(model, "right after").future
        assert [batch[0] for batch in lone.batches] == [fake_ids("first"), fake_ids("right after")]
        assert [batch[0] for batch in shared.batches] == [
            fake_ids(text) for text in ("before all", "beside it", "soon after", "much later")
        ]

    run(scenario)


def test_closing_fails_what_was_not_answered_and_ends_the_threads() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        before = threading.active_count()
        async with bench() as it:
            job = it.submit(served(classifier), "text")
            await begun(classifier)
            closing = asyncio.create_task(it.engine.close())
            assert isinstance(await failure(job.future), ShuttingDownError)
            classifier.release()
            await closing
            assert not it.engine.able
        assert threading.active_count() <= before + 2  # those of asyncio.to_thread

    run(scenario)


def test_several_stuck_threads_are_left_behind_together() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        async with bench(workers=4) as it:
            jobs = [it.submit(served(classifier), "one") for _ in range(4)]
            for _ in jobs:
                await begun(classifier)
            started = time.monotonic()
            await it.engine.close()
            assert time.monotonic() - started < 2 * _CLOSE_TIMEOUT_S
            classifier.release()
            for job in jobs:
                assert isinstance(await failure(job.future), ShuttingDownError)

    run(scenario)


def test_a_worker_that_sleeps_holds_no_version() -> None:
    async def scenario() -> None:
        model = served()
        async with bench(workers=2) as it:
            await it.submit(model, "one").future
            await asyncio.sleep(WATCHDOG_S)
            await true(lambda: not it.engine._ran)
            old = weakref.ref(model)
            del model
            await true(lambda: gc.collect() >= 0 and old() is None)

    run(scenario)


def test_a_version_knows_how_many_requests_it_still_owes() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier)
        async with bench() as it:
            job = it.submit(model, "one", "two")
            assert model.pending == 1
            classifier.release()
            await job.future
            assert model.pending == 0

    run(scenario)


def test_a_tokeniser_that_panics_fails_its_text_alone() -> None:
    class Panic(BaseException):
        """As a library in Rust raises it."""

    async def scenario() -> None:
        async with bench() as it:
            classifier = FakeClassifier(encode_errors={"bad": Panic("broken")})
            model = served(classifier)
            good, bad = it.submit(model, "good"), it.submit(model, "bad")
            with pytest.raises(InvalidTextError, match="broken"):
                await bad.future
            assert len(await good.future) == 1
            assert it.sample("successor_worker_restarts_total", reason="died") == 0

    run(scenario)


def test_batches_are_counted() -> None:
    async def scenario() -> None:
        async with bench() as it:
            await it.submit(served(metrics=it.metrics), "one two three").future
            it.engine.sample()
            for name, expected in {
                "batch_texts_sum": 1,
                "batch_tokens_sum": 5,
                "padding_share_sum": 0,
                "texts_total": 1,
            }.items():
                assert it.sample(f"successor_{name}", model="fake", version="1") == expected

    run(scenario)


def test_waits_and_calls_are_counted_in_seconds() -> None:
    async def scenario() -> None:
        async with bench() as it:
            classifier = FakeClassifier(blocked=True)
            model = served(classifier, metrics=it.metrics)
            first = it.submit(model, "first")
            await begun(classifier)
            second = it.submit(model, "second")
            it.clock.now += 2.0  # the first is computed, the second waits
            classifier.release()
            answers = [(await job.future)[0] for job in (first, second)]
            it.engine.sample()
            assert [(answer.queue_s, answer.inference_s) for answer in answers] == [(0.0, 2.0), (2.0, 0.0)]
            for name in ("queue", "inference"):
                for suffix, expected in (("sum", 2.0), ("count", 2)):
                    found = it.sample(f"successor_{name}_seconds_{suffix}", model="fake", version="1")
                    assert found == expected, name

    run(scenario)


def test_a_slow_tokenisation_is_no_wait() -> None:
    async def scenario() -> None:
        async with bench() as it:
            classifier = FakeClassifier()
            encode = classifier.encode

            def slow(item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
                it.clock.now += 3.0
                return encode(item, truncate=truncate, side=side)

            classifier.encode = slow  # type: ignore[method-assign]
            (answer,) = await it.submit(served(classifier, metrics=it.metrics), "a text").future
            assert (answer.tokenisation_s, answer.queue_s) == (3.0, 0.0)
            it.engine.sample()
            assert it.sample("successor_tokenisation_seconds_sum", model="fake", version="1") == 3.0

    run(scenario)


def test_what_waits_is_shared_among_the_workers() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier)
        async with bench(workers=2) as it:
            busy = [it.submit(model, f"busy {number}") for number in range(2)]
            for _ in busy:
                await begun(classifier)
            waiting = [it.submit(model, f"text {number}") for number in range(6)]
            await true(lambda: it.engine._pool.depth == 6)
            classifier.release()
            await asyncio.gather(*(job.future for job in (*busy, *waiting)))
        assert max(len(batch) for batch in classifier.batches) == 3

    run(scenario)


def test_who_has_gone_before_tokenisation_costs_none() -> None:
    async def scenario() -> None:
        classifier = FakeClassifier(blocked=True)
        model = served(classifier)
        seen: list[str] = []
        encode = classifier.encode

        def noting(item: TextItem, *, truncate: bool = True, side: Side | None = None) -> EncodedText:
            seen.append(item.text)
            return encode(item, truncate=truncate, side=side)

        classifier.encode = noting  # type: ignore[method-assign]
        async with bench() as it:
            first = it.submit(model, "first")
            await begun(classifier)
            gone, stays = it.submit(model, "gone"), it.submit(model, "stays")
            it.engine.abandon(gone)
            assert isinstance(await failure(gone.future), ClientGoneError)
            classifier.release()
            await asyncio.gather(first.future, stays.future)
        assert seen == ["first", "stays"]

    run(scenario)


def test_one_call_in_which_the_process_was_stopped_locks_nobody_out() -> None:
    async def scenario() -> None:
        model = served()
        async with bench() as it:
            for _ in range(20):
                await it.submit(model, "text").future
            job, estimate = it.submit(model, "text"), model.estimate_s(TextItem("text"))
            await job.future
            item = Item(job, 0, TextItem("text"), estimate, EncodedText([1, 2], [0, 0]))
            ran = Ran([item], [[0.5, 0.5]], started=0.0, ended=20.0, work_s=estimate)
            for _ in range(50):
                it.engine._count(ran)
            assert 1 < it.engine._drain_ratio <= 4
            # Nothing waits: what a text is predicted to take is what its model's calls took.
            await it.submit(model, "text", timeout_s=1.1 * model.estimate_s(TextItem("text")) / 1.5).future

    run(scenario)


def test_a_worker_whose_thread_can_not_be_started_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with bench() as it:
            start, pool = threading.Thread.start, it.engine._pool

            def refused(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            monkeypatch.setattr(threading.Thread, "start", refused)
            with pytest.raises(RuntimeError, match="can't start"):
                pool.add_worker()
            monkeypatch.setattr(threading.Thread, "start", start)
            assert len(pool.live) == 1
            await it.submit(served(), "text").future

    run(scenario)
