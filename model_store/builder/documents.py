"""What recipes and studies have in common as YAML files: found by path or by name, changed by `--set`, explained."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from model_store.builder.errors import RecipeError

Checked = TypeVar("Checked", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Document:
    """A file's content, unchecked."""

    content: dict[str, Any]
    file: Path
    ships: bool
    """It is one of the project's own, asked for by its name."""

    @property
    def folder(self) -> Path:
        """Where its relative paths start: the file's folder, or the working folder for one that ships."""
        return Path.cwd() if self.ships else self.file.absolute().parent


@dataclass(frozen=True, slots=True)
class DocumentKind:
    """Recipes, or studies.

    Args:
        name: what one is called in errors.
        folder: of those that ship, below the package's own.
    """

    name: str
    folder: str

    @property
    def shipped(self) -> list[str]:
        """The names of those that come with the project."""
        return sorted(path.stem for path in self._folder.glob("*.yaml"))

    @property
    def _folder(self) -> Path:
        return Path(str(importlib.resources.files("model_store"))) / self.folder

    def read(self, reference: str, keys: Iterable[str], overrides: Sequence[str] = ()) -> Document:
        """Read a shipped one by its name, or a file by its path, and apply `a.b=c` overrides.

        Raises:
            RecipeError: it isn't there, is not YAML, is no mapping with `keys`, or an override fits nowhere.
        """
        ships = reference in self.shipped
        file = self._folder / f"{reference}.yaml" if ships else Path(reference)
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(
                f"{self.name} {reference!r} can't be read ({error.strerror}): give a file's path,"
                f" or one of {', '.join(self.shipped)}"
            ) from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"{self.name} {reference!r} is not UTF-8 text") from error
        except RecursionError as error:
            raise RecipeError(f"{reference} is not a {self.name}: its parts lie too deep in each other") from error
        except (yaml.YAMLError, ValueError) as error:  # the latter: a date that can't be
            mark = getattr(error, "problem_mark", None)
            where = f" at line {mark.line + 1}" if mark else ""
            raise RecipeError(f"{reference} is not YAML{where}: {getattr(error, 'problem', None) or error}") from error
        if not isinstance(content, dict):
            raise RecipeError(f"{reference} is not a {self.name}: a mapping with {', '.join(keys)} is wanted")
        for override in overrides:
            apply_override(content, override)
        return Document(content, file, ships)


def checked(model: type[Checked], content: object) -> Checked:
    """A document's content, or a part of it, as what it is.

    Raises:
        RecipeError: a key or value is not allowed; the message names the first.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RecipeError(_first_problem(error, content)) from error


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set one key of a document, given as `a.b=c`; c is YAML, and an index of a list is a number: `steps.0.epochs=3`.

    Raises:
        RecipeError: it is not of that form, or the place isn't in the document.
    """
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override!r} is not of the form a.b=c")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"--set {override[:200]!r}: the value is not YAML") from error
    place: Any = document
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(place, list):
            if not (part.isascii() and part.isdigit()) or int(part) >= len(place):
                raise RecipeError(
                    f"--set {override!r}: {'.'.join(parts[:depth])} has the positions 0 to {len(place) - 1}"
                )
            if last:
                place[int(part)] = parsed
            else:
                place = place[int(part)]
        elif isinstance(place, dict):
            if last:
                place[part] = parsed
            else:
                place = place.setdefault(part, {})
        else:
            raise RecipeError(f"--set {override!r}: {'.'.join(parts[:depth])} holds a value, not keys")


def _first_problem(error: ValidationError, document: object) -> str:
    """The first thing that is wrong, in one line that names the key."""
    problem = error.errors(include_url=False)[0]
    path: list[str] = []
    place: Any = document
    for part in problem["loc"]:
        inside = (isinstance(place, dict) and part in place) or (isinstance(place, list) and isinstance(part, int))
        if inside:
            place = place[part]
        elif problem["type"] != "missing" or part != problem["loc"][-1]:
            continue  # the tag that chose among several types: it is no key of the document
        path.append(str(part))
    if problem["type"] == "unknown_key" and not isinstance(place, dict):
        path.pop()  # a key that chose among several types is the tag too
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path)}: {message[0].lower()}{message[1:]}" if path else message
