"""Worker threads, one for each core: tokenise, form a batch, run it, hand the answers back.

`OnnxClassifier.run` computes on the calling thread, so that all workers share one copy of the weights. A worker that
finds texts in the inbox tokenises them first, which gives whoever forms the next batch more lengths to choose from.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from model_store.errors import InvalidTextError, SuccessorError
from model_store.seats import Seats
from service.background import start_thread
from service.batcher import Item, Waiting, form_batch
from service.isolation import TextResult, run_isolated
from service.scheduling import WORKER_SLICE_S, set_time_slice

# A request is lone if no other was in the engine beside it for this long.
LONE_AFTER_S = 0.1
# After tokenising this many texts a worker puts them into the queue, where others see them.
_TEXTS_AT_ONCE = 16


@dataclass(slots=True)
class Ran:
    """A batch that came back, with one outcome for each item; or items that failed before they could run."""

    items: list[Item]
    outcomes: list[TextResult]
    started: float = 0.0
    ended: float = 0.0
    work_s: float = 0.0
    """What the call cost, on the model's own clock."""
    could_take_all_cores: bool = False
    """It was a lone request's, and its model has a session for such."""
    all_cores: bool = False
    """It took that."""

    def learn(self) -> None:
        """Tell the model what the call cost."""
        model = self.items[0].job.model
        longest, tokens = self.size()
        if model.lone is not None and self.could_take_all_cores:
            predicted = model.cost.predict(1, longest)
            model.lone.learn(self.started, self.ended, predicted, all_cores=self.all_cores)
        if not self.all_cores:
            model.cost.observe(len(self.items), longest, self.work_s, tokens)

    def size(self) -> tuple[int, int]:
        """Tokens of the longest text, and how many the call computed."""
        lengths = [len(item.encoded) for item in self.items]
        longest = max(lengths)
        return longest, self.items[0].job.model.computed_tokens(len(lengths), longest, sum(lengths))


def _held() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(eq=False)
class Worker:
    """One thread and what it is doing; the thread changes it, the watchdog reads it."""

    number: int
    batch: list[Item] = field(default_factory=list)
    called: float = math.inf
    """When the call into the engine that it is in began."""
    encoding: list[tuple[Item, float]] = field(default_factory=list)
    """The text that it is tokenising and since when, or nothing. Whoever takes that out, the worker when it has done so
    or the watchdog when it gives up, has the text from then on."""
    given_up: bool = False
    """The watchdog has replaced it: if its call ever returns, it ends without answering."""
    wake: threading.Lock = field(default_factory=_held)
    """Released by whoever has work for it while it sleeps."""
    native_id: int = 0
    """Of its thread."""
    seats: Seats | None = None
    """Whose caller's seat its thread is kept on."""
    home: frozenset[int] = frozenset()
    """The processors that it may use otherwise."""


