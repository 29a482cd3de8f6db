"""What a call into the engine costs, learned from the calls that were made.

The form is `c₀ + c₁·u + c₂·n·l² + c₃·u²` seconds, with `u` the tokens that the call computes, `l` its longest text
(both in units of 128 tokens), `n` its texts: a fixed part, the matrix products, attention (padded, and quadratic in the
length) and what larger calls lose to the caches. A file that computes padding has `u = n·l`. Least squares on
relative errors, older calls forgotten exponentially.
"""

from __future__ import annotations

import random
import threading

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

UNIT_TOKENS = 128
# Of calls that are learned from.
MEMORY_CALLS = 200
# After so many calls only this share is learned from: one more tells little, and learning takes its time. Which ones is
# drawn: calls may come in a rhythm.
KNOWN_AFTER, LEARN_SHARE = 256, 0.2
# A 6-layer MiniLM on one core: what is believed, up to a factor, of a model that nothing is known about.
DEFAULT = (0.0015, 0.028, 0.003, 0.0003)
# Calls that stand for the default until measured ones outweigh them: (texts, longest).
_BELIEVED = ((1, 16), (1, 128), (4, 32), (8, 128))
_BELIEF = 0.2
_TERMS = 4

Coefficients = tuple[float, float, float, float]


class CostState(BaseModel):
    """A cost model as it is kept in the state folder: the normal equations and how many calls are behind them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    matrix: list[float] = Field(min_length=_TERMS**2, max_length=_TERMS**2)
    vector: list[float] = Field(min_length=_TERMS, max_length=_TERMS)
    calls: int = Field(ge=1)


class CostModel:
    """Predicts and learns the seconds of a call; safe to use from several threads."""

    def __init__(self, state: CostState | None = None) -> None:
        self._learning = threading.Lock()
        self.coefficients: Coefficients = DEFAULT
        self.calls = 0
        """That it was learned from."""
        self._draw = random.Random(0).random  # noqa: S311 - no secret
        self._matrix = [0.0] * _TERMS**2
        self._vector = [0.0] * _TERMS
        if state is not None:
            self._matrix, self._vector, self.calls = list(state.matrix), list(state.vector), state.calls
            self._solve()

    def predict(self, texts: int, longest: int, tokens: int | None = None) -> float:
        """Seconds of a call.

        Args:
            texts: in the call.
            longest: tokens of the longest of them.
            tokens: that the call computes; by default, of all texts padded to the longest.
        """
        fixed, linear, attention, cache = self.coefficients
        length = longest / UNIT_TOKENS
        padded = texts * length
        units = padded if tokens is None else tokens / UNIT_TOKENS
        return fixed + units * (linear + cache * units) + attention * padded * length

    def seconds_a_text(self, longest: int, most: int) -> float:
        """Seconds of one worker for a text of `longest` tokens, in the best batch of at most `most` texts."""
        return min(self.predict(texts, longest) / texts for texts in range(1, most + 1))

    def observe(self, texts: int, longest: int, seconds: float, tokens: int | None = None) -> None:
        """Learn from a call that took `seconds`, once enough are known from some only; the rest as in `predict`."""
        if self.calls >= KNOWN_AFTER and self._draw() > LEARN_SHARE:
            return
        with self._learning:
            if self.calls == 0:
                scale = seconds / self.predict(texts, longest, tokens)
                for believed in _BELIEVED:
                    self._add(*believed, None, scale * self.predict(*believed), weight=_BELIEF, kept=1.0)
            self._add(texts, longest, tokens, seconds, weight=1.0, kept=1 - 1 / MEMORY_CALLS)
            self.calls += 1
            if self.calls <= 64 or self.calls % 32 == 0:
                self._solve()

    def state(self) -> CostState:
        """What to keep for the next process."""
        with self._learning:
            return CostState(matrix=self._matrix, vector=self._vector, calls=self.calls)

    def _add(  # noqa: PLR0913 - a call, and how much it counts
        self, texts: int, longest: int, tokens: int | None, seconds: float, *, weight: float, kept: float
    ) -> None:
        # Plain floats: this runs after many calls, and numpy costs more than it saves on four terms.
        seconds = max(seconds, 1e-6)
        length = longest / UNIT_TOKENS
        padded = texts * length
        units = padded if tokens is None else tokens / UNIT_TOKENS
        row = (1 / seconds, units / seconds, padded * length / seconds, units * units / seconds)
        products = [weight * a * b for a in row for b in row]
        self._matrix = [kept * old + new for old, new in zip(self._matrix, products, strict=True)]
        self._vector = [kept * old + weight * new for old, new in zip(self._vector, row, strict=True)]

    def _solve(self) -> None:
        """Non-negative least squares: terms that come out negative are left out, most negative first."""
        active = list(range(_TERMS))
        while active:
            solution = self._solved(active)
            worst = int(np.argmin(solution))
            if solution[worst] >= 0:
                full = [0.0] * _TERMS
                for term, value in zip(active, solution.tolist(), strict=True):
                    full[term] = value
                self.coefficients = (full[0], full[1], full[2], full[3])
                return
            del active[worst]

    def _solved(self, active: list[int]) -> NDArray[np.float64]:
        matrix = np.array(self._matrix).reshape(_TERMS, _TERMS)[np.ix_(active, active)]
        # Terms differ by orders of magnitude: the ridge that keeps this solvable is relative to each.
        ridge = np.diag(1e-6 * np.diag(matrix) + 1e-12)
        return np.asarray(np.linalg.solve(matrix + ridge, np.array(self._vector)[active]))
