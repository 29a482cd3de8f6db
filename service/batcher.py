"""The queue, and how a batch is formed from it.

`Waiting` holds what was tokenised and not yet run; `form_batch` is a pure function of it, the time and the cost model.
Both work on `Item`s, one text each; a `Job` is the request that they belong to.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from model_store.encoding import EncodedText, TextItem
from model_store.manifest import Side
from service.served_model import ServedModel

# A text joins a batch only if the batch's cost, relative to running its texts alone, falls by this share.
LEAST_GAIN = 0.01
# After this many texts in a row that may not join, those of still less similar length are not looked at.
_MISSES = 8


_NOT_ENCODED = EncodedText([], [])


@dataclass(slots=True)
class Answer:
    """What one text got: its scores or, if it asked for them, its logits, `(labels,)`."""

    scores: list[float]
    tokens: int
    truncated: bool
    queue_s: float
    tokenisation_s: float
    inference_s: float
    tokenisation_at: float = 0.0
    """When its tokenisation began, on the engine's clock."""


@dataclass(slots=True, eq=False)
class Job:
    """One request. Only the event loop changes it; workers read `departed`."""

    model: ServedModel
    arrived: float
    deadline: float
    truncate: bool
    raw_scores: bool
    future: asyncio.Future[list[Answer]]
    answers: list[Answer | None]
    pending: int
    estimate_s: float
    """Predicted seconds of its texts that are not answered yet."""
    side: Side | None = None
    """Where its texts are cut; the manifest's unless given."""
    departed: bool = False
    """Nobody waits any more: answered, the caller has gone, the deadline has passed, or another of its texts failed."""
    failed: int | None = None
    """Which of its texts did, if one did."""


@dataclass(slots=True, eq=False)
class Item:
    """One text of a job on its way. Whoever holds it changes it: the loop, then one worker, then the loop."""

    job: Job
    index: int
    text: TextItem
    estimate_s: float
    encoded: EncodedText = _NOT_ENCODED
    tokenisation_s: float = 0.0
    tokenisation_at: float = 0.0
    taken: bool = False
    """Set when it leaves the queue; the queue's heaps drop it later."""
    alone: bool = False
    """A batch with it killed its worker: it runs without batch-mates from now on."""

    @property
    def length(self) -> int:
        """What it is matched with others by: its tokens or, where only attention is padded, their power of two.

        The finer this is, the longer a text of a rare length waits while others overtake it.
        """
        tokens = len(self.encoded)
        return tokens.bit_length() if self.job.model.unpadded else tokens


_Entry = tuple[float, int, Item]


class Waiting:
    """Items that wait for a worker, by urgency and by length; every operation is logarithmic in their number.

    Args:
        patience_s: after this long, an item goes before all that came later, whatever their deadlines.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._numbers = itertools.count()
        self._urgent: list[_Entry] = []
        self._by_length: dict[ServedModel, dict[int, list[_Entry]]] = {}
        self._lengths: dict[ServedModel, list[int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, item: Item) -> None:
        """Queue one tokenised item."""
        item.taken = False
        entry = (min(item.job.deadline, item.job.arrived + self._patience_s), next(self._numbers), item)
        heapq.heappush(self._urgent, entry)
        buckets = self._by_length.setdefault(item.job.model, {})
        length = item.length
        if length not in buckets:
            buckets[length] = []
            insort(self._lengths.setdefault(item.job.model, []), length)
        heapq.heappush(buckets[length], entry)
        self._count += 1

    def remove(self, items: Iterable[Item]) -> None:
        """Take out what was chosen."""
        for item in items:
            item.taken = True
            self._count -= 1
            self._prune(item.job.model, item.length)
        _drop_taken(self._urgent)

    def by_urgency(self) -> Iterator[Item]:
        """Items with the earliest deadline first, those that ran out of patience before them."""
        return _in_order(self._urgent)

    def nearest(self, leader: Item) -> Iterator[Item]:
        """The other items of the leader's model, nearest in `length` first, most urgent first among equals."""
        buckets, lengths = self._by_length[leader.job.model], self._lengths[leader.job.model]
        length = leader.length
        right = bisect_left(lengths, length)
        left = right - 1
        while left >= 0 or right < len(lengths):
            if left < 0 or (right < len(lengths) and lengths[right] - length <= length - lengths[left]):
                chosen, right = lengths[right], right + 1
            else:
                chosen, left = lengths[left], left - 1
            for item in _in_order(buckets[chosen]):
                if item is not leader:
                    yield item

    def _prune(self, model: ServedModel, length: int) -> None:
        """Drop what was taken from one length's heap, then the empty length, then the empty model."""
        buckets = self._by_length.get(model, {})
        heap = buckets.get(length)
        if heap is None:
            return
        _drop_taken(heap)
        if not heap:
            del buckets[length]
            self._lengths[model].remove(length)
        if not buckets:
            del self._by_length[model], self._lengths[model]


@dataclass(frozen=True, slots=True)
class Formed:
    """What to run together, and what nobody waits for any more."""

    batch: list[Item]
    dropped: set[Item]


def form_batch(waiting: Waiting, now: float, places: int) -> Formed:
    """The most urgent item whose caller still waits, with the items that make the call cheaper by joining.

    Cost counts padding, where that is computed: an item joins if the call, relative to running its texts one by one,
    gets `LEAST_GAIN` cheaper and nobody in it misses a deadline by it.

    Args:
        waiting: the queue, which is not changed.
        now: the time that deadlines are compared with, seconds.
        places: the most items to take, so that other workers find some too.
    """
    dropped: set[Item] = set()
    for item in waiting.by_urgency():
        if item.job.departed or item.job.deadline <= now:
            dropped.add(item)
            continue
        return Formed(_fill(item, waiting, now, min(places, item.job.model.max_batch_texts), dropped), dropped)
    return Formed([], dropped)


def _fill(leader: Item, waiting: Waiting, now: float, places: int, dropped: set[Item]) -> list[Item]:
    batch = [leader]
    if places == 1 or leader.alone:
        return batch
    model = leader.job.model
    predict = model.cost.predict
    longest = tokens = len(leader.encoded)
    alone = spent = predict(1, longest)
    earliest = leader.job.deadline
    misses = 0
    for item in waiting.nearest(leader):
        if len(batch) == places or misses == _MISSES:
            break
        if item.job.departed:
            dropped.add(item)
            continue
        length = len(item.encoded)
        texts, most, total = len(batch) + 1, max(longest, length), tokens + length
        together = predict(texts, most, model.computed_tokens(texts, most, total))
        apart = alone + predict(1, length)
        deadline = min(earliest, item.job.deadline)
        cheaper = together * alone <= (1 - LEAST_GAIN) * spent * apart
        if item.alone or not cheaper or now + together > deadline:
            misses += 1
            continue
        misses = 0
        batch.append(item)
        alone, spent, longest, tokens, earliest = apart, together, most, total, deadline
    return batch


def _drop_taken(heap: list[_Entry]) -> None:
    while heap and heap[0][2].taken:
        heapq.heappop(heap)


def _in_order(heap: list[_Entry]) -> Iterator[Item]:
    """The items of a heap in order, without changing it: O(k log k) for the first k."""
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        entry, position = heapq.heappop(frontier)
        if not entry[2].taken:
            yield entry[2]
        for child in (2 * position + 1, 2 * position + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))
