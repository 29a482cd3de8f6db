"""Labelled texts, checked: splits that don't overlap, labels by name, digests for the lineage."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from model_store.builder.errors import DataError, OverlapError
from model_store.builder.metrics import METRICS_OF, Metric
from model_store.builder.sources import SPLITS, DataSource, RawRow
from model_store.encoding import TextItem
from model_store.manifest import DataLineage, Problem, Split

PLAIN_LABELS = {("0", "1"), ("false", "true"), ("no", "yes"), ("negative", "positive")}
"""Of these, in any case, F1 is about the second; of all others it must be said."""

_LEAST_LIKELY = 20.0  # twice e^-20, for both sides, is four in 10^9

Item = TypeVar("Item")
Target = int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text or pair.

    `target` is the label's position (single-label), a tuple of 0 and 1 for each label (multi-label) or the number
    itself (regression).
    """

    item: TextItem
    target: Target


@dataclass(frozen=True, slots=True)
class TaskData:
    """Three splits without a common text, and what is needed to name them."""

    problem: Problem
    pair: bool
    labels: tuple[str, ...]
    splits: dict[str, tuple[Row, ...]]
    lineage: DataLineage
    metrics: tuple[Metric, ...]

    @property
    def metric(self) -> Metric:
        """The main one: what decides on dev and is gated on test."""
        return self.metrics[0]

    @property
    def digest(self) -> str:
        """One digest for all splits, labels and their order."""
        return data_digest(self.problem, self.labels, self.lineage.splits)


def load_data(source: DataSource, known_labels: tuple[str, ...] | None = None, *, offline: bool = False) -> TaskData:
    """Read, check and split what a recipe names.

    Args:
        source: the recipe's data section.
        known_labels: the labels of a predecessor that is already fine-tuned, in the order of its logits.
        offline: refuse to fetch anything.

    Raises:
        DataError: the data is not there or not as the recipe says.
        OverlapError: texts occur in several splits and the recipe refuses that.
        FetchError: the data could not be fetched.
    """
    whole = source.read(offline=offline)
    raw = {split: sample(rows, source.max_rows(split)) for split, rows in whole.items()}
    for split, read in raw.items():
        if not read:
            raise DataError(f"data.{split} has no rows")
    pair = any(row.text_pair is not None for rows in raw.values() for row in rows)
    names = {split: [_names(row, source.problem) for row in rows] for split, rows in raw.items()}
    if source.problem != "regression":
        for split, taken in names.items():
            _check_shares(split, taken, whole[split])
    labels = _choose_labels(source, names, known_labels)
    rows = {
        split: tuple(
            Row(_item(row, pair=pair), _target(own, row, labels, source.problem))
            for row, own in zip(raw[split], names[split], strict=True)
        )
        for split in raw
    }
    kept, dropped = _without_overlap(rows, refuse=source.overlap == "refuse")
    if source.problem == "regression":
        _check_numbers(kept)
    lineage = DataLineage(
        source=source.describe(),
        licence=source.licence,
        splits={
            split: Split(rows=len(kept[split]), sha256=digest_rows(kept[split]), dropped_overlap=dropped[split])
            for split in SPLITS
        },
    )
    return TaskData(source.problem, pair, labels, kept, lineage, metrics_of(source, labels))


def normalised(item: TextItem) -> str:
    """What makes two texts the same: lower case, white space collapsed; of a pair, both texts in either order."""
    parts = [item.text] if item.text_pair is None else [item.text, item.text_pair]
    return "\n".join(sorted(" ".join(part.lower().split()) for part in parts))


