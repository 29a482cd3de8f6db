from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from model_store.machine import Machine
from model_store.manifest import Problem
from model_store.statistics import Estimate, proportion
from service.comparison.errors import ComparisonError
from service.comparison.measure import Answer, Key, Sample, Side, Sides
from service.comparison.report import table, write_report
from service.comparison.results import Comparison, Conditions, conclude, summarise
from service.comparison.servers import ServedModel, Server
from service.comparison.texts import Example, Label
from tests.stub_server import entry

MACHINE = Machine(
    cpu="a processor",
    architecture="x86_64",
    flags=("avx2",),
    cores=2,
    usable_cores=2,
    memory_bytes=2**33,
    system="Linux",
    python="3.11",
    onnxruntime="1",
)
BLOCKS = 4


def take_samples(answers: dict[Key, Sequence[Answer]], seconds: dict[Key, float]) -> list[Sample]:
    """Samples as `measure` leaves them: each text once at 1 connection and once in one of the blocks at 16."""
    samples = []
    count = len(answers["a"])
    for text in range(count):
        block = text * BLOCKS // count
        for key in answers:
            drift = 1 + 0.1 * (text % 7) / 7
            samples.append(Sample(key, 1, text, text, 10.0 * text, seconds[key] * drift, answers[key][text]))
            started = 1000.0 * block + (text - block * count / BLOCKS) * seconds[key]
            samples.append(Sample(key, 16, block, text, started, seconds[key] * drift, answers[key][text]))
    return samples


def comparison(
    answers: dict[Key, Sequence[Answer]],
    labels: Sequence[Label | None],
    *,
    problem: Problem = "single_label",
    seconds: dict[Key, float] | None = None,
    local: bool = True,
) -> Comparison:
    return summarise(*arguments(answers, labels, problem, seconds or {"a": 0.02, "b": 0.01}, local=local))


def arguments(
    answers: dict[Key, Sequence[Answer]],
    labels: Sequence[Label | None],
    problem: Problem,
    seconds: dict[Key, float],
    *,
    local: bool = True,
) -> tuple[Sides, list[Example], list[Sample], Conditions]:
    models = (entry("large@1", bytes=9000, problem=problem), entry("small@2", bytes=2000, problem=problem))
    sides = Sides(
        *(Side(str(model["name"]), ServedModel.model_validate(model), Server("http://x")) for model in models)
    )
    examples = [Example(text=f"text {index}", label=label) for index, label in enumerate(labels)]
    resident: dict[Key, int | None] = {"a": 5_000_000, "b": 3_000_000} if local else {"a": None, "b": None}
    return sides, examples, take_samples(answers, seconds), Conditions(MACHINE, resident, 12.0)


def right_until(count: int, total: int = 200) -> list[str]:
    return ["positive"] * count + ["negative"] * (total - count)


POSITIVE = ["positive"] * 200


def values(*estimates: Estimate | None) -> tuple[float | None, ...]:
    return tuple(None if estimate is None else estimate.value for estimate in estimates)


def test_speed_up_and_throughput_are_ratios_above_one_where_b_is_faster() -> None:
    found = comparison({"a": POSITIVE, "b": POSITIVE}, POSITIVE)
    assert found.speedup.value == pytest.approx(2)
    assert found.throughput_ratio.value == pytest.approx(2, rel=0.05)
    assert found.throughput_ratio.low <= found.throughput_ratio.value <= found.throughput_ratio.high
    assert found.size_ratio == 4.5
    assert found.a.connections["1"].p50_ms.value == pytest.approx(20 * 1.043, rel=0.01)
    assert found.a.connections["16"].requests == 200
    assert found.a.connections["16"].throughput == pytest.approx(50, rel=0.05)
    assert found.a.connections["1"].throughput == pytest.approx(50, rel=0.1)
    assert found.a.resident_bytes == 5_000_000


def test_texts_that_are_asked_again_make_the_speed_up_no_surer() -> None:
    sides, examples, samples, conditions = arguments(
        {"a": POSITIVE[:30], "b": POSITIVE[:30]}, POSITIVE[:30], "single_label", {"a": 0.02, "b": 0.01}
    )
    slower = [replace(s, seconds=s.seconds + 0.005 * (s.text % 5)) if s.model == "a" else s for s in samples]
    alone = [sample for sample in slower if sample.connections == 1]
    again = [replace(sample, block=sample.block + 30 * turn) for turn in range(1, 4) for sample in alone]
    once = summarise(sides, examples, slower, conditions).speedup
    assert summarise(sides, examples, slower + again, conditions).speedup == once
    some = [sample for sample in again if sample.block < 45]  # the time was over in the middle of a turn
    assert once.low < summarise(sides, examples, slower + some, conditions).speedup.value < once.high


