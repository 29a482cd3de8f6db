"""Prometheus as the compose file runs it, beside a service that has traffic."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from model_store.store import ModelStore
from tests.docker.deployment import Deployment
from tests.docker.monitoring import (
    Ask,
    alert_queries,
    load_dashboard,
    load_rules,
    panel_queries,
    without_data,
)

# Series begin at the second scrape, and rules are evaluated after that.
_PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def prometheus(running: Deployment) -> Iterator[httpx.Client]:
    """A client of its HTTP interface."""
    running.await_healthy("prometheus", within=60)
    with httpx.Client(base_url=f"{running.url('prometheus', 9090)}/api/v1") as client:
        yield client


@pytest.fixture(scope="module")
def ask(running: Deployment, full_store: ModelStore, prometheus: httpx.Client) -> Ask:
    """Asks a Prometheus that has scraped traffic: answers, and requests that were refused."""

    def answers(query: str) -> list[float]:
        reply = prometheus.get("/query", params={"query": query})
        assert reply.status_code == 200, reply.text
        return [float(sample["value"][1]) for sample in reply.json()["data"]["result"]]

    url = f"{running.url('service', 8000)}/v1/classify"
    give_up = time.monotonic() + _PATIENCE_S
    while without_data(all_queries(), answers) and time.monotonic() < give_up:
        for name in full_store.names():
            assert httpx.post(url, json={"model": name, "input": ["a good film", "dull"]}).status_code == 200
        assert httpx.post(url, json={"model": "tiny"}).status_code == 400
        time.sleep(0.25)
    return answers


def all_queries() -> dict[str, str]:
    return panel_queries(load_dashboard()) | alert_queries(load_rules("alerts.yml"))


def test_the_service_is_scraped(ask: Ask, prometheus: httpx.Client) -> None:
    targets = prometheus.get("/targets").json()["data"]["activeTargets"]
    assert [(one["labels"]["job"], one["health"], one["lastError"]) for one in targets] == [("successor", "up", "")]


def test_every_query_of_every_panel_has_data(ask: Ask) -> None:
    assert without_data(panel_queries(load_dashboard()), ask) == []


def test_every_series_that_an_alert_looks_at_has_data(ask: Ask) -> None:
    assert without_data(alert_queries(load_rules("alerts.yml")), ask) == []


def test_every_rule_is_loaded_and_can_be_evaluated(ask: Ask, prometheus: httpx.Client) -> None:
    groups = prometheus.get("/rules").json()["data"]["groups"]
    rules = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    written = {
        rule.get("alert") or rule["record"] for file in ("recording.yml", "alerts.yml") for rule in load_rules(file)
    }
    assert rules == dict.fromkeys(written, "ok")


def test_a_service_that_is_well_raises_no_alert(ask: Ask, prometheus: httpx.Client) -> None:
    alerts = prometheus.get("/alerts").json()["data"]["alerts"]
    assert [alert["labels"]["alertname"] for alert in alerts] == []


@pytest.mark.parametrize("wrong", ["successor_request_second_count", "successor_loaded_version"])
def test_a_query_for_a_metric_that_is_not_there_is_noticed(ask: Ask, wrong: str) -> None:
    """As a panel's or an alert's query would be whose metric was renamed."""
    dashboard = load_dashboard()
    panel = next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries")
    panel["targets"][0]["expr"] = f"sum(rate({wrong}[$__rate_interval]))"
    assert without_data(panel_queries(dashboard), ask) == [f"{panel['title']}, A"]
    alerts = load_rules("alerts.yml")
    alerts[0]["expr"] = "successor:replica_ready:count < 1"
    assert without_data(alert_queries(alerts), ask) == ["SuccessorNoReadyReplica, successor:replica_ready:count"]
