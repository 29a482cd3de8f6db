"""The texts that a comparison drives both models with: JSON lines with text, text_pair and label."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, ValidationError

from model_store.errors import first_problem
from model_store.manifest import Problem
from service.comparison.errors import TextsError

Label = StrictStr | tuple[StrictStr, ...] | StrictFloat | StrictInt

# The largest number that a regression's label can be.
_LARGEST = sys.float_info.max
_WANTED = {"single_label": "a label's name", "multi_label": "a list of label names", "regression": "a number"}


class Example(BaseModel):
    """One text, or pair, with its label where it is known: a name, a list of names, or a regression's number."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    text: str = Field(min_length=1)
    text_pair: str | None = None
    label: Label | None = None


def read_examples(source: Path | TextIO) -> list[Example]:
    """Read JSON lines; blank lines are skipped.

    Raises:
        TextsError: not there, not UTF-8, no texts, or a line that is malformed; the message names the line.
    """
    if isinstance(source, Path):
        try:
            with source.open(encoding="utf-8-sig") as file:
                return _parse(file, str(source))
        except OSError as error:
            raise TextsError(f"the texts {source} can't be read ({error.strerror}): check --texts") from error
    return _parse(source, "standard input")


def _parse(lines: Iterable[str], name: str) -> list[Example]:
    examples = []
    number = 0
    try:
        for line in lines:
            number += 1
            if line.strip():
                examples.append(Example.model_validate_json(line))
    except UnicodeDecodeError as error:
        raise TextsError(f"{name} is not UTF-8 after line {number}: save it as UTF-8") from error
    except ValidationError as error:
        where, what = first_problem(error)
        place = f"{name}, line {number}" + (f" ({where.partition('.')[0]})" if where else "")
        raise TextsError(f'{place}: {what}; a line is {{"text": …, "text_pair"?: …, "label"?: …}}') from error
    if not examples:
        raise TextsError(f'{name} has no texts: give JSON lines {{"text": …, "text_pair"?: …, "label"?: …}}')
    return examples


def check_examples(examples: Sequence[Example], *, pair: bool, problem: Problem, labels: frozenset[str]) -> None:
    """Refuse texts that the models can't read, and labels that none of them knows.

    Args:
        examples: the texts.
        pair: whether the models read pairs.
        problem: what the models decide.
        labels: the labels that at least one of the models knows; not used for a regression.

    Raises:
        TextsError: the message numbers the text (from 1, blank lines not counted).
    """
    for number, example in enumerate(examples, start=1):
        if (example.text_pair is not None) != pair:
            raise TextsError(
                f"text {number}: the models read {'pairs: add' if pair else 'single texts: drop'} text_pair"
            )
        if not example.text.strip() or not (example.text_pair or "any").strip():
            raise TextsError(f"text {number} is empty: remove it")
        if example.label is None:
            continue
        names = _label_names(example.label, problem)
        if names is None:
            raise TextsError(f"text {number}: the label {example.label!r} should be {_WANTED[problem]}")
        unknown = sorted(names - labels)
        if unknown:
            raise TextsError(
                f"text {number}: neither model knows the label {unknown[0]!r}: they know {', '.join(sorted(labels))}"
            )


def _label_names(label: Label, problem: Problem) -> frozenset[str] | None:
    """The names in a label (none for a number); None where it does not fit the problem."""
    if problem == "regression":
        return frozenset() if isinstance(label, int | float) and abs(label) <= _LARGEST else None
    if problem == "single_label":
        return frozenset({label}) if isinstance(label, str) else None
    return frozenset(label) if isinstance(label, tuple) else None
