"""Rules, alerts and dashboard: what they ask for is what the service has."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from service.errors import OUTCOMES, ROUTING, UNEXPECTED, DeadlineUnreachableError, OverloadedError
from service.settings import Settings
from tests.docker.monitoring import (
    ROOT,
    alert_queries,
    labels_exposed,
    load_dashboard,
    load_rules,
    metrics_in,
    panel_queries,
    recorded_in,
    samples_exposed,
    without_data,
)


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in load_rules("recording.yml")}


def queries() -> dict[str, str]:
    return {**recorded(), **alert_queries(load_rules("alerts.yml")), **panel_queries(load_dashboard())}


@pytest.mark.parametrize(("name", "query"), queries().items(), ids=queries())
def test_every_query_reads_metrics_that_the_service_has_and_series_that_are_recorded(name: str, query: str) -> None:
    assert metrics_in(query) | recorded_in(query)
    assert metrics_in(query) <= set(samples_exposed())
    assert recorded_in(query) <= set(recorded())
    assert "$" not in query


def test_every_bound_that_a_rule_reads_is_a_bucket_of_its_histogram() -> None:
    bounds = [found for query in queries().values() for found in re.findall(r'(successor_\w+){le="([^"]+)"}', query)]
    assert bounds
    for metric, bound in bounds:
        assert bound in samples_exposed()[metric]


def test_errors_are_all_codes_of_500_and_above_but_those_for_what_a_client_asked() -> None:
    (reasons,) = re.findall(r'reason=~"([^"]+)"', recorded()["successor:request_errors:ratio_rate5m"])
    outcomes = (*OUTCOMES.values(), *ROUTING.values(), UNEXPECTED)
    ours = {one.code for one in outcomes if one.status >= 500 and one.type != "invalid_request_error"}
    assert sorted(reasons.split("|")) == sorted(ours)


def test_every_reason_that_a_query_names_is_one_that_the_service_has() -> None:
    codes = {one.code for one in (*OUTCOMES.values(), *ROUTING.values(), UNEXPECTED)}
    lists = [found for query in queries().values() for found in re.findall(r'reason=~?"([^"]+)"', query)]
    named = {reason for one in lists for reason in one.split("|")}
    assert named
    assert named <= codes
    (overloaded,) = re.findall(r'reason=~"([^"]+)"', recorded()["successor:requests_overloaded:ratio_rate5m"])
    assert set(overloaded.split("|")) == {OUTCOMES[error].code for error in (OverloadedError, DeadlineUnreachableError)}


@pytest.mark.parametrize(("name", "query"), queries().items(), ids=queries())
def test_every_label_that_a_query_groups_by_is_one_that_its_series_have(name: str, query: str) -> None:
    labels = {label for one in metrics_in(query) for label in labels_exposed()[one]} | {"instance", "le"}
    for recording in recorded_in(query):
        labels |= {one for found in re.findall(r"by \(([^)]+)\)", recorded()[recording]) for one in found.split(", ")}
    for found in re.findall(r"by \(([^)]+)\)", query):
        assert set(found.split(", ")) <= labels


def test_the_alerts_pass_their_own_tests() -> None:
    """The same that `promtool` says where a container engine is; Debian's package `prometheus` has it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "test", "rules", "tests.yml"],
        cwd=ROOT / "docker/prometheus",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in load_rules("alerts.yml"):
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "action"}


@pytest.mark.parametrize("expression", ["up == 0", "successor:a > successor:b", "rate(successor:a[5m]) > 1"])
def test_an_alert_that_could_not_be_looked_at_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="not a recorded series with a number"):
        alert_queries([{"alert": "Unseen", "expr": expression}])


def test_a_query_has_data_if_it_has_a_number() -> None:
    answers = {"a": [1.0], "b": [], "c": [float("nan")], "d": [float("nan"), 0.0]}
    assert without_data({name.upper(): name for name in answers}, answers.__getitem__) == ["B", "C"]


def test_prometheus_scrapes_the_service_at_its_port_and_grafana_knows_how_often() -> None:
    prometheus = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"service:{Settings.model_fields['port'].default}"]}]
    (source,) = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    assert source["url"] == "http://prometheus:9090"
    used = {target["datasource"]["uid"] for panel in load_dashboard()["panels"] for target in panel.get("targets", ())}
    assert used == {source["uid"]}


def test_the_panels_of_the_dashboard_lie_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    panels = load_dashboard()["panels"]
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
