"""What the tools that read the configuration say about it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.docker.commands import run
from tests.docker.deployment import COMPOSE_FILE, ROOT, compose_file
from tests.docker.engine import Engine
from tests.docker.monitoring import DASHBOARD, RULES

_TYPES = "./node_modules/@grafana/schema/dist/types"
_PANELS = {"stat": "StatPanelCfg", "timeseries": "TimeSeriesPanelCfg", "heatmap": "HeatmapPanelCfg"}
# A dashboard's file has the values of enumerations as plain strings. What Grafana's own types leave open (a panel's
# options, its custom fields) has types of its own in each panel's package; a query's are those of Prometheus' editor.
_PRELUDE = f"""
import type {{ Dashboard, FieldConfig, Panel, RowPanel }} from "{_TYPES}/raw/dashboard/x/dashboard_types.gen";
import type {{ DataQuery }} from "@grafana/schema";
type Json<T> = T extends string ? `${{T}}` : T extends object ? {{ [K in keyof T]: Json<T[K]> }} : T;
type Query = DataQuery & {{
  expr: string; legendFormat: string; range: boolean; editorMode: "code"; format?: "heatmap" | "time_series";
}};
type Typed<Options, Custom> = Json<Omit<Panel, "options" | "fieldConfig" | "targets"> & {{
  options: Options;
  fieldConfig: {{ defaults: Omit<FieldConfig, "custom"> & {{ custom?: Custom }}; overrides: [] }};
  targets: Query[];
}}>;
"""


def promtool(folder: Path, *arguments: str) -> str:
    """Run the promtool of Prometheus' image on a folder of rules."""
    image = compose_file()["services"]["prometheus"]["image"]
    mount = ("--volume", f"{folder}:/rules:ro", "--workdir", "/rules")
    return run("docker", "run", "--rm", "--network", "none", *mount, "--entrypoint", "promtool", image, *arguments)


def check_dashboard(dashboard: Path, modules: Path) -> None:
    """Compile a dashboard as a value of Grafana's own types, which name every field and take no other.

    Raises:
        CommandError: it is not of those types.
    """
    content = json.loads(dashboard.read_text())
    panels = content.pop("panels")
    source = modules / "dashboard.ts"
    source.write_text(
        _PRELUDE
        + "".join(
            f'import type * as {kind} from "{_TYPES}/raw/composable/{kind}/panelcfg/x/{module}_types.gen";\n'
            for kind, module in _PANELS.items()
        )
        + f"export const dashboard: Json<Dashboard> = {json.dumps(content, indent=1)};\n"
        + "".join(
            f"export const panel{panel['id']}: {_type_of(panel)} = {json.dumps(panel, indent=1)};\n" for panel in panels
        )
    )
    options = ("--noEmit", "--strict", "--skipLibCheck", "--module", "preserve", "--target", "es2022")
    run("npx", "--no-install", "tsc", *options, source, folder=modules)


def _type_of(panel: dict[str, str]) -> str:
    kind = panel["type"]
    if kind == "row":
        return "Json<RowPanel>"
    custom = "never" if kind == "stat" else f"{kind}.FieldConfig"
    return f"Typed<{kind}.Options, {custom}>"


@pytest.mark.parametrize("gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("profile", [(), ("--profile", "build")], ids=["serve", "build"])
def test_compose_accepts_every_combination(engine: Engine, profile: tuple[str, ...], gpu: bool) -> None:
    files = [COMPOSE_FILE, *([ROOT / "docker-compose.gpu.yml"] if gpu else [])]
    run("docker", "compose", *(part for file in files for part in ("--file", file)), *profile, "config", "--quiet")


def test_promtool_accepts_the_configuration_and_the_rules(engine: Engine) -> None:
    promtool(RULES, "check", "config", "prometheus.yml")
    promtool(RULES, "check", "rules", "--lint=all", "--lint-fatal", "recording.yml", "alerts.yml")


def test_every_alert_fires_when_it_must_and_only_then(engine: Engine) -> None:
    promtool(RULES, "test", "rules", "tests.yml")


def test_the_dashboard_is_of_grafanas_types(modules: Path) -> None:
    check_dashboard(DASHBOARD, modules)
