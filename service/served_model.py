"""A loaded version, as the queue, the workers and the engine see it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from model_store.classifier import Classifier
from model_store.encoding import TextItem
from model_store.manifest import Manifest
from service.cost_model import CostModel
from service.metrics import ModelInstruments

# After a longer pause the second thread of a lone call is woken so late that one core alone is sooner done.
LONE_WITHIN_S = 0.005
# How long lone calls are left off where one core was faster.
LONE_PAUSE_S = 10.0
# The mean of a lone call's time ÷ one core's: its first value, the weight of the newest call, the most one counts.
_LONE_SHARE, _LONE_WEIGHT, _LONE_MOST = 0.9, 0.05, 2.0
# Special tokens, roughly: what a text costs beyond its characters.
_FIXED_TOKENS = 3


@dataclass(slots=True)
class LoneSession:
    """The same file with all cores for one call, and whether that pays just now; workers change it.

    What was measured when it was loaded is not for ever: neighbours come, and a thread that spins meets them worse.
    """

    classifier: Classifier
    ended: float = -math.inf
    """When the version's last call ended."""
    share: float = _LONE_SHARE
    """Seconds of its calls ÷ those predicted for one core: a mean that forgets."""
    left_off_until: float = -math.inf

    def pays(self, now: float) -> bool:
        """Whether a lone request takes it."""
        return now - self.ended <= LONE_WITHIN_S and now >= self.left_off_until

    def learn(self, seconds: float, predicted: float, now: float) -> None:
        """Note one of its calls."""
        self.share += _LONE_WEIGHT * (min(_LONE_MOST, seconds / predicted) - self.share)
        if self.share > 1:
            self.left_off_until = now + LONE_PAUSE_S
            self.share = _LONE_SHARE


@dataclass(eq=False)
class ServedModel:
    """What the engine runs and how it accounts for it."""

    classifier: Classifier
    """Computes on the calling thread; all workers share it."""
    lone: LoneSession | None
    """Where a second copy of its weights is allowed, and was faster."""
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
