"""The pictures of a comparison: latency distributions, and accuracy or correlation against latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_store.statistics import Estimate
from service.comparison.measure import Sample
from service.comparison.results import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATENCY_PLOT = "latency.png"
ACCURACY_PLOT = "accuracy.png"
CORRELATION_PLOT = "correlation.png"
_COLOURS = {"a": "#4c566a", "b": "#c0562b"}


def write_plots(comparison: Comparison, samples: Sequence[Sample], folder: Path) -> list[str]:
    """Draw what there is to draw into `folder`, and return the files' names."""
    from matplotlib.figure import Figure

    latency = Figure(figsize=(10, 4), layout="constrained")
    panels = latency.subplots(1, len(comparison.a.connections))
    for axes, connections in zip(np.atleast_1d(panels), comparison.a.connections, strict=True):
        _draw_latencies(axes, comparison, samples, int(connections))
    latency.savefig(folder / LATENCY_PLOT, dpi=120)
    plots = [LATENCY_PLOT]
    for name, what, a, b in (
        (ACCURACY_PLOT, "accuracy", comparison.a.accuracy, comparison.b.accuracy),
        (CORRELATION_PLOT, "Pearson's r", comparison.a.pearson, comparison.b.pearson),
    ):
        if a is not None and b is not None:
            quality = Figure(figsize=(5.5, 4), layout="constrained")
            _draw_quality(quality.subplots(), comparison, what, (a, b))
            quality.savefig(folder / name, dpi=120)
            plots.append(name)
    return plots


def _draw_latencies(axes: Axes, comparison: Comparison, samples: Sequence[Sample], connections: int) -> None:
    """Cumulative distributions: the share of requests answered within a time."""
    slowest = 0.0
    for key, model in (("a", comparison.a), ("b", comparison.b)):
        latencies = np.sort([1000 * s.seconds for s in samples if (s.model, s.connections) == (key, connections)])
        shares = np.arange(1, len(latencies) + 1) / len(latencies)
        median = model.connections[str(connections)].p50_ms.value
        axes.step(latencies, shares, where="post", color=_COLOURS[key], label=f"{model.id}, median {median:.1f} ms")
        axes.axvline(median, color=_COLOURS[key], linewidth=0.8, linestyle="--")
        slowest = max(slowest, model.connections[str(connections)].p99_ms.value)
    axes.set_xlim(0, 1.3 * slowest)
    axes.set_ylim(0, 1.01)
    axes.set_title(f"{connections} connection{'s' if connections > 1 else ''}")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("share of requests answered")
    axes.legend(loc="lower right", fontsize="small")


def _draw_quality(axes: Axes, comparison: Comparison, what: str, shown: tuple[Estimate, Estimate]) -> None:
    """A figure of quality against median latency at one connection, with 95 % intervals."""
    for key, model, quality in zip(("a", "b"), (comparison.a, comparison.b), shown, strict=True):
        latency = model.connections["1"].p50_ms
        axes.errorbar(
            [latency.value],
            [quality.value],
            xerr=_bars(latency),
            yerr=_bars(quality),
            fmt="o",
            capsize=4,
            color=_COLOURS[key],
            label=f"{model.id}, {model.bytes / 1e6:.0f} MB",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("median latency at 1 connection, ms")
    axes.set_ylabel(f"{what} on {comparison.labelled} texts")
    axes.legend(fontsize="small")


def _bars(estimate: Estimate) -> list[list[float]]:
    """Error bars as matplotlib wants them: distances below and above, never negative."""
    return [[max(0.0, estimate.value - estimate.low)], [max(0.0, estimate.high - estimate.value)]]