class WorkerPool:
    """The threads and the queue between them; ready once constructed, ended by `close`.

    Args:
        workers: how many threads.
        patience_s: see `Waiting`.
        on_ran: called on a worker's thread with every batch that it ran and every item that can't be run.
        on_death: called on a dying worker's thread, with what killed it.
        on_return: called on the thread of a worker that was given up, when its call has come back and it ends.
        niceness: by how much the threads' priority is lowered, where the system has one for each thread.
        clock: monotonic seconds.
    """

    def __init__(  # noqa: PLR0913 - what `create_app` wires, each by its name
        self,
        *,
        workers: int,
        patience_s: float,
        on_ran: Callable[[Ran], None],
        on_death: Callable[[Worker, BaseException], None],
        on_return: Callable[[], None],
        niceness: int,
        clock: Callable[[], float],
    ) -> None:
        self._on_ran = on_ran
        self._on_death = on_death
        self._on_return = on_return
        self._niceness = niceness
        self._clock = clock
        self._threads: list[threading.Thread] = []
        self._seated: Worker | None = None
        self._inbox: deque[Item] = deque()
        """The owner appends, workers take; neither needs the lock for it."""
        self._ready: deque[Item] = deque()
        """Tokenised: workers append, and whoever has the lock puts them among those that wait."""
        self._lock = threading.Lock()
        # Below: shared by the workers, under the lock.
        self._waiting = Waiting(patience_s)
        self._idle: list[Worker] = []
        """Asleep; the last to fall asleep is woken first: its processor and its caches are the likeliest to be free."""
        self._running = 0
        self._crowded = -math.inf
        self._closing = False
        self.live: list[Worker] = []
        """Workers that can answer; the owner reads and changes it."""
        self._numbers = 0
        for _ in range(workers):
            self.add_worker()

    @property
    def depth(self) -> int:
        """Texts that wait, tokenised or not."""
        return len(self._inbox) + len(self._ready) + len(self._waiting)

    def put(self, items: Sequence[Item]) -> None:
        """Hand texts to the workers."""
        self._inbox.extend(items)
        # A worker says that it is idle before its last look at the inbox: it sees the items, or we see it.
        if self._idle:
            with self._lock:
                self._rouse(len(items))

    def add_worker(self) -> None:
        """Start one more thread."""
        worker = Worker(self._numbers)
        self._numbers += 1
        thread = start_thread(lambda: self._live(worker), f"worker-{worker.number}")  # if it fails, there is none
        self._threads = [*(other for other in self._threads if other.is_alive()), thread]
        self.live.append(worker)

    def give_up(self, began_before: float) -> list[tuple[Worker, list[Item]]]:
        """Stop counting on workers whose call, into engine or tokeniser, began before then; what is lost with each."""
        stuck = []
        for worker in list(self.live):
            lost = self._stuck_at(worker, began_before) or self._stuck_in(worker, began_before)
            if lost:
                worker.given_up = True
                self.live.remove(worker)
                stuck.append((worker, lost))
        return stuck

    def _stuck_at(self, worker: Worker, began_before: float) -> list[Item]:
        """The text that a worker does not get tokenised."""
        for entry in tuple(worker.encoding):
            if entry[1] < began_before:
                with contextlib.suppress(ValueError):  # just now it was
                    worker.encoding.remove(entry)
                    return [entry[0]]
        return []

    def _stuck_in(self, worker: Worker, began_before: float) -> list[Item]:
        """The batch that does not come back from the engine."""
        with self._lock:
            if worker.called >= began_before:
                return []
            worker.given_up = True
            self._running -= 1
        return worker.batch

    def nudge(self) -> None:
        """Wake a worker if texts wait and nobody looks: one that was to take them hangs at another text."""
        if self._idle and (self._inbox or self._ready):
            with self._lock:
                self._rouse(1)

    def close(self, timeout_s: float) -> None:
        """End the threads; those that are stuck in a call are left behind after `timeout_s`."""
        with self._lock:
            self._closing = True
            self._rouse(len(self._idle))
        give_up = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))

    # On a worker's thread

    def _live(self, worker: Worker) -> None:
        self._work(worker)
        if worker.given_up:
            self._on_return()

    def _work(self, worker: Worker) -> None:
        try:
            worker.native_id = threading.get_native_id()
            if self._niceness and sys.platform == "linux":
                with contextlib.suppress(OSError):  # not permitted here
                    os.setpriority(os.PRIO_PROCESS, worker.native_id, self._niceness)
            set_time_slice(WORKER_SLICE_S)
            while self._take(worker):
                ran = self._run(worker)
                with self._lock:
                    if worker.given_up:
                        return
                    worker.called = math.inf
                    self._running -= 1
                self._on_ran(ran)
                del ran  # this thread may sleep for long: what it holds, a version among others, stays
        except BaseException as error:  # noqa: BLE001 - whatever ends a thread must be reported, not lost
            with self._lock:
                if worker.given_up:
                    return
                if worker.called != math.inf:
                    self._running -= 1
            self._on_death(worker, error)

    def _take(self, worker: Worker) -> bool:
        """Wait for work and put the next batch into `worker.batch`; False when it is time to end."""
        worker.batch = []
        while True:
            with self._lock:
                while self._ready:
                    self._waiting.add(self._ready.popleft())
                asleep = not self._inbox
                if asleep:
                    if self._closing:
                        return False
                    if self._form(worker):
                        return True
                    self._idle.append(worker)
                    asleep = not self._inbox
                    if not asleep:
                        self._idle.remove(worker)
            if asleep:
                worker.wake.acquire()
            elif not self._tokenise(worker):
                return False

    def _rouse(self, workers: int) -> None:
        """Wake so many, under the lock, if so many sleep."""
        for _ in range(min(workers, len(self._idle))):
            self._idle.pop().wake.release()

    def _form(self, worker: Worker) -> bool:
        """Form the next batch under the lock; False if nothing waits."""
        if not len(self._waiting):
            return False
        now = self._clock()
        # A share for every worker: those that are busy now come for theirs soon, and no text waits for all the others.
        places = math.ceil(len(self._waiting) / max(1, len(self.live)))
        formed = form_batch(self._waiting, now, places)
        self._waiting.remove(formed.dropped)
        self._waiting.remove(formed.batch)
        worker.batch = formed.batch
        if not formed.batch:
            return False
        if self._running or len(self._waiting) or len(formed.batch) > 1:
            self._crowded = now
        self._running += 1
        worker.called = now
        if len(self._waiting):
            self._rouse(1)
        return True

    def _tokenise(self, worker: Worker) -> bool:
        """Take texts from the inbox and tokenise them; those that can't be are answered at once.

        False if the worker was given up meanwhile.
        """
        for _ in range(_TEXTS_AT_ONCE):
            try:
                item = self._inbox.popleft()
            except IndexError:
                break
            if item.job.departed:
                continue
            item.tokenisation_at = self._clock()
            worker.encoding.append((item, item.tokenisation_at))
            error = self._encode(item)
            try:
                worker.encoding.pop()
            except IndexError:
                worker.given_up = True  # the watchdog may not have come to it yet
                return False
            if error is None:
                self._ready.append(item)
            else:
                self._on_ran(Ran([item], [error]))
        return True

    def _encode(self, item: Item) -> SuccessorError | None:
        """Tokenise one text; why it can't be, if so."""
        job = item.job
        try:
            item.encoded = job.model.classifier.encode(item.text, truncate=job.truncate, side=job.side)
        except SuccessorError as error:
            return error
        except BaseException as error:  # noqa: BLE001 - a tokeniser may even panic; the text fails, not the worker
            return InvalidTextError(f"the text can't be tokenised: {error}")
        item.tokenisation_s = self._clock() - item.tokenisation_at
        job.model.learn_length(item.text, len(item.encoded))
        return None

    def _run(self, worker: Worker) -> Ran:
        items = worker.batch
        model = items[0].job.model
        started = worker.called
        lone = model.lone if started - self._crowded > LONE_AFTER_S else None
        could = lone is not None and lone.may(started)
        all_cores = lone is not None and could and lone.takes()
        classifier = lone.classifier if lone is not None and all_cores else model.classifier
        self._seat(worker, lone.seats if lone is not None and all_cores else None)
        begun = model.work_clock()
        outcomes = run_isolated(classifier, items)
        work_s, ended = model.work_clock() - begun, self._clock()
        if model.lone is not None:
            model.lone.ended = ended
        return Ran(items, outcomes, started, ended, work_s, could, all_cores)

    def _seat(self, worker: Worker, seats: Seats | None) -> None:
        """Keep the thread on the caller's seat, or let it go.

        It stays there between calls, so that it also wakes there, where no other thread of the call spins.
        """
        if seats == worker.seats or sys.platform != "linux":
            return
        with contextlib.suppress(OSError):  # the processors of this process were changed, or a thread has ended
            if seats is None:
                os.sched_setaffinity(worker.native_id, worker.home)
            else:
                if self._seated is not None and self._seated is not worker:
                    self._seat(self._seated, None)  # two would get in each other's way
                self._seated = worker
                if worker.seats is None:
                    worker.home = frozenset(os.sched_getaffinity(0))
                os.sched_setaffinity(0, {seats.caller})
        worker.seats = seats