def test_accuracy_agreement_retention_and_mcnemar_are_counted_by_label_name() -> None:
    found = comparison({"a": right_until(180), "b": right_until(150)}, POSITIVE)
    assert values(found.a.accuracy, found.b.accuracy) == (0.9, 0.75)
    assert found.agreement.value == pytest.approx(170 / 200)
    assert found.retention == pytest.approx(150 / 180)
    assert found.accuracy_difference is not None
    assert found.accuracy_difference.value == pytest.approx(-0.15)
    assert found.mcnemar_p == pytest.approx(2 * 0.5**30)
    assert found.labelled == 200


def test_throughput_at_many_connections_is_of_the_time_that_passed() -> None:
    answers: dict[Key, Sequence[Answer]] = {"a": ["positive"] * 16, "b": ["positive"] * 16}
    sides, examples, samples, conditions = arguments(answers, ["positive"] * 16, "single_label", {"a": 0.02, "b": 0.01})
    # Four at a time: of the 16 texts of a block that takes a second, each takes a quarter of it.
    keys: tuple[Key, Key] = ("a", "b")
    together = [
        Sample(key, 16, block, text, block * 10 + text // 4 * 0.25, 0.25, "positive")
        for key in keys
        for block in range(2)
        for text in range(16)
    ]
    found = summarise(sides, examples, [*(one for one in samples if one.connections == 1), *together], conditions)
    assert found.a.connections["16"].throughput == pytest.approx(16)


def test_of_several_answers_to_a_text_the_first_counts() -> None:
    answers: dict[Key, Sequence[Answer]] = {"a": ["positive"] * 8, "b": ["positive"] * 8}
    sides, examples, samples, conditions = arguments(answers, ["positive"] * 8, "single_label", {"a": 0.02, "b": 0.01})
    later: tuple[tuple[Key, str], ...] = (("a", "positive"), ("b", "negative"))
    again = [
        Sample(key, 16, BLOCKS + block, text, 9e3 + text, 0.01, answer)
        for key, answer in later
        for block in range(2)
        for text in range(8)
    ]
    assert summarise(sides, examples, [*samples, *again], conditions).b.accuracy == proportion(8, 8)


def test_texts_without_a_label_count_for_agreement_and_not_for_accuracy() -> None:
    labels = ["positive", None] * 100
    found = comparison({"a": POSITIVE, "b": right_until(150)}, labels)
    assert (*values(found.a.accuracy, found.b.accuracy), found.labelled) == (1.0, 0.75, 100)
    assert found.agreement.value == 0.75


def test_without_labels_there_is_no_accuracy() -> None:
    found = comparison({"a": POSITIVE, "b": right_until(150)}, [None] * 200)
    assert (found.a.accuracy, found.retention, found.accuracy_difference, found.mcnemar_p) == (None, None, None, None)
    assert found.agreement.value == 0.75


def test_a_multi_label_answer_is_right_when_it_has_exactly_the_labels() -> None:
    answers: dict[Key, Sequence[Answer]] = {"a": [("x", "y")] * 8, "b": [("x", "y"), ("x",)] * 4}
    found = comparison(answers, [("y", "x")] * 8, problem="multi_label")
    assert values(found.a.accuracy, found.b.accuracy, found.agreement) == (1.0, 0.5, 0.5)


def test_a_regression_has_pearsons_correlation_and_concordance_and_no_accuracy() -> None:
    labels = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    answers: dict[Key, Sequence[Answer]] = {"a": [2 * label for label in labels], "b": [0.0, 1.0] * 4}
    found = comparison(answers, labels, problem="regression")
    a, b = values(found.a.pearson, found.b.pearson)
    assert a == pytest.approx(1)
    assert b == pytest.approx(0.218, abs=0.001)
    assert found.retention == pytest.approx(b)
    assert (found.a.accuracy, found.mcnemar_p) == (None, None)
    assert found.agreement.value < 0.2  # on a scale of its own


def noisy(labels: Sequence[float], noise: float, seed: int) -> list[float]:
    return [float(one) for one in np.array(labels) + noise * np.random.default_rng(seed).normal(size=len(labels))]


def test_a_regression_that_fits_worse_is_said_to_with_an_interval() -> None:
    labels = [index % 60 / 10 for index in range(300)]
    found = comparison({"a": noisy(labels, 0.5, 1), "b": noisy(labels, 1.5, 2)}, labels, problem="regression")
    assert found.a.pearson is not None
    assert found.a.pearson.low < found.a.pearson.value < found.a.pearson.high
    difference = found.pearson_difference
    assert difference is not None
    assert found.b.pearson is not None
    assert difference.value == pytest.approx(found.b.pearson.value - found.a.pearson.value)
    assert difference.low < difference.value < difference.high < 0
    assert found.conclusions[2].startswith("B's correlation with the labels is lower than A's: -0.")


def test_two_regressions_that_fit_alike_show_no_difference() -> None:
    labels = [index % 60 / 10 for index in range(300)]
    found = comparison({"a": noisy(labels, 1, 1), "b": noisy(labels, 1, 2)}, labels, problem="regression")
    assert found.conclusions[2].startswith("No difference in correlation with the labels shown: B differs from A by")


def test_a_regression_that_answers_one_number_has_no_correlation() -> None:
    labels = [0.0, 1.0, 2.0, 3.0]
    found = comparison({"a": labels, "b": [0.5] * 4}, labels, problem="regression")
    assert (found.b.pearson, found.retention, found.pearson_difference) == (None, None, None)
    assert len(found.conclusions) == 2


@pytest.mark.parametrize("discordant", [(3, 3, 0), (200, 4, 0), (2_000, 5, 0), (2_000, 9, 2), (2_000, 7, 1)])
def test_a_few_texts_show_no_difference_in_accuracy(discordant: tuple[int, int, int]) -> None:
    texts, only_a, only_b = discordant
    labels = ["positive"] * texts
    a = ["positive"] * (texts - only_b) + ["negative"] * only_b
    b = ["negative"] * only_a + ["positive"] * (texts - only_a)
    found = comparison({"a": a, "b": b}, labels)
    assert found.mcnemar_p is not None
    assert found.mcnemar_p > 0.05
    assert found.conclusions[2].startswith("No difference in accuracy shown")


def test_a_predecessor_that_is_worse_than_nothing_has_no_retention() -> None:
    labels = [0.0, 1.0, 2.0, 3.0]
    answers: dict[Key, Sequence[Answer]] = {"a": [3.0, 1.9, 1.0, 0.0], "b": labels}
    assert comparison(answers, labels, problem="regression").retention is None


def test_a_regression_that_answers_one_number_but_for_rounding_has_no_correlation() -> None:
    labels = [float(index) for index in range(7)]
    answers: dict[Key, Sequence[Answer]] = {"a": labels, "b": [0.1 + 1e-17 * index for index in range(7)]}
    assert comparison(answers, labels, problem="regression").b.pearson is None


def test_a_predecessor_that_is_never_right_has_no_retention() -> None:
    assert comparison({"a": right_until(0), "b": POSITIVE}, POSITIVE).retention is None


def test_two_models_of_one_speed_and_accuracy_get_no_difference_shown_three_times() -> None:
    found = comparison({"a": POSITIVE, "b": POSITIVE}, POSITIVE, seconds={"a": 0.01, "b": 0.01})
    assert len(found.conclusions) == 3
    assert all(sentence.startswith("No difference in") for sentence in found.conclusions)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: conclude(Estimate(2, 1.9, 2.1), Estimate(1, 0.9, 1.1), 16, None, None)[0],
            "B is faster in latency at 1 conn",
        ),
        (
            lambda: conclude(Estimate(0.5, 0.4, 0.6), Estimate(1, 0.9, 1.1), 16, None, None)[0],
            "B is slower in latency at 1 co",
        ),
        (
            lambda: conclude(Estimate(2, 1.9, 2.1), Estimate(3, 2.9, 3.1), 16, None, None)[1],
            "B is higher in throughput at 16",
        ),
        (
            lambda: conclude(Estimate(2, 1.9, 2.1), Estimate(0.5, 0.4, 0.6), 8, None, None)[1],
            "B is lower in throughput at 8",
        ),
        (
            lambda: conclude(Estimate(1, 1, 1), Estimate(1, 1, 1), 8, Estimate(-0.02, -0.03, -0.01), 0.001)[2],
            "B is less accurate than A: -2.0 points [-3.0, -1.0]",
        ),
        (
            lambda: conclude(Estimate(1, 1, 1), Estimate(1, 1, 1), 8, Estimate(0.02, 0.01, 0.03), 0.001)[2],
            "B is more accurate than A: +2.0 points",
        ),
        (
            lambda: conclude(Estimate(1, 1, 1), Estimate(1, 1, 1), 8, Estimate(-0.01, -0.02, 0.01), 0.3)[2],
            "No difference in accuracy shown: B differs from A by -1.0 points [-2.0, +1.0]",
        ),
        (
            lambda: conclude(Estimate(1, 1, 1), Estimate(1, 1, 1), 8, Estimate(-0.01, -0.02, -0.001), 0.06)[2],
            "No difference in accuracy shown",
        ),
    ],
)
def test_a_conclusion_says_what_its_interval_allows(make: Callable[[], str], sentence: str) -> None:
    assert make().startswith(sentence)


