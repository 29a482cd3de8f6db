"""What rules and dashboard ask Prometheus, and whether it has an answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from service.metrics import Metrics, Observations

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "prometheus"
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "successor.json"

Ask = Callable[[str], list[float]]

# Grafana's variables, and what a check puts in their place.
_VARIABLES = {"$__rate_interval": "1m", "$model": ".*"}
_COMPARISON = re.compile(r"(successor:\S+) [<>]=? [\d.]+")


def load_dashboard(path: Path = DASHBOARD) -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    dashboard: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return dashboard


def load_rules(file: str, folder: Path = RULES) -> list[dict[str, Any]]:
    """The rules of all groups of a file."""
    return [rule for group in yaml.safe_load((folder / file).read_text())["groups"] for rule in group["rules"]]


def panel_queries(dashboard: Mapping[str, Any]) -> dict[str, str]:
    """Every query of every panel, by the panel's title, with Grafana's variables replaced."""
    queries = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for name, value in _VARIABLES.items():
                query = query.replace(name, value)
            queries[f"{panel['title']}, {target['refId']}"] = query
    return queries


def alert_queries(rules: list[dict[str, Any]]) -> dict[str, str]:
    """The recorded series that every alert compares with a number, by the alert's name.

    Raises:
        ValueError: an alert is something else than such comparisons joined by `and`: it couldn't be looked at.
    """
    queries = {}
    for rule in rules:
        for part in rule["expr"].split(" and "):
            comparison = _COMPARISON.fullmatch(part)
            if comparison is None:
                raise ValueError(f"{rule['alert']} compares {part!r}, not a recorded series with a number")
            queries[f"{rule['alert']}, {comparison[1]}"] = comparison[1]
    return queries


def metrics_in(query: str) -> set[str]:
    """The service's metrics that a query reads, as the service exposes them."""
    return set(re.findall(r"\bsuccessor_\w+", query))


def recorded_in(query: str) -> set[str]:
    """The recorded series that a query reads."""
    return set(re.findall(r"\bsuccessor:[\w:]+", query))


def without_data(queries: Mapping[str, str], ask: Ask) -> list[str]:
    """The names of those queries that have no answer, or none that is a number."""
    return [name for name, query in queries.items() if all(map(math.isnan, ask(query)))]


def samples_exposed() -> dict[str, set[str]]:
    """The samples that a service exposes that has served, by name, with the bounds of their buckets."""
    samples: dict[str, set[str]] = {}
    for sample in _exposed():
        samples.setdefault(sample.name, set()).add(sample.labels.get("le", ""))
    return samples


def labels_exposed() -> dict[str, set[str]]:
    """The samples that a service exposes that has served, by name, with the names of their labels."""
    return {sample.name: set(sample.labels) for sample in _exposed()}


def _exposed() -> list[Sample]:
    metrics = Metrics(CollectorRegistry())
    instruments = metrics.for_model("sentiment", 1)
    for name in instruments.__slots__:
        instrument = getattr(instruments, name)
        if isinstance(instrument, Observations):
            instrument.observe(0.1)
        else:
            instrument.inc()
    metrics.refusals.labels("overloaded").inc()
    metrics.sample(0)
    families = text_string_to_metric_families(metrics.expose().decode())
    return [sample for family in families for sample in family.samples]