def data_digest(problem: Problem, labels: Sequence[str], splits: Mapping[str, Split]) -> str:
    """SHA-256 of what a model is trained and judged on: the rows of every split, the labels and their order."""
    parts = [problem, *labels, *(splits[split].sha256 for split in SPLITS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def digest_rows(rows: Sequence[Row]) -> str:
    """SHA-256 of the rows as canonical JSON lines."""
    digest = hashlib.sha256()
    for row in rows:
        record = {"text": row.item.text, "text_pair": row.item.text_pair, "target": row.target}
        digest.update(json.dumps(record, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def json_records(data: TaskData, split: str) -> Iterator[dict[str, str | float | list[str]]]:
    """The rows of a split as `successor compare` reads them."""
    for row in data.splits[split]:
        record: dict[str, str | float | list[str]] = {"text": row.item.text}
        if row.item.text_pair is not None:
            record["text_pair"] = row.item.text_pair
        if isinstance(row.target, tuple):
            record["label"] = [label for label, set_ in zip(data.labels, row.target, strict=True) if set_]
        else:
            record["label"] = data.labels[row.target] if isinstance(row.target, int) else row.target
        yield record


def sample(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most `limit` items, evenly spaced, the same ones every time: files are often sorted by label."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]


def _check_numbers(rows: Mapping[str, Sequence[Row]]) -> None:
    """Refuse a split whose numbers are all one, as those of a competition's test split are that hides them.

    Raises:
        DataError: nothing could be learnt from it, and no correlation be judged.
    """
    for split, found in rows.items():
        if len({row.target for row in found}) == 1:
            raise DataError(
                f"data.{split}: the number of every row is {found[0].target}, of {len(found)} rows: name a split"
                " that has real ones"
            )


def _check_shares(split: str, taken: Sequence[tuple[str, ...]], whole: Sequence[RawRow]) -> None:
    """Refuse rows taken evenly spaced from a file whose labels come in turn, as its step may meet one of them alone.

    By Hoeffding's bound, `exp(-k·KL(share taken ‖ share of all))` for k rows, a label of a shuffled file does so once
    in 10^8 times; one of a sorted file never, as a run is met as often as its length says but for less than one row.

    Raises:
        DataError: a label's share of the rows taken is another one than its share of all.
    """
    if len(taken) == len(whole):
        return
    counts = Counter(label for row in taken for label in set(row))
    values = (row.label if isinstance(row.label, list) else [row.label] for row in whole)
    for label, count in Counter(label for row in values for label in set(map(str, row))).items():
        found, expected = counts[label], len(taken) * count / len(whole)
        distance = _divergence(found / len(taken), count / len(whole))
        if abs(found - expected) > 1 and len(taken) * distance > _LEAST_LIKELY:
            raise DataError(
                f"data.max_{split}_rows: {found} of the {len(taken)} rows taken have the label {label!r}, and {count}"
                f" of all {len(whole)}: the rows' order has a pattern, so take another number, or shuffle the file"
            )


def _divergence(first: float, second: float) -> float:
    """Kullback and Leibler's, of two shares."""
    parts = ((first, second), (1 - first, 1 - second))
    return sum(p * (math.log(p / q) if q else math.inf) for p, q in parts if p)


def metrics_of(source: DataSource, labels: tuple[str, ...]) -> tuple[Metric, ...]:
    """What a task is judged by, the main one first.

    Raises:
        DataError: its positive label is none of them, or F1 needs one to be named.
    """
    positive = labels[-1] if source.positive_label is None else source.positive_label
    if positive not in labels:
        raise DataError(f"data.positive_label: {positive!r} is no label: use {_listed(labels)}")
    if "f1" in source.metrics and source.positive_label is None:
        if len(labels) != 2:
            raise DataError(f"data.metrics: f1 of {len(labels)} labels needs data.positive_label; or use macro_f1")
        if tuple(label.lower() for label in labels) not in PLAIN_LABELS:
            raise DataError(
                f"data.positive_label: is f1 to be about {_listed(labels[:1])} or {_listed(labels[1:])}? Name the one"
            )
    return tuple(Metric(name, labels.index(positive)) for name in source.metrics or METRICS_OF[source.problem][:1])


def _item(row: RawRow, *, pair: bool) -> TextItem:
    texts = (row.text, row.text_pair) if pair else (row.text,)
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{row.where}: the text is empty or not a text: remove the row")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{row.where}: the text has half a character in it, a lone surrogate: mend it") from error
    return TextItem(*texts)


def _names(row: RawRow, problem: Problem) -> tuple[str, ...]:
    """The row's labels by name; none for a regression, whose target is a number."""
    if problem == "regression":
        return ()
    values = row.label if isinstance(row.label, list) else [row.label]
    if (problem == "single_label" and len(values) != 1) or any(
        not isinstance(value, (str, int, bool)) or value == "" for value in values
    ):
        wanted = "one label" if problem == "single_label" else "a list of labels"
        raise DataError(f"{row.where}: the label is {row.label!r}; a {problem} problem wants {wanted}")
    return tuple(str(value) for value in values)


def _choose_labels(
    source: DataSource, names: dict[str, list[tuple[str, ...]]], known: tuple[str, ...] | None
) -> tuple[str, ...]:
    if source.problem == "regression":
        if source.labels is not None and len(source.labels) != 1:
            raise DataError("data.labels: a regression has one name, that of its number")
        if known is not None and len(known) != 1:
            raise DataError(f"data.problem: the predecessor has the outputs {_listed(known)}, a regression has one")
        return source.labels or known or ("score",)
    trained = {label for row in names["train"] for label in row}
    if known is not None and source.labels not in (None, known):
        raise DataError(f"data.labels: the predecessor's labels are {_listed(known)}, in this order: remove the key")
    labels = known or source.labels or tuple(sorted(trained))
    if len(set(labels)) < len(labels):
        raise DataError(f"data.labels: {_listed(labels)} has one twice")
    origin = "the predecessor" if known else "data.labels" if source.labels else "data.train"
    for split, rows in names.items():
        strangers = sorted({label for row in rows for label in row} - set(labels))
        if strangers:
            raise DataError(
                f"data.{split}: label {_listed(strangers)} is unknown to {origin}, which has {_listed(labels)}"
            )
    if source.problem == "single_label" and len(trained) < 2:
        raise DataError(f"data.train has the only label {_listed(sorted(trained))}: at least two are needed")
    return labels


def _target(names: tuple[str, ...], row: RawRow, labels: tuple[str, ...], problem: Problem) -> Target:
    if problem == "single_label":
        return labels.index(names[0])
    if problem == "multi_label":
        return tuple(int(label in names) for label in labels)
    try:
        number = float(row.label)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{row.where}: the label is {row.label!r}; a regression wants a number")
    return number


def _without_overlap(
    rows: dict[str, tuple[Row, ...]], *, refuse: bool
) -> tuple[dict[str, tuple[Row, ...]], dict[str, int]]:
    """Drop from each split the texts that a later one has; test comes last, so it is never touched."""
    later: set[str] = set()
    kept: dict[str, tuple[Row, ...]] = {}
    dropped: dict[str, int] = {}
    for split in reversed(SPLITS):
        kept[split] = tuple(row for row in rows[split] if normalised(row.item) not in later)
        dropped[split] = len(rows[split]) - len(kept[split])
        later |= {normalised(row.item) for row in rows[split]}
    if refuse and any(dropped.values()):
        counts = ", ".join(f"{count} of data.{split}" for split, count in dropped.items() if count)
        raise OverlapError(f"texts occur in a later split too: {counts}; remove them, or set data.overlap to drop")
    for split, left in kept.items():
        if not left:
            raise DataError(f"data.{split} has no rows left: all of its texts occur in a later split")
    return kept, dropped


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(repr(label) for label in labels)
