"""A loaded version, as the queue, the workers and the engine see it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from model_store.classifier import SPIN_US, Classifier
from model_store.encoding import TextItem
from model_store.manifest import Manifest
from model_store.seats import Seats
from service.cost_model import CostModel
from service.metrics import ModelInstruments

# After a longer pause the other threads of a lone call sleep, and are woken so late that one core alone is sooner done.
LONE_WITHIN_S = SPIN_US / 1e6
# Of so many lone calls, the last two try what is not taken otherwise.
TRY_EVERY = 32
# The weight of the newest call in a mean, and the most that one counts.
_LONE_WEIGHT, _LONE_MOST = 0.05, 2.0
# All cores are given up when they take so many times as long as one: what they gain is less than the means waver.
_LONE_TOO_SLOW = 1.15
# Special tokens, roughly: what a text costs beyond its characters.
_FIXED_TOKENS = 3


@dataclass(slots=True)
class LoneSession:
    """The same file with all cores for one call, and whether that pays just now; workers change it.

    What was measured when it was loaded is not for ever: neighbours come, and a thread that spins meets them worse.
    """

    classifier: Classifier
    seats: Seats | None = None
    """Where its threads are kept."""
    ended: float = -math.inf
    """When the version's last call ended."""
    all_cores_ended: float = -math.inf
    """When its own did."""
    calls: int = 0
    """Of requests that could take it."""
    one_core: float = 1.0
    """Seconds of those that did not ÷ those predicted: a mean that forgets."""
    all_cores: float = 0.9
    """The same of those that did."""

    def may(self, now: float) -> bool:
        """Whether a lone request could take it: its threads are not asleep for long."""
        return now - self.ended <= LONE_WITHIN_S

    def takes(self) -> bool:
        """Whether the next request that could take it does: unless it was slower lately; at times the opposite."""
        self.calls += 1
        return self._worth != (self.calls % TRY_EVERY >= TRY_EVERY - 2)

    def learn(self, started: float, ended: float, predicted: float, *, all_cores: bool) -> None:
        """Note the call of a request that could take it."""
        share = (ended - started) / predicted
        if all_cores:
            # One that found its threads asleep counts where such calls are what is taken; a trial says nothing then.
            counts = started - self.all_cores_ended <= LONE_WITHIN_S or self._worth
            self.all_cores_ended = ended
            if counts:
                # Neighbours that slow one core down leave room above it: else nothing would ever be too slow.
                share = min(_LONE_MOST * max(1.0, self.one_core), share)
                self.all_cores += _LONE_WEIGHT * (share - self.all_cores)
        else:
            self.one_core += _LONE_WEIGHT * (min(_LONE_MOST, share) - self.one_core)

    @property
    def _worth(self) -> bool:
        return self.all_cores <= _LONE_TOO_SLOW * self.one_core


@dataclass(eq=False)
class ServedModel:
    """What the engine runs and how it accounts for it."""

    classifier: Classifier
    """Computes on the calling thread; all workers share it."""
    lone: LoneSession | None
    """Where a second copy of its weights is allowed."""
    cost: CostModel
    instruments: ModelInstruments
    work_clock: Callable[[], float]
    """What a call's cost is measured with: the thread's own seconds where the call computes on its thread, so that
    other processes' load does not count; else the wall's."""
    max_batch_texts: int
    """Texts in one call; 1 for a file whose answers depend on the batch."""
    tokens_per_char: float = 0.25
    """Learned from tokenised texts, to predict a text's cost before it is tokenised; workers change it."""
    pending: int = 0
    """Requests accepted and not answered; the event loop changes it, and a version is let go at 0."""

    reference: str = field(init=False)
    """`name@version`, as every answer carries it."""

    unpadded: bool = field(init=False)
    """Its calls compute no padding."""

    def __post_init__(self) -> None:
        self.reference = str(self.manifest.id)
        self.unpadded = self.classifier.artifact.unpadded

    @property
    def manifest(self) -> Manifest:
        """The version that answers."""
        return self.classifier.manifest

    def computed_tokens(self, texts: int, longest: int, tokens: int) -> int:
        """How many tokens a call computes, of `texts` texts with `tokens` tokens in all and `longest` in one."""
        return tokens if self.unpadded else texts * longest

    def estimate_s(self, item: TextItem) -> float:
        """Predicted seconds of a text alone, before it is tokenised."""
        tokens = _FIXED_TOKENS + int(_chars(item) * self.tokens_per_char)
        return self.cost.predict(1, min(self.manifest.inputs.max_length, tokens))

    def learn_length(self, item: TextItem, tokens: int) -> None:
        """Note how many tokens a text had."""
        chars = _chars(item)
        if chars >= 16:
            self.tokens_per_char += 0.02 * (max(0, tokens - _FIXED_TOKENS) / chars - self.tokens_per_char)


def _chars(item: TextItem) -> int:
    return len(item.text) + len(item.text_pair or "")
