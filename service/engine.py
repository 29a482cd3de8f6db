"""Requests in, answers out: admission, deadlines, the watchdog, and the pool of workers behind them.

Everything here happens on the event loop. Workers hand their batches back with one call for each batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from model_store.encoding import TextItem
from model_store.errors import SuccessorError
from model_store.manifest import Side
from service.background import repeat
from service.batcher import Answer, Item, Job
from service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    DeadlineUnreachableError,
    OverloadedError,
    ShuttingDownError,
    WorkerLostError,
)
from service.isolation import TextResult
from service.metrics import Metrics
from service.served_model import ServedModel
from service.workers import Ran, Worker, WorkerPool

log = structlog.get_logger(__name__)

WATCHDOG_S = 0.05
# How often gauges are set and observations flushed.
SAMPLE_S = 0.5
# With more calls that have not come back, for each worker, no more workers are started.
_STUCK_FOR_EACH_WORKER = 4
# Predictions are means. A predicted wait counts this many times against a deadline; a request that nothing waits before
# is refused only if it would take this many times what is left.
_DEADLINE_RESERVE = 1.5
# What a request itself will take counts only after so many calls of its model: else nothing would mend a wrong one.
_KNOWN_AFTER = 8
# Weight of the newest batch in the mean of its time ÷ the time predicted for its texts one by one.
_DRAIN_WEIGHT = 0.05
# The most that one counts: a process may be stopped for seconds inside a call.
_DRAIN_MOST = 4.0
_CLOSE_TIMEOUT_S = 1.0


class Engine:
    """Runs jobs on worker threads; made and used on the event loop, ready once constructed, ended by `close`.

    Args:
        workers: threads, each of which runs one call at a time.
        metrics: the process's instruments.
        max_wait_s: a job that would wait longer is refused.
        stuck_call_s: a call that takes longer is given up and its worker replaced.
        worker_niceness: by how much the workers' priority is lowered.
        clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - what `create_app` wires, each by its name
        self,
        *,
        workers: int,
        metrics: Metrics,
        max_wait_s: float,
        stuck_call_s: float,
        worker_niceness: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.workers = workers
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._max_wait_s = max_wait_s
        self._stuck_call_s = stuck_call_s
        self._jobs: set[Job] = set()
        """Accepted and not answered."""
        self._backlog_s = 0.0
        """Predicted seconds of one worker for all of them."""
        self._drain_ratio = 1.0
        """How much faster batches make it, and how wrong predictions are: measured, from answered batches."""
        self._ran: list[Ran] = []
        """Answered and not counted."""
        self._stuck = 0
        """Workers that were given up and whose calls have not come back."""
        self._most_stuck = workers * _STUCK_FOR_EACH_WORKER
        self._closing = False
        self._pool = WorkerPool(
            workers=workers,
            patience_s=max_wait_s,
            on_ran=lambda ran: self._post(self._deliver, ran),
            on_death=lambda worker, error: self._post(self._bury, worker, error),
            on_return=lambda: self._post(self._welcome_back),
            niceness=worker_niceness,
            clock=clock,
        )
        self._watchers = asyncio.gather(
            repeat("give up what is stuck or late", self._watch, WATCHDOG_S),
            repeat("sample the metrics", self.sample, SAMPLE_S),
        )

    @property
    def idle(self) -> bool:
        """No job is in the engine."""
        return not self._jobs

    @property
    def able(self) -> bool:
        """At least one worker can answer."""
        return bool(self._pool.live) and not self._closing

    @property
    def predicted_wait_s(self) -> float:
        """How long a job that came now would wait for a worker, at the rate at which work gets done."""
        return self._backlog_s * self._drain_ratio / max(1, len(self._pool.live))

    @property
    def full(self) -> bool:
        """Whether a job that came now would be refused for the others that wait."""
        return self.predicted_wait_s > self._max_wait_s

    def refuses(self, deadline: float) -> bool:
        """Whether `check_admission` would refuse a request for the others that wait."""
        return self.full or self._short_s(deadline - self.clock()) > 0

    def check_admission(self, deadline: float = math.inf) -> None:
        """Refuse a request, before its body is read, if the queue is full, or too long for its deadline.

        Args:
            deadline: of the clock; one that has passed is another matter, see `submit`.

        Raises:
            OverloadedError: with the time after which there is room.
            DeadlineUnreachableError: the queue is so long that the deadline would be missed.
            ShuttingDownError: no worker can answer.
        """
        if not self.able:
            raise ShuttingDownError("the server is going down or has lost its workers: send the request to another")
        if self.full:
            wait = self.predicted_wait_s
            raise OverloadedError(
                f"the queue is full (a wait of {wait * 1e3:.0f} ms is predicted): retry later",
                retry_after_s=wait - self._max_wait_s,
            )
        self._check_wait(deadline - self.clock())

    def submit(  # noqa: PLR0913 - what a request may say
        self,
        model: ServedModel,
        texts: Sequence[TextItem],
        *,
        truncate: bool,
        raw_scores: bool,
        deadline: float,
        side: Side | None = None,
    ) -> Job:
        """Accept a request's texts, or refuse them at once; the job's future gets one `Answer` for each, in order.

        Args:
            model: who is to answer.
            texts: at least one.
            truncate: cut texts that are too long for the model instead of failing.
            raw_scores: answer with logits.
            deadline: of the clock; what is not computed by then is dropped.
            side: where texts are cut; the manifest's unless given.

        Raises:
            OverloadedError: the queue is full.
            DeadlineUnreachableError: it is so long that the deadline would be missed.
            ShuttingDownError: no worker can answer.
            DeadlineExceededError: the deadline has passed already, or can't be met whatever else is done.
        """
        self.check_admission()  # again: others may have been admitted while this one's body came
        now = self.clock()
        if deadline <= now:
            raise DeadlineExceededError("the deadline had passed when the request arrived: allow more time")
        estimates = [model.estimate_s(text) for text in texts]
        total = sum(estimates)
        self._check_deadline(model, estimates, deadline - now)
        future: asyncio.Future[list[Answer]] = self._loop.create_future()
        count = len(texts)
        job = Job(model, now, deadline, truncate, raw_scores, future, [None] * count, count, total, side)
        self._jobs.add(job)
        self._backlog_s += total
        model.pending += 1
        self._pool.put(
            [
                Item(job, index, text, estimate)
                for index, (text, estimate) in enumerate(zip(texts, estimates, strict=True))
            ]
        )
        return job

    def _check_deadline(self, model: ServedModel, estimates: Sequence[float], left_s: float) -> None:
        """Refuse what will not be answered in time."""
        own = 0.0
        if model.cost.calls > _KNOWN_AFTER:
            # Its texts are computed side by side, but the longest at least by one worker.
            # That calls were slower lately than predicted is no reason here: nothing waits, and refusals mend no mean.
            own = max(sum(estimates) * min(1.0, self._drain_ratio) / max(1, len(self._pool.live)), *estimates)
        if own > _DEADLINE_RESERVE * left_s:
            raise DeadlineExceededError(
                f"the answer is predicted to take {own * 1e3:.0f} ms: send fewer texts at once, or allow more time"
            )
        self._check_wait(left_s, own)

    def _short_s(self, left_s: float, own_s: float = 0.0) -> float:
        """By how much the predicted wait is too long for what is left until a deadline; at most 0: it is not."""
        wait = self.predicted_wait_s
        return wait - (left_s - own_s) / _DEADLINE_RESERVE if wait and left_s > 0 else 0.0

    def _check_wait(self, left_s: float, own_s: float = 0.0) -> None:
        short = self._short_s(left_s, own_s)
        if short > 0:
            wait = self.predicted_wait_s
            raise DeadlineUnreachableError(
                f"the deadline would be missed (a wait of {wait * 1e3:.0f} ms is predicted): allow more time",
                retry_after_s=min(wait, short),
            )

    def abandon(self, job: Job) -> None:
        """The caller hung up: what was not computed yet never will be."""
        self._end(job, ClientGoneError("the client closed the connection before the answer"))

    def sample(self) -> None:
        """Set this process's gauges and put in what it observed: now and then by itself, and before a scrape."""
        self._account()
        self._metrics.sample(self._pool.depth)

    async def close(self) -> None:
        """Refuse everything, fail what is left and end the workers; one that is stuck is left behind."""
        self._closing = True
        self._watchers.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watchers
        for job in list(self._jobs):
            self._end(job, ShuttingDownError("the server went down before the answer: send the request to another"))
        await asyncio.to_thread(self._pool.close, _CLOSE_TIMEOUT_S)
        self._account()
        self._metrics.flush()

    def _post(self, callback: Callable[..., None], *arguments: object) -> None:
        """Call back on the event loop, from a worker."""
        with contextlib.suppress(RuntimeError):  # the loop has closed: a call that was stuck came back after the end
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _end(self, job: Job, error: SuccessorError | None) -> None:
        """Answer a job's caller, with its answers or with an error, once."""
        if job.departed:
            return
        self._jobs.remove(job)
        job.departed = True
        job.model.pending -= 1
        self._backlog_s = max(0.0, self._backlog_s - job.estimate_s) if self._jobs else 0.0
        if job.future.done():  # its task was cancelled
            return
        if error is None:
            job.future.set_result([answer for answer in job.answers if answer is not None])
        else:
            job.future.set_exception(error)

    def _deliver(self, ran: Ran) -> None:
        """Give each item of a batch its outcome."""
        for item, outcome in zip(ran.items, ran.outcomes, strict=True):
            self._settle(item, outcome, ran)
        if ran.ended:
            self._ran.append(ran)

    def _settle(self, item: Item, outcome: TextResult, ran: Ran) -> None:
        job = item.job
        if job.departed:
            return
        if isinstance(outcome, SuccessorError):
            job.failed = item.index
            self._end(job, outcome)
            return
        job.answers[item.index] = Answer(
            outcome,
            len(item.encoded),
            item.encoded.truncated,
            max(0.0, ran.started - job.arrived - item.tokenisation_s),
            item.tokenisation_s,
            ran.ended - ran.started,
            item.tokenisation_at,
        )
        job.pending -= 1
        job.estimate_s -= item.estimate_s
        self._backlog_s -= item.estimate_s
        if job.pending == 0:
            self._end(job, None)

    def _account(self) -> None:
        """Count what was answered since the last time, and let the models learn what it cost.

        Many batches together: while requests wait, and with caches that inference has emptied, each would cost several
        times as much.
        """
        ran, self._ran = self._ran, []
        for one in ran:
            try:
                self._count(one)
            except Exception:
                log.exception("a batch was not counted")  # what watches must not end by it

    def _count(self, ran: Ran) -> None:
        instruments = ran.items[0].job.model.instruments
        _, computed = ran.size()
        seconds = ran.ended - ran.started
        instruments.inference.observe(seconds)
        instruments.batch_texts.observe(len(ran.items))
        instruments.batch_tokens.observe(computed)
        instruments.padding.observe(1 - sum(len(item.encoded) for item in ran.items) / computed)
        answers = [answer for item in ran.items if (answer := item.job.answers[item.index]) is not None]
        for answer in answers:
            instruments.queue.observe(answer.queue_s)
            instruments.tokenisation.observe(answer.tokenisation_s)
        if answers:
            instruments.texts.inc(len(answers))
            instruments.last.set(time.time())
        if any(isinstance(outcome, SuccessorError) for outcome in ran.outcomes):
            return  # a call that failed says nothing of what one costs, and its texts may have been run again
        if not ran.all_cores:
            predicted = sum(item.estimate_s for item in ran.items)
            self._drain_ratio += _DRAIN_WEIGHT * (min(_DRAIN_MOST, seconds / predicted) - self._drain_ratio)
        ran.learn()

    def _bury(self, worker: Worker, error: BaseException) -> None:
        """Replace a worker that died; what it ran is run again, each text alone, and the one that kills again fails."""
        log.error("worker died", worker=worker.number, error=repr(error), texts=len(worker.batch))
        self._metrics.worker_restarts.labels("died").inc()
        self._pool.live.remove(worker)
        self._lose([item for item, _ in worker.encoding])
        if len(worker.batch) > 1:
            # New items: the queue's heaps may still hold the old ones, as taken.
            self._pool.put([replace(item, alone=True) for item in worker.batch])
        else:
            self._lose(worker.batch)
        self._pool.add_worker()  # last: where no thread can be started, the watchdog tries again

    def _lose(self, items: Sequence[Item]) -> None:
        for item in items:
            self._end(item.job, WorkerLostError("the worker that ran this request was lost: send it again"))

    def _watch(self) -> None:
        """Give up calls that do not come back and jobs whose deadline has passed, and count what was answered.

        Workers look at deadlines themselves: a job that this finds a little late is not computed any more.
        """
        now = self.clock()
        for worker, lost in self._pool.give_up(now - self._stuck_call_s):
            self._give_up(worker, lost)
        self._replace_stuck()
        self._pool.nudge()
        for job in [one for one in self._jobs if one.deadline <= now]:
            self._end(job, DeadlineExceededError("the deadline passed before the answer: allow more time"))
        self._account()

    def _give_up(self, worker: Worker, items: Sequence[Item]) -> None:
        self._stuck += 1
        log.error("call does not come back", worker=worker.number, texts=len(items), stuck=self._stuck)
        self._lose(items)

    def _welcome_back(self) -> None:
        """A call that was given up has come back: its thread ends, and one that could not be replaced may be now."""
        self._stuck -= 1
        log.info("call came back late", stuck=self._stuck)
        self._replace_stuck()

    def _replace_stuck(self) -> None:
        """Start workers in place of those that were given up, unless too many calls are still out."""
        while len(self._pool.live) < self.workers and self._stuck <= self._most_stuck and not self._closing:
            self._metrics.worker_restarts.labels("stuck").inc()
            self._pool.add_worker()
