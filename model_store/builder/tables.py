"""Readers of text tables: from a file's content and name to `(line number, record)`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

from model_store.builder.errors import DataError

Records = Iterator[tuple[int, dict[str, Any]]]


def json_lines(content: str, name: str) -> Records:
    """One JSON object a line; empty lines are left out.

    Raises:
        DataError: a line is something else.
    """
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number} is not JSON ({error}): one object per line is wanted") from error
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number} is not a JSON object: one object per line is wanted")
        yield number, record


def table(delimiter: str) -> Callable[[str, str], Records]:
    """A reader of tables with a header row; it raises a `DataError` for a line that doesn't fit the header."""

    def read(content: str, name: str) -> Records:
        # Quotes are plain characters in TSV, as most published data sets have them.
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
        reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        try:
            for record in reader:
                if None in record or None in record.values():
                    raise DataError(f"{name}, line {reader.line_num} has not as many fields as the header")
                yield reader.line_num, record
        except csv.Error as error:
            raise DataError(f"{name}, line {reader.line_num} can't be read: {error}") from error

    return read
