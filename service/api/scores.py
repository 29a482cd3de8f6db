"""Scores as several dialects show them."""

from __future__ import annotations

from collections.abc import Sequence


def best_first(scores: Sequence[float]) -> list[int]:
    """The columns of scores, best first."""
    return sorted(range(len(scores)), key=lambda column: -scores[column])


def ranked(scores: Sequence[float], labels: Sequence[str], top_k: int | None = None) -> list[dict[str, float | str]]:
    """Labels with their scores, best first; all, or the best `top_k`."""
    return [{"label": labels[column], "score": scores[column]} for column in best_first(scores)[:top_k]]
