"""What a call into the engine costs, learned from the calls that were made.

The form is `c₀ + c₁·u + c₂·u·l + c₃·u²` seconds, with `u` the call's tokens (texts × longest, padding included) and
`l` its longest text, both in units of 128 tokens: a fixed part, the matrix products, attention (quadratic in the
length) and what larger calls lose to the caches. Least squares on relative errors, older calls forgotten exponentially.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model_store.manifest import ModelId

UNIT_TOKENS = 128
MEMORY_CALLS = 500
# A 6-layer MiniLM on one core: what is believed, up to a factor, of a model that nothing is known about.
DEFAULT = (0.002, 0.035, 0.004, 0.0003)
# Calls that stand for the default until measured ones outweigh them: (texts, longest).
_BELIEVED = ((1, 16), (1, 128), (4, 32), (8, 128))
_BELIEF = 0.2

Coefficients = tuple[float, float, float, float]


class CostState(BaseModel):
    """A cost model as it is kept in the state folder: the normal equations and how many calls are behind them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    matrix: list[list[float]] = Field(min_length=4, max_length=4)
    vector: list[float] = Field(min_length=4, max_length=4)
    calls: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class CostFingerprint:
    """What a measured cost holds for; another machine or runtime measures again."""

    model: ModelId
    sha256: str
    provider: str
    threads: int
    machine: str
    runtime: str


class CostModel:
    """Predicts and learns the seconds of a call; one writer at a time, any reader."""

    def __init__(self, state: CostState | None = None) -> None:
        self.coefficients: Coefficients = DEFAULT
        self.calls = 0
        self._matrix = np.zeros((4, 4))
        self._vector = np.zeros(4)
        if state is not None:
            self._matrix, self._vector = np.array(state.matrix), np.array(state.vector)
            self.calls = state.calls
            self._solve()

    def predict(self, texts: int, longest: int) -> float:
        """Seconds of a call with `texts` texts, padded to `longest` tokens."""
        fixed, linear, attention, cache = self.coefficients
        units = texts * longest / UNIT_TOKENS
        return fixed + units * (linear + attention * longest / UNIT_TOKENS + cache * units)

    def observe(self, texts: int, longest: int, seconds: float) -> None:
        """Learn from a call that took `seconds`."""
        if self.calls == 0:
            scale = seconds / self.predict(texts, longest)
            for believed in _BELIEVED:
                self._add(*believed, scale * self.predict(*believed), _BELIEF)
        forgotten = 1 - 1 / MEMORY_CALLS
        self._matrix *= forgotten
        self._vector *= forgotten
        self._add(texts, longest, seconds, 1.0)
        self.calls += 1
        if self.calls <= 64 or self.calls % 16 == 0:
            self._solve()

    def state(self) -> CostState:
        """What to keep for the next process."""
        return CostState(matrix=self._matrix.tolist(), vector=self._vector.tolist(), calls=self.calls)

    def _add(self, texts: int, longest: int, seconds: float, weight: float) -> None:
        units = texts * longest / UNIT_TOKENS
        row = np.array((1.0, units, units * longest / UNIT_TOKENS, units * units)) / max(seconds, 1e-6)
        self._matrix += weight * np.outer(row, row)
        self._vector += weight * row

    def _solve(self) -> None:
        """Non-negative least squares: terms that come out negative are left out, most negative first."""
        active = [0, 1, 2, 3]
        while active:
            solution = self._solved(active)
            worst = int(np.argmin(solution))
            if solution[worst] >= 0:
                full = np.zeros(4)
                full[active] = solution
                fixed, linear, attention, cache = (float(value) for value in full)
                self.coefficients = (fixed, linear, attention, cache)
                return
            del active[worst]

    def _solved(self, active: list[int]) -> NDArray[np.float64]:
        matrix = self._matrix[np.ix_(active, active)]
        ridge = 1e-6 * np.trace(matrix) / len(active) * np.eye(len(active))
        return np.linalg.solve(matrix + ridge, self._vector[active])
