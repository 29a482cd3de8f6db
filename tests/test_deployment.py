"""Images, compose files, monitoring and manifests: what can be said of them without a container engine."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.errors import OUTCOMES, ROUTING, UNEXPECTED
from service.metrics import Metrics
from service.processes import _END_MARGIN_S
from service.server import _FAREWELL_S
from service.settings import PREFIX, Settings
from tests.docker.deployment import COMPOSE_FILE, DOCKERFILE, ROOT, compose_file
from tests.docker.engine import NoEngineError, must_be_own
from tests.docker.monitoring import (
    alert_queries,
    load_dashboard,
    load_rules,
    metrics_in,
    panel_queries,
    recorded_in,
    without_data,
)
from tests.docker.published_types import PublishedTypes
from tests.docker.stand_ins import base_image

KUBERNETES = ROOT / "docker" / "kubernetes"
# preStop.sleep needs 1.30.
KUBERNETES_VERSION = "1.32"
ENGINE_FILES = (DOCKERFILE, COMPOSE_FILE, ROOT / "docker-compose.gpu.yml")


def manifests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.relative_to(KUBERNETES)}, {manifest['kind']}", manifest)
        for path in sorted(KUBERNETES.rglob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
    ]


MANIFESTS = dict(manifests())
DEPLOYMENT = MANIFESTS["deployment.yaml, Deployment"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
RUNTIME = MANIFESTS["kserve/inference-service.yaml, ServingRuntime"]["spec"]
INFERENCE_SERVICE = MANIFESTS["kserve/inference-service.yaml, InferenceService"]["spec"]
ADAPTER = yaml.safe_load(MANIFESTS["metrics-adapter/config.yaml, ConfigMap"]["data"]["config.yaml"])["rules"]
SERVICE = compose_file()["services"]["service"]


def exposed() -> dict[str, set[str]]:
    """Every sample that the service exposes once it has served, with the bounds of its buckets."""
    metrics = Metrics(CollectorRegistry())
    instruments = metrics.for_model("sentiment", 1)
    for name in instruments.__slots__:
        instrument = getattr(instruments, name)
        instrument.inc() if name == "texts" else instrument.observe(0.1)
    metrics.refusals.labels("overloaded").inc()
    metrics.sample(0)
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).add(sample.labels.get("le", ""))
    return samples


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in load_rules("recording.yml")}


def queries() -> dict[str, str]:
    adapter = {f"adapter, {rule['name']['as']}": rule["seriesQuery"] for rule in ADAPTER}
    return {**recorded(), **alert_queries(load_rules("alerts.yml")), **panel_queries(load_dashboard()), **adapter}


# Monitoring


@pytest.mark.parametrize(("name", "query"), queries().items(), ids=queries())
def test_every_query_reads_metrics_that_the_service_has_and_series_that_are_recorded(name: str, query: str) -> None:
    assert metrics_in(query) | recorded_in(query)
    assert metrics_in(query) <= set(exposed())
    assert recorded_in(query) <= set(recorded())
    assert "$" not in query


def test_every_bound_that_a_rule_reads_is_a_bucket_of_its_histogram() -> None:
    bounds = [found for query in queries().values() for found in re.findall(r'(successor_\w+){le="([^"]+)"}', query)]
    assert bounds
    for metric, bound in bounds:
        assert bound in exposed()[metric]


def test_errors_are_all_codes_with_a_status_of_500_and_above() -> None:
    (reasons,) = re.findall(r'reason=~"([^"]+)"', recorded()["successor:request_errors:ratio_rate5m"])
    outcomes = (*OUTCOMES.values(), *ROUTING.values(), UNEXPECTED)
    assert sorted(reasons.split("|")) == sorted({outcome.code for outcome in outcomes if outcome.status >= 500})


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


# Images and compose files


def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_needs_nothing_that_is_fetched_to_read_it() -> None:
    assert not re.search(r"^#\s*syntax=", DOCKERFILE.read_text(), re.MULTILINE | re.IGNORECASE)


def test_every_foreign_image_has_the_tag_of_one_release() -> None:
    images = [service["image"] for service in compose_file()["services"].values() if "build" not in service]
    for image in (base_image(DOCKERFILE.read_text()), *images):
        assert re.search(r":v?\d+\.\d+\.\d+(-|$)", image), image


def test_all_that_is_copied_into_an_image_is_there_and_not_ignored() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    assert sources == set(kept)
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("path", [*ENGINE_FILES, *sorted(KUBERNETES.rglob("*.yaml"))], ids=lambda path: path.name)
def test_every_variable_of_ours_is_a_setting(path: Path) -> None:
    settings = {(PREFIX + field).upper() for field in Settings.model_fields} | {"SUCCESSOR_CACHE_DIR"}
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+", path.read_text())) <= settings


def test_no_secret_comes_from_the_environment() -> None:
    for name, service in compose_file()["services"].items():
        for variable in service.get("environment", {}):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable.removesuffix("__FILE")), (name, variable)


@pytest.mark.parametrize("name", ["service", "prometheus", "grafana", "build"])
def test_every_container_is_confined(name: str) -> None:
    service = compose_file()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert name == "build" or service["restart"] == "unless-stopped"
    for volume in service["volumes"]:
        source = volume.partition(":")[0]
        if source.startswith("./"):
            assert (ROOT / source).exists()
            assert volume.endswith(":ro")
    assert all(re.match(r"\$\{\w+:-127\.0\.0\.1:", port) for port in service.get("ports", ()))


def test_the_service_reads_the_store_that_the_build_writes() -> None:
    (written,) = [volume for volume in compose_file()["services"]["build"]["volumes"] if "/store" in volume]
    assert f"{written}:ro" in SERVICE["volumes"]


def drain_bound_s(milliseconds: str) -> float:
    """The most that a server of several processes takes to end."""
    return _FAREWELL_S + int(milliseconds) / 1e3 + _END_MARGIN_S


def test_compose_waits_longer_for_the_end_than_the_service_takes() -> None:
    assert float(SERVICE["stop_grace_period"].removesuffix("s")) > drain_bound_s(
        SERVICE["environment"]["SUCCESSOR_DRAIN_MS"]
    )


# Kubernetes


@pytest.mark.parametrize("name", [name for name in MANIFESTS if not name.startswith("kserve/")])
def test_every_manifest_is_of_kubernetes_published_schema(name: str) -> None:
    kubernetes_validate.validate(MANIFESTS[name], KUBERNETES_VERSION, strict=True)


def test_a_manifest_with_a_wrong_field_is_noticed() -> None:
    wrong = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


def test_kubernetes_waits_longer_for_the_end_than_the_service_takes() -> None:
    (container,) = POD["containers"]
    drain = {one["name"]: one.get("value") for one in container["env"]}["SUCCESSOR_DRAIN_MS"]
    sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert POD["terminationGracePeriodSeconds"] > sleep + drain_bound_s(drain)
    default = str(Settings.model_fields["drain_ms"].default)
    assert INFERENCE_SERVICE["predictor"]["terminationGracePeriodSeconds"] > drain_bound_s(default)


@pytest.mark.parametrize("container", [POD["containers"][0], RUNTIME["containers"][0]], ids=["deployment", "kserve"])
def test_probes_ask_routes_that_there_are(container: dict[str, Any]) -> None:
    routes = set(create_app(Settings()).openapi()["paths"])
    probes = {kind: probe["httpGet"]["path"] for kind, probe in container.items() if kind.endswith("Probe")}
    assert set(probes.values()) <= routes
    assert (probes["readinessProbe"], probes["livenessProbe"]) == ("/health/ready", "/health/live")


@pytest.mark.parametrize("container", [POD["containers"][0], RUNTIME["containers"][0]], ids=["deployment", "kserve"])
def test_pods_are_confined_as_the_compose_file_confines(container: dict[str, Any]) -> None:
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["readOnlyRootFilesystem"] is True
    assert {**POD["securityContext"], **security}["runAsNonRoot"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/tmp", "/var/lib/successor"}
    assert container["resources"]["limits"]["memory"]


def test_the_autoscaler_asks_for_what_the_adapter_offers() -> None:
    pods = [
        metric["pods"]
        for metric in MANIFESTS["autoscaler.yaml, HorizontalPodAutoscaler"]["spec"]["metrics"]
        if "pods" in metric
    ]
    assert [one["metric"]["name"] for one in pods] == [rule["name"]["as"] for rule in ADAPTER]


def test_everything_selects_the_pods_of_the_deployment() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert MANIFESTS["service.yaml, Service"]["spec"]["selector"] == labels
    assert MANIFESTS["disruption-budget.yaml, PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    claim = MANIFESTS["store.yaml, PersistentVolumeClaim"]["metadata"]["name"]
    assert INFERENCE_SERVICE["predictor"]["model"]["storageUri"] == f"pvc://{claim}"
    assert {"claimName": claim, "readOnly": True} in [volume.get("persistentVolumeClaim") for volume in POD["volumes"]]


def test_kserve_routes_the_open_inference_protocol_to_the_runtime() -> None:
    model = INFERENCE_SERVICE["predictor"]["model"]
    assert [model["protocolVersion"]] == RUNTIME["protocolVersions"] == ["v2"]
    assert model["modelFormat"]["name"] in {known["name"] for known in RUNTIME["supportedModelFormats"]}
    assert model["runtime"] == MANIFESTS["kserve/inference-service.yaml, ServingRuntime"]["metadata"]["name"]


# The checks' own parts


def test_an_engine_that_answers_is_used() -> None:
    assert must_be_own({"SUCCESSOR_OWN_DOCKER": "1"}, lambda *_: True) is False


def test_an_engine_without_compose_is_no_use() -> None:
    with pytest.raises(NoEngineError, match="`docker compose` does not: install it"):
        must_be_own({}, lambda *arguments: arguments == ("version",))


def test_without_an_engine_and_without_permission_it_says_why_nothing_is_checked() -> None:
    with pytest.raises(NoEngineError, match="no container engine answers, and SUCCESSOR_OWN_DOCKER=1"):
        must_be_own({}, lambda *_: False)


def test_the_base_image_is_the_one_that_no_stage_makes() -> None:
    assert base_image("FROM python:3 AS base\nFROM base AS server\n") == "python:3"
    with pytest.raises(ValueError, match="unpack"):
        base_image("FROM python:3 AS base\nFROM debian:12 AS other\n")


@pytest.fixture
def pair(tmp_path: Path) -> PublishedTypes:
    """The types of a client with one class."""
    source = """
