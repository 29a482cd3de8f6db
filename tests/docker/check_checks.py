"""The checks notice what they are there for: each looks at something that was broken on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.docker.check_configuration import check_dashboard, promtool
from tests.docker.commands import CommandError
from tests.docker.deployment import DOCKERFILE, Images, built, deployed
from tests.docker.engine import Engine
from tests.docker.monitoring import DASHBOARD, RULES, load_dashboard


def test_a_health_check_that_asks_the_wrong_route_is_noticed(
    engine: Engine, images: Images, full_store: ModelStore, tmp_path: Path
) -> None:
    broken = tmp_path / "Dockerfile"
    wrongly = "import sys; from service import health_check as one; one.ROUTE = '/health/wrong'; sys.exit(one.main())"
    broken.write_text(
        DOCKERFILE.read_text().replace(
            '["python", "-m", "service.health_check"]', json.dumps(["python", "-c", wrongly])
        )
    )
    assert broken.read_text() != DOCKERFILE.read_text()
    with built(engine, broken) as wrong, deployed(wrong, full_store.root, "service") as deployment:
        deployment.await_ready(within=30)
        with pytest.raises(AssertionError, match="not healthy within"):
            deployment.await_healthy("service", within=20)


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("alerts.yml", "successor:request_errors:ratio_rate5m > 0.01", "successor:request_errors:ratio_rate5m > 0.1"),
        ("alerts.yml", "successor:replicas_ready:count < 1", "successor:replicas_ready:count < 0"),
        ("recording.yml", "successor_worker_restarts_total", "successor_worker_restart_total"),
        ("recording.yml", 'reason=~"deadline_unreachable|overloaded"', 'reason="deadline_unreachable"'),
    ],
)
def test_a_rule_that_says_something_else_is_noticed(
    engine: Engine, tmp_path: Path, file: str, right: str, wrong: str
) -> None:
    rules = tmp_path / "rules"
    shutil.copytree(RULES, rules)
    before = (rules / file).read_text()
    assert right in before
    (rules / file).write_text(before.replace(right, wrong))
    with pytest.raises(CommandError, match="FAILED"):
        promtool(rules, "test", "rules", "tests.yml")


@pytest.mark.parametrize("broken", ["unknown field", "wrong type", "unknown value"])
def test_a_panel_that_grafana_would_not_understand_is_noticed(modules: Path, tmp_path: Path, broken: str) -> None:
    dashboard = load_dashboard(DASHBOARD)
    panel = next(panel for panel in dashboard["panels"] if panel["type"] == "timeseries")
    if broken == "unknown field":
        panel["fieldConfig"]["defaults"]["custom"]["lineWeight"] = 1
    elif broken == "wrong type":
        panel["gridPos"]["h"] = "8"
    else:
        panel["options"]["legend"]["placement"] = "left"
    file = tmp_path / "dashboard.json"
    file.write_text(json.dumps(dashboard))
    with pytest.raises(CommandError, match="error TS"):
        check_dashboard(file, modules)
