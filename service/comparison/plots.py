"""The pictures of a comparison: latency distributions, and accuracy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.comparison.measure import Sample
from service.comparison.results import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATENCY_PLOT = "latency.png"
ACCURACY_PLOT = "accuracy.png"
_COLOURS = {"a": "#4c566a", "b": "#c0562b"}


def write_plots(comparison: Comparison, samples: Sequence[Sample], folder: Path) -> list[str]:
    """Draw what there is to draw into `folder`, and return the files' names."""
    from matplotlib.figure import Figure

    latency = Figure(figsize=(10, 4), layout="constrained")
    panels = latency.subplots(1, len(comparison.a.connections))
    for axes, connections in zip(np.atleast_1d(panels), comparison.a.connections, strict=True):
        _draw_latencies(axes, comparison, samples, int(connections))
    latency.savefig(folder / LATENCY_PLOT, dpi=120)
    if comparison.a.accuracy is None or comparison.b.accuracy is None:
        return [LATENCY_PLOT]
    accuracy = Figure(figsize=(5.5, 4), layout="constrained")
    _draw_accuracy(accuracy.subplots(), comparison)
    accuracy.savefig(folder / ACCURACY_PLOT, dpi=120)
    return [LATENCY_PLOT, ACCURACY_PLOT]


def _draw_latencies(axes: Axes, comparison: Comparison, samples: Sequence[Sample], connections: int) -> None:
    """Cumulative distributions: the share of requests answered within a time."""
    slowest = 0.0
    for key, model in (("a", comparison.a), ("b", comparison.b)):
        latencies = np.sort([1000 * s.seconds for s in samples if (s.model, s.connections) == (key, connections)])
        shares = np.arange(1, len(latencies) + 1) / len(latencies)
        median = model.connections[str(connections)].p50_ms
        axes.step(latencies, shares, where="post", color=_COLOURS[key], label=f"{model.id}, median {median:.1f} ms")
        axes.axvline(median, color=_COLOURS[key], linewidth=0.8, linestyle="--")
        slowest = max(slowest, model.connections[str(connections)].p99_ms)
    axes.set_xlim(0, 1.3 * slowest)
    axes.set_ylim(0, 1.01)
    axes.set_title(f"{connections} connection{'s' if connections > 1 else ''}")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("share of requests answered")
    axes.legend(loc="lower right", fontsize="small")


def _draw_accuracy(axes: Axes, comparison: Comparison) -> None:
    """Accuracy against median latency at one connection, with 95 % intervals."""
    for key, model in (("a", comparison.a), ("b", comparison.b)):
        if model.accuracy is None or model.accuracy_interval is None:
            continue
        load = model.connections["1"]
        axes.errorbar(
            [load.p50_ms],
            [model.accuracy],
            xerr=_bars(load.p50_ms, load.p50_ms_interval),
            yerr=_bars(model.accuracy, model.accuracy_interval),
            fmt="o",
            capsize=4,
            color=_COLOURS[key],
            label=f"{model.id}, {model.bytes / 1e6:.0f} MB",
        )
    axes.set_xlim(left=0)
    axes.set_xlabel("median latency at 1 connection, ms")
    axes.set_ylabel(f"accuracy on {comparison.labelled} texts")
    axes.legend(fontsize="small")


def _bars(value: float, interval: tuple[float, float]) -> list[list[float]]:
    """Error bars as matplotlib wants them: distances below and above, never negative."""
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
