"""Kubernetes' and KServe's types, read from their Python clients without importing or installing these.

Their models are generated from the published OpenAPI documents: each class lists its fields with their types and names.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

_SIMPLE: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "float": (int, float)}
_REQUIRED = re.compile(r"Invalid value for `(\w+)`, must not be `None`")


class PublishedTypes:
    """The classes that are declared in the models of some wheels.

    Args:
        wheels: of clients that the OpenAPI generator made.
    """

    def __init__(self, *wheels: Path) -> None:
        self._wheels = wheels

    @cached_property
    def _sources(self) -> dict[str, str]:
        """Class → the source of its module."""
        found: dict[str, str] = {}
        for wheel in self._wheels:
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if re.search(r"/models/\w+\.py$", name) and not name.endswith("__init__.py"):
                        source = archive.read(name).decode()
                        found |= dict.fromkeys(re.findall(r"^class (\w+)", source, re.MULTILINE), source)
        return found

    def problems(self, value: object, kind: str, where: str = "") -> Iterator[str]:
        """What is wrong with a value of the type `kind`, each with its place: none, if it is of that type."""
        if kind.startswith("list["):
            if not isinstance(value, list):
                yield f"{where}: not a list"
                return
            for index, item in enumerate(value):
                yield from self.problems(item, kind[5:-1], f"{where}[{index}]")
        elif kind.startswith("dict("):
            if not isinstance(value, dict):
                yield f"{where}: not a mapping"
                return
            for key, item in value.items():
                yield from self.problems(item, kind[5:-1].split(", ", 1)[1], f"{where}.{key}")
        elif kind in _SIMPLE:
            if not isinstance(value, _SIMPLE[kind]) or (isinstance(value, bool) and kind != "bool"):
                yield f"{where}: not {kind}"
        elif kind in self._sources:
            yield from self._problems_of_fields(value, self._sources[kind], where)
        elif kind not in {"object", "datetime", "ResourceQuantity", "IntOrString"}:
            yield f"{where}: {kind} is not a published type"

    def _problems_of_fields(self, value: object, source: str, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: not a mapping"
            return
        kinds, names = _literal(source, "openapi_types"), _literal(source, "attribute_map")
        fields = {names[attribute]: kind for attribute, kind in kinds.items()}
        for required in sorted({names[attribute] for attribute in _REQUIRED.findall(source)} - set(value)):
            yield f"{where}.{required}: is missing"
        for name, content in value.items():
            if name not in fields:
                yield f"{where}.{name}: unknown field"
            else:
                yield from self.problems(content, fields[name], f"{where}.{name}")


def _literal(source: str, name: str) -> dict[str, str]:
    """The dictionary that a class assigns to `name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            result: dict[str, str] = ast.literal_eval(node.value)
            return result
    raise ValueError(f"the class has no {name}")
