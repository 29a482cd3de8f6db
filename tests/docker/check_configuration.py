"""What the tools that read the configuration say about it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.commands import run
from tests.docker.deployment import COMPOSE_FILE, ROOT, compose_file
from tests.docker.engine import Engine
from tests.docker.monitoring import DASHBOARD, RULES
from tests.docker.published_types import PublishedTypes

# The clients whose types KServe's manifests are checked against.
_CLIENTS = ("kserve==0.21.0", "kubernetes==34.1.0")
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
    # It looks for the files that the configuration names.
    key = ("--volume", "/dev/null:/run/secrets/metrics-key:ro")
    return run(
        "docker", "run", "--rm", "--network", "none", *mount, *key, "--entrypoint", "promtool", image, *arguments
    )


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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> PublishedTypes:
    """The types of KServe and of the Kubernetes that it builds on."""
    folder = tmp_path_factory.mktemp("clients")
    run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *_CLIENTS)
    return PublishedTypes(*folder.glob("*.whl"))


def kserve_manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "docker/kubernetes/kserve/inference-service.yaml").read_text()))


@pytest.mark.parametrize("index", [0, 1], ids=["runtime", "service"])
def test_kserve_knows_every_field_of_its_manifests(published: PublishedTypes, index: int) -> None:
    manifest = kserve_manifests()[index]
    kind = manifest["apiVersion"].rpartition("/")[2].capitalize() + manifest["kind"]
    assert kind in {"V1alpha1ServingRuntime", "V1beta1InferenceService"}
    assert list(published.problems(manifest, kind)) == []


def test_a_field_that_kserve_does_not_know_is_noticed(published: PublishedTypes) -> None:
    runtime, service = kserve_manifests()
    del runtime["spec"]["containers"][0]["name"]
    service["spec"]["predictor"]["model"]["storageURI"] = service["spec"]["predictor"]["model"].pop("storageUri")
    service["spec"]["predictor"]["minReplicas"] = "2"
    assert sorted(published.problems(service, "V1beta1InferenceService")) == [
        ".spec.predictor.minReplicas: not int",
        ".spec.predictor.model.storageURI: unknown field",
    ]
    assert list(published.problems(runtime, "V1alpha1ServingRuntime")) == [".spec.containers[0].name: is missing"]
