"""How long each measurement takes: enough for narrow intervals, or with `--quick` to see that it works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes of all measurements; times are seconds."""

    texts: int = 400
    screening_seconds: float = 1.5
    rounds: int = 6
    round_seconds: float = 4.0
    peer_seconds: float = 4.0
    lone_blocks: int = 12
    arrivals_rounds: int = 4
    arrivals_seconds: float = 6.0
    overload_seconds: float = 6.0
    swaps: int = 20
    swap_requests: int = 10_000
    terminations: int = 20
    soak_requests: int = 200_000
    starts: int = 5
    queue_operations: int = 5_000


FULL = Effort()
QUICK = Effort(
    texts=120,
    screening_seconds=0.3,
    rounds=2,
    round_seconds=1.0,
    peer_seconds=1.0,
    lone_blocks=3,
    arrivals_rounds=2,
    arrivals_seconds=2.0,
    overload_seconds=2.0,
    swaps=6,
    swap_requests=1_000,
    terminations=3,
    soak_requests=4_000,
    starts=2,
    queue_operations=1_000,
)