def test_labels_that_only_one_model_knows_are_named() -> None:
    sides, examples, samples, conditions = arguments(
        {"a": POSITIVE, "b": POSITIVE}, POSITIVE, "single_label", {"a": 0.02, "b": 0.01}
    )
    other = sides.b.served.model_copy(update={"labels": ("positive", "neutral")})
    sides = sides._replace(b=Side("small", other, sides.b.server))
    found = summarise(sides, examples, samples, conditions)
    assert found.conclusions[-1] == "Only one of the two models knows these labels: negative, neutral."


def test_the_report_has_figures_table_samples_and_plots(tmp_path: Path) -> None:
    given = arguments({"a": right_until(180), "b": right_until(150)}, POSITIVE, "single_label", {"a": 0.02, "b": 0.01})
    found = summarise(*given)
    write_report(found, given[2], tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {file.name for file in folder.iterdir()} == {
        "report.json",
        "report.md",
        "samples.csv",
        "latency.png",
        "accuracy.png",
    }
    figures = json.loads((folder / "report.json").read_text())
    assert set(figures["speedup"]) == {"value", "low", "high"}
    assert set(figures["a"]["connections"]) == {"1", "16"}
    assert figures["b"]["accuracy"]["value"] == 0.75
    text = (folder / "report.md").read_text()
    assert all(sentence in text for sentence in found.conclusions)
    assert "![accuracy](accuracy.png)" in text
    assert "a processor" in text
    with (folder / "samples.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(given[2])
    assert {line["model"] for line in lines} == {"a", "b"}
    assert (folder / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_without_labels_there_is_no_plot_of_accuracy_and_no_row_for_it(tmp_path: Path) -> None:
    given = arguments({"a": POSITIVE, "b": POSITIVE}, [None] * 200, "single_label", {"a": 0.02, "b": 0.01}, local=False)
    found = summarise(*given)
    write_report(found, given[2], tmp_path)
    assert not (tmp_path / "accuracy.png").exists()
    text = (tmp_path / "report.md").read_text()
    assert "accuracy" not in text.split("Machine:")[0]
    assert "| resident memory | – | – |" in text


def test_a_regressions_table_shows_the_correlation(tmp_path: Path) -> None:
    labels = [0.0, 1.0, 2.0, 3.0]
    given = arguments({"a": labels, "b": [0.5] * 4}, labels, "regression", {"a": 0.02, "b": 0.01})
    console = Console(record=True, width=200, file=(tmp_path / "out").open("w"))
    console.print(table(summarise(*given)))
    console.file.close()
    text = console.export_text()
    assert re.search(r"Pearson's r .* 1\.0000 \[1\.0000, 1\.0000\] .* –", text)
    assert "retention" in text
    assert re.search(r"concordance .* \d\.\d{4} \[", text)
    assert "agreement" not in text


def test_a_regressions_correlation_is_drawn_against_latency(tmp_path: Path) -> None:
    labels = [float(index) for index in range(20)]
    given = arguments({"a": labels, "b": noisy(labels, 3, 1)}, labels, "regression", {"a": 0.02, "b": 0.01})
    write_report(summarise(*given), given[2], tmp_path)
    assert (tmp_path / "correlation.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "accuracy.png").exists()
    assert "![correlation](correlation.png)" in (tmp_path / "report.md").read_text()


def test_several_labels_are_joined_in_the_samples(tmp_path: Path) -> None:
    answers: dict[Key, Sequence[Answer]] = {"a": [("x", "y")] * 8, "b": [("x",)] * 8}
    given = arguments(answers, [("x",)] * 8, "multi_label", {"a": 0.02, "b": 0.01})
    write_report(summarise(*given), given[2], tmp_path)
    assert ",x|y" in (tmp_path / "samples.csv").read_text()


def test_a_folder_that_cannot_be_written_is_an_error_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = arguments({"a": POSITIVE, "b": POSITIVE}, POSITIVE, "single_label", {"a": 0.02, "b": 0.01})
    with pytest.raises(ComparisonError, match="can't be written") as caught:
        write_report(summarise(*given), given[2], tmp_path / "file" / "folder")
    assert "\n" not in str(caught.value)
