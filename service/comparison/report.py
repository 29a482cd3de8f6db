"""What a comparison leaves: the terminal's table, report.json, report.md, samples.csv and the plots."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Column, Table

from model_store.disk import write_whole
from model_store.statistics import Estimate
from service.comparison.errors import ComparisonError
from service.comparison.measure import Sample
from service.comparison.plots import write_plots
from service.comparison.results import Comparison, ModelFigures

Row = tuple[str, str, str, str]

_HEADINGS = ("", "A", "B", "B against A")
_METHOD = """\
Closed loop over keep-alive connections, after a warm-up. At 1 connection requests alternate A B, B A, …; at {many} \
connections blocks of the same texts in the same order alternate in the same way. Brackets hold 95 % intervals: \
latencies from order statistics, the speed-up from a paired bootstrap of texts, each with all of its requests ({pairs} \
pairs together), the ratio of throughputs from Student's distribution over blocks, shares from Wilson's score, \
differences from Bonett and Price's, regressions' figures from a bootstrap of texts. \
Accuracy, agreement and throughput come from the same answers. Load: {generator}."""


def rows(comparison: Comparison) -> list[Row]:
    """The table's rows: figure, A's, B's, and the two compared."""
    a, b = comparison.a, comparison.b
    both: list[tuple[str, Callable[[ModelFigures], str], str]] = [
        ("model", lambda model: model.id, ""),
        ("file", lambda model: f"{model.file} ({model.precision})", ""),
        ("runs on", lambda model: f"{model.provider.removesuffix('ExecutionProvider')}, {_threads(model.threads)}", ""),
        ("file size", lambda model: f"{model.bytes / 1e6:.1f} MB", f"size ratio {comparison.size_ratio:.2f} ×"),
        ("resident memory", lambda model: _megabytes(model.resident_bytes), ""),
    ]
    if a.accuracy is not None:
        both.append(("accuracy", lambda model: _with_interval(model.accuracy), _points(comparison.accuracy_difference)))
        both.append(("retention", lambda _: "", _percent(comparison.retention)))
        both.append(("McNemar's p", lambda _: "", f"{comparison.mcnemar_p:.3g}"))
    if a.pearson is not None or b.pearson is not None:
        both.append(
            ("Pearson's r", lambda model: _with_interval(model.pearson), _correlations(comparison.pearson_difference))
        )
        both.append(("retention", lambda _: "", _percent(comparison.retention)))
    both.append(_agreement(comparison))
    for connections in a.connections:
        many = connections != "1"
        label = f"{connections} connection{'s' if many else ''}"
        for name in ("p50", "p95", "p99"):
            speedup = "" if many or name != "p50" else f"speed-up {_ratio(comparison.speedup)}"
            both.append((f"{name}, {label}", _latency(name, connections), speedup))
        ratio = f"ratio {_ratio(comparison.throughput_ratio)}" if many else ""
        both.append((f"texts a second, {label}", _throughput(connections), ratio))
    return [(name, show(a), show(b), compared) for name, show, compared in both]


def table(comparison: Comparison) -> Table:
    """The table for the terminal."""
    shown = Table(
        *(Column(heading, overflow="fold") for heading in _HEADINGS),
        title=f"{comparison.a.reference} (A) against {comparison.b.reference} (B)",
    )
    for row in rows(comparison):
        shown.add_row(*row)
    return shown


def markdown(comparison: Comparison, plots: Iterable[str]) -> str:
    """The report for people."""
    many = next(connections for connections in comparison.a.connections if connections != "1")
    pairs = comparison.a.connections["1"].requests
    lines = [f"# {comparison.a.id} (A) against {comparison.b.id} (B)", ""]
    lines += [f"- {sentence}" for sentence in comparison.conclusions]
    lines += ["", "| | A | B | B against A |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows(comparison)]
    lines += ["", f"{comparison.texts} texts, {comparison.labelled} with labels; {comparison.seconds:.0f} s.", ""]
    lines += [f"Machine: {comparison.machine}.", ""]
    lines += [_METHOD.format(many=many, pairs=pairs, generator=comparison.generator), ""]
    lines += [f"![{Path(plot).stem}]({plot})" for plot in plots]
    return "\n".join(lines) + "\n"


def make_folder(folder: Path) -> None:
    """Make a folder for output, unless it is there, and see that something can be written into it.

    Raises:
        ComparisonError: it can't be made, or written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def write_report(comparison: Comparison, samples: Sequence[Sample], folder: Path) -> None:
    """Write report.json, report.md, samples.csv and the plots into `folder`, which is made where it isn't there.

    Raises:
        ComparisonError: the folder can't be written.
    """
    make_folder(folder)
    with _writing(folder):
        write_samples(samples, folder / "samples.csv")
        plots = write_plots(comparison, samples, folder)
        (folder / "report.md").write_text(markdown(comparison, plots), encoding="utf-8")
    write_json(comparison, folder / "report.json")


def write_json(comparison: Comparison, file: Path) -> None:
    """Write the comparison's figures as JSON, whole or not at all.

    Raises:
        ComparisonError: the file can't be written.
    """
    content = comparison.model_dump_json(indent=2) + "\n"
    with _writing(file):
        target = file.resolve()
        if is_special(target):
            target.write_text(content, encoding="utf-8")
        else:
            write_whole(target, content)


def is_special(file: Path) -> bool:
    """Whether it is a pipe or a device: written into, not replaced, and its folder is not ours."""
    return file.exists() and not file.is_file()


def write_samples(samples: Sequence[Sample], file: Path) -> None:
    """Write every answer as CSV: times in seconds, several labels joined by `|`."""
    with file.open("w", encoding="utf-8", newline="") as output:
        writer = csv.writer(output)
        writer.writerow(("model", "connections", "block", "text", "started_s", "latency_s", "answer"))
        for sample in samples:
            answer = "|".join(sample.answer) if isinstance(sample.answer, tuple) else sample.answer
            times = (f"{sample.started:.6f}", f"{sample.seconds:.6f}")
            writer.writerow((sample.model, sample.connections, sample.block, sample.text, *times, answer))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ComparisonError(f"{path} can't be written ({error.strerror}): choose another place") from error


def _latency(name: str, connections: str) -> Callable[[ModelFigures], str]:
    def show(model: ModelFigures) -> str:
        latency: Estimate = getattr(model.connections[connections], f"{name}_ms")
        return f"{latency.value:.2f} ms [{latency.low:.2f}, {latency.high:.2f}]"

    return show


def _throughput(connections: str) -> Callable[[ModelFigures], str]:
    return lambda model: f"{model.connections[connections].throughput:.1f}"


def _with_interval(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _agreement(comparison: Comparison) -> tuple[str, Callable[[ModelFigures], str], str]:
    found = comparison.agreement
    if comparison.problem == "regression":
        return "concordance", lambda _: "", _with_interval(found)
    return "agreement", lambda _: "", f"{_percent(found.value)} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _ratio(ratio: Estimate) -> str:
    return f"{ratio.value:.2f} × [{ratio.low:.2f}, {ratio.high:.2f}]"


def _points(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    return f"{100 * difference.value:+.2f} points [{100 * difference.low:+.2f}, {100 * difference.high:+.2f}]"


def _correlations(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.0f} MB"
