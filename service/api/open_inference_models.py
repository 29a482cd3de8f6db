"""What the Open Inference Protocol tells about models, and the repository of them; the same over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field

from model_store.manifest import Manifest, ModelId, check_name
from service.api.common import Service
from service.api.tensors import TEXT, TEXT_PAIR, described
from service.errors import InvalidRequestError
from service.registry import Table

log = structlog.get_logger(__name__)

PLATFORM = "onnxruntime_onnx"
EXTENSIONS = ("binary_tensor_data", "classification", "statistics", "model_configuration", "model_repository")
_TYPES = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}


class IndexRequest(BaseModel):
    """Which of the store's versions to list."""

    model_config = ConfigDict(strict=True)

    ready: bool = Field(default=False, description="only those that answer")
    repository_name: str = Field("", description="there is one repository: left aside")


def reference_of(model: str, chosen: str = "") -> str:
    """A reference from a model's name, or a whole reference, and perhaps a version or alias beside it.

    Raises:
        InvalidRequestError: two versions.
    """
    if not chosen:
        return model
    if "@" in model:
        raise InvalidRequestError(f"{model[:200]!r} has a version: name no other one", param="version")
    return f"{model}@{chosen}"


def server_metadata() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    return {"name": "successor", "version": version("successor"), "extensions": [*EXTENSIONS]}


def metadata(service: Service, reference: str) -> dict[str, Any]:
    """Inputs and outputs of a model, and all versions of it that answer.

    Raises:
        ModelNotLoadedError: nothing that is loaded answers to the reference.
    """
    manifest = service.registry.route(reference).model.manifest
    versions = sorted(model.version for model in service.registry.table.models if model.name == manifest.name)
    return {
        "name": manifest.name,
        "versions": [str(number) for number in versions],
        "platform": PLATFORM,
        "inputs": _inputs(manifest),
        "outputs": described(manifest.scores),
    }


def _inputs(manifest: Manifest) -> list[dict[str, Any]]:
    names = (TEXT, TEXT_PAIR) if manifest.inputs.pair else (TEXT,)
    return [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in names]


def config(service: Service, reference: str) -> dict[str, Any]:
    """A model's configuration in Triton's words; what has none there, such as the labels, is in `parameters`.

    Raises:
        ModelNotLoadedError: nothing that is loaded answers to the reference.
    """
    served = service.registry.route(reference).model
    manifest = served.manifest
    facts = {
        "labels": json.dumps(manifest.scores.labels, ensure_ascii=False),
        "problem": manifest.scores.problem,
        "score_function": manifest.scores.function,
        "max_length": str(manifest.inputs.max_length),
        "truncation_side": manifest.inputs.truncation_side,
        "precision": served.classifier.artifact.precision,
    }
    return {
        "name": manifest.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"specific": {"versions": [manifest.version]}},
        "max_batch_size": 0,
        "input": [_configured(tensor) for tensor in _inputs(manifest)],
        "output": [_configured(tensor) for tensor in described(manifest.scores)],
        "default_model_filename": served.classifier.artifact.file,
        "parameters": {name: {"string_value": value} for name, value in facts.items()},
    }


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "data_type": _TYPES[tensor["datatype"]], "dims": tensor["shape"]}


async def statistics(service: Service, reference: str | None) -> dict[str, Any]:
    """What versions have done since the server started, in all of its processes; nanoseconds.

    Args:
        service: the running service.
        reference: one version; None: every one that is loaded.

    Raises:
        ModelNotLoadedError: nothing that is loaded answers to the reference.
    """
    if reference is None:
        wanted = sorted(service.registry.table.models, key=str)
    else:
        wanted = [service.registry.route(reference).model.manifest.id]
    service.engine.sample()
    values = await asyncio.to_thread(service.metrics.values)
    return {"model_stats": [_statistics(model, values) for model in wanted]}


def _statistics(model: ModelId, values: dict[tuple[str, str, str], float]) -> dict[str, Any]:
    def value(name: str) -> float:
        return values.get((f"successor_{name}", model.name, str(model.version)), 0.0)

    def duration(name: str) -> dict[str, int]:
        return {"count": int(value(f"{name}_seconds_count")), "ns": int(value(f"{name}_seconds_sum") * 1e9)}

    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": int(value("last_request_timestamp_seconds") * 1e3),
        "inference_count": int(value("texts_total")),
        "execution_count": int(value("inference_seconds_count")),
        "inference_stats": {
            "success": duration("request"),
            "fail": {"count": int(value("failed_requests_total")), "ns": 0},
            "queue": duration("queue"),
            "compute_input": duration("tokenisation"),
            "compute_infer": duration("inference"),
            "compute_output": {"count": 0, "ns": 0},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }


async def index(service: Service, *, only_ready: bool) -> list[dict[str, str]]:
    """Every version in the store, whether it answers, and if not why."""
    there = await asyncio.to_thread(service.store.ids)
    table = service.registry.table
    listed = sorted({*there, *table.models}, key=lambda model: (model.name, model.version))
    entries = [_indexed(model, table) for model in listed]
    return [entry for entry in entries if entry["state"] == "READY" or not only_ready]


def _indexed(model: ModelId, table: Table) -> dict[str, str]:
    ready = model in table.models
    reason = ""
    if not ready:
        reason = table.failures.get(str(model)) or ("unloaded" if model.name in table.unloaded else "not asked for")
    return {
        "name": model.name,
        "version": str(model.version),
        "state": "READY" if ready else "UNAVAILABLE",
        "reason": reason,
    }


async def demand(service: Service, name: str, *, wanted: bool) -> None:
    """Load what the store has of a name, or let go of it, in every server process, before this returns.

    Raises:
        InvalidReferenceError: not a bare name.
        ModelNotFoundError: the store has nothing of that name.
        ModelNotLoadedError: it can't be loaded; the message has the reason.
        NotAcknowledgedError: another server process has not done so; see `Service.sync`.
    """
    check_name(name)
    registry = service.registry
    if wanted or name not in {model.name for model in registry.table.models} | registry.table.unloaded:
        await asyncio.to_thread(service.store.resolve, name)
    await asyncio.to_thread(registry.demand.set, name, wanted=wanted)
    log.info("asked for by hand" if wanted else "let go of by hand", name=name)
    await service.sync(name)
    if wanted:
        registry.check_current(name)
        registry.route(name)
