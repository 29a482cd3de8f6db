"""Manifests for Kubernetes and KServe: of the published schemas, and in step with the service."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.settings import Settings
from tests.docker.deployment import ROOT, drain_bound_s
from tests.docker.monitoring import metrics_in, samples_exposed
from tests.docker.published_types import PublishedTypes

KUBERNETES = ROOT / "docker" / "kubernetes"
# preStop.sleep needs 1.30.
KUBERNETES_VERSION = "1.32"


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


@pytest.mark.parametrize("pod", [POD, INFERENCE_SERVICE["predictor"]], ids=["deployment", "kserve"])
def test_links_to_services_are_not_taken_for_settings(pod: dict[str, Any]) -> None:
    assert pod["enableServiceLinks"] is False


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
    for rule in ADAPTER:
        assert metrics_in(rule["seriesQuery"]) <= set(samples_exposed())


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
