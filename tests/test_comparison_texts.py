from __future__ import annotations

import io
from pathlib import Path

import pytest

from model_store.manifest import Problem
from service.comparison.errors import TextsError
from service.comparison.texts import Example, check_examples, read_examples

LABELS = frozenset({"negative", "positive"})


def write(folder: Path, content: str | bytes) -> Path:
    file = folder / "texts.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_lines_become_examples_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    file = write(tmp_path, '{"text": "a"}\n\n{"text": "b", "text_pair": "c", "label": "x", "id": 7}\n')
    assert read_examples(file) == [Example(text="a"), Example(text="b", text_pair="c", label="x")]


def test_standard_input_is_read_like_a_file() -> None:
    assert read_examples(io.StringIO('{"text": "a", "label": 0.5}\n')) == [Example(text="a", label=0.5)]


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "a", "label": true}',
        '{"label": "a"}',
        "{",
        "[]",
        '"text"',
        '{"text": 3}',
        '{"text": ""}',
        '{"text": "a", "label": {}}',
        '{"text": "a", "label": NaN}',
    ],
)
def test_a_malformed_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(TextsError, match="line 2") as caught:
        read_examples(write(tmp_path, f'{{"text": "a"}}\n{line}\n'))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextsError, match="can't be read"):
        read_examples(tmp_path / "none.jsonl")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextsError, match="not UTF-8"):
        read_examples(write(tmp_path, b'{"text": "\xff"}\n'))


def test_a_file_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextsError, match="has no texts"):
        read_examples(write(tmp_path, "\n \n"))


@pytest.mark.parametrize(
    ("example", "pair", "problem", "message"),
    [
        (
            Example(text="a", text_pair="b"),
            False,
            "single_label",
            "text 2: the models read single texts: drop text_pair",
        ),
        (Example(text="a"), True, "single_label", "text 2: the models read pairs: add text_pair"),
        (
            Example(text="a", label="neutral"),
            False,
            "single_label",
            "neither model knows the label 'neutral': they know n",
        ),
        (Example(text="a", label=1), False, "single_label", "the label 1 should be a label's name"),
        (Example(text="a", label=("positive",)), False, "single_label", "should be a label's name"),
        (Example(text="a", label="positive"), False, "multi_label", "should be a list of label names"),
        (Example(text="a", label=("positive", "odd")), False, "multi_label", "knows the label 'odd'"),
        (Example(text="a", label="positive"), False, "regression", "should be a number"),
    ],
)
def test_texts_that_do_not_fit_the_models_are_refused(
    example: Example, pair: bool, problem: Problem, message: str
) -> None:
    fitting = Example(text="a", text_pair="b" if pair else None)
    with pytest.raises(TextsError, match=message):
        check_examples([fitting, example], pair=pair, problem=problem, labels=LABELS)


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("positive", "single_label"),
        (("positive",), "multi_label"),
        ((), "multi_label"),
        (3, "regression"),
        (None, "regression"),
    ],
)
def test_a_label_that_fits_the_problem_is_accepted(label: object, problem: Problem) -> None:
    check_examples([Example.model_validate({"text": "a", "label": label})], pair=False, problem=problem, labels=LABELS)


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    assert read_examples(write(tmp_path, b'\xef\xbb\xbf{"text": "a"}\n')) == [Example(text="a")]


@pytest.mark.parametrize(
    ("example", "problem", "message"),
    [
        (Example(text=" "), "single_label", "text 1 is empty"),
        (Example(text="a", label=10**400), "regression", "should be a number"),
    ],
)
def test_what_a_server_would_refuse_or_no_figure_can_hold_is_refused_before(
    example: Example, problem: Problem, message: str
) -> None:
    with pytest.raises(TextsError, match=message):
        check_examples([example], pair=False, problem=problem, labels=frozenset())