class V1Pair(object):
    openapi_types = {'left_side': 'str', 'counts': 'dict(str, int)', 'more': 'list[V1Pair]', 'odd': 'V9Odd'}
    attribute_map = {'left_side': 'leftSide', 'counts': 'counts', 'more': 'more', 'odd': 'odd'}
    def check(self):
        raise ValueError("Invalid value for `left_side`, must not be `None`")
"""
    with zipfile.ZipFile(tmp_path / "client.whl", "w") as archive:
        archive.writestr("client/models/v1_pair.py", source)
    return PublishedTypes(tmp_path / "client.whl")


@pytest.mark.parametrize(
    ("value", "problems"),
    [
        ({"leftSide": "a", "counts": {"b": 1}, "more": [{"leftSide": "c"}]}, []),
        ({}, [".leftSide: is missing"]),
        ({"leftSide": 1}, [".leftSide: not str"]),
        ({"leftSide": "a", "left_side": "a"}, [".left_side: unknown field"]),
        ({"leftSide": "a", "counts": {"b": True}}, [".counts.b: not int"]),
        ({"leftSide": "a", "counts": []}, [".counts: not a mapping"]),
        ({"leftSide": "a", "more": [{}, 3]}, [".more[0].leftSide: is missing", ".more[1]: not a mapping"]),
        ({"leftSide": "a", "more": {}}, [".more: not a list"]),
        ({"leftSide": "a", "odd": 1}, [".odd: V9Odd is not a published type"]),
    ],
)
def test_what_is_not_of_a_published_type_is_named_with_its_place(
    pair: PublishedTypes, value: object, problems: list[str]
) -> None:
    assert list(pair.problems(value, "V1Pair")) == problems
