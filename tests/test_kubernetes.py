"""Manifests for Kubernetes and KServe: of the published schemas, and in step with the service."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.app import create_app
from service.settings import Settings
from tests.docker.deployment import DOCKERFILE, ROOT, drain_bound_s
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
SCALERS = {
    name.removesuffix(", HorizontalPodAutoscaler"): manifest["spec"]
    for name, manifest in MANIFESTS.items()
    if manifest["kind"] == "HorizontalPodAutoscaler"
}
LOADING = MANIFESTS["loading/pod.yaml, Pod"]["spec"]
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
    pods = [metric["pods"] for metric in SCALERS["metrics-adapter/autoscaler.yaml"]["metrics"] if "pods" in metric]
    assert [one["metric"]["name"] for one in pods] == [rule["name"]["as"] for rule in ADAPTER]
    for rule in ADAPTER:
        assert metrics_in(rule["seriesQuery"]) <= set(samples_exposed())
        assert metrics_in(rule["metricsQuery"].replace("<<.Series>>", "successor_queue_seconds_bucket")) <= set(
            samples_exposed()
        )
    (wait,) = pods
    assert parse_quantity(wait["target"]["averageValue"]) < 1  # seconds


def test_without_the_adapter_nothing_is_asked_for_that_can_not_be_had() -> None:
    """As long as one of an autoscaler's metrics can't be had, it takes no replica away."""
    plain, adapted = SCALERS["autoscaler.yaml"], SCALERS["metrics-adapter/autoscaler.yaml"]
    assert [metric["type"] for metric in plain["metrics"]] == ["Resource"]
    assert {key: value for key, value in plain.items() if key != "metrics"} == {
        key: value for key, value in adapted.items() if key != "metrics"
    }
    assert plain["metrics"][0] in adapted["metrics"]


@pytest.mark.parametrize("name", ["autoscaler.yaml", "metrics-adapter/autoscaler.yaml"])
def test_an_autoscaler_scales_the_deployment(name: str) -> None:
    target = SCALERS[name]["scaleTargetRef"]
    assert target == {key: DEPLOYMENT[key] for key in ("apiVersion", "kind")} | {"name": DEPLOYMENT["metadata"]["name"]}
    assert MANIFESTS[f"{name}, HorizontalPodAutoscaler"]["metadata"]["name"] == DEPLOYMENT["metadata"]["name"]


def test_ports_are_those_that_the_service_listens_on() -> None:
    port = Settings.model_fields["port"].default
    for container in (POD["containers"][0], RUNTIME["containers"][0]):
        assert [one["containerPort"] for one in container["ports"]] == [port]
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)
    (published,) = MANIFESTS["service.yaml, Service"]["spec"]["ports"]
    (named,) = POD["containers"][0]["ports"]
    assert published["targetPort"] == named["name"]
    probes = [probe["httpGet"]["port"] for kind, probe in RUNTIME["containers"][0].items() if kind.endswith("Probe")]
    assert set(probes) == {port}


@pytest.mark.parametrize("pod", [POD, LOADING], ids=["deployment", "loading"])
def test_pods_run_as_the_images_user_and_find_the_store_where_the_image_has_it(pod: dict[str, Any]) -> None:
    (user,) = re.findall(r"^USER (\d+)", DOCKERFILE.read_text(), re.MULTILINE)[:1]
    (store,) = set(re.findall(r"SUCCESSOR_STORE_DIR=(\S+)", DOCKERFILE.read_text()))
    (state,) = set(re.findall(r"SUCCESSOR_STATE_DIR=(\S+)", DOCKERFILE.read_text()))
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user)
    assert RUNTIME["containers"][0]["securityContext"]["runAsUser"] == int(user)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["store"] == store
    assert mounts.get("state", state) == state
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)


def test_kserves_runtime_finds_the_store_where_kserve_mounts_models() -> None:
    environment = {one["name"]: one for one in RUNTIME["containers"][0]["env"]}
    assert environment["SUCCESSOR_STORE_DIR"]["value"] == "/mnt/models"


@pytest.mark.parametrize("container", [POD["containers"][0], RUNTIME["containers"][0]], ids=["deployment", "kserve"])
def test_a_replica_has_as_many_workers_as_cores(container: dict[str, Any]) -> None:
    threads = next(one for one in container["env"] if one["name"] == "SUCCESSOR_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"] == {"resource": "limits.cpu", "divisor": "1"}


def test_what_is_commented_out_is_valid_once_it_is_not() -> None:
    optional = re.compile(r"^( *)# (- \{name: (?:SUCCESSOR_|keys)|- name: keys|  secret:)", re.MULTILINE)
    text = optional.sub(r"\1\2", (KUBERNETES / "deployment.yaml").read_text())
    manifest = yaml.safe_load(text)
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["SUCCESSOR_API_KEYS_FILE"] == f"{mounts['keys']}/keys.json"
    assert {"name": "keys", "secret": {"secretName": "successor-keys"}} in pod["volumes"]
    assert environment["SUCCESSOR_OPERATIONS_PORT"] == "9090"


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


def parse_quantity(quantity: str) -> float:
    """A number of Kubernetes, as far as it is used here."""
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


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
