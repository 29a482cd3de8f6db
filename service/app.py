"""`create_app`: the only place where the service is wired together."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.middleware.cors import CORSMiddleware

from model_store.classifier import (
    PROVIDERS,
    check_runtime_installation,
    choose_provider,
    installed_providers,
    provider_starts,
)
from model_store.errors import RuntimeInstallationError
from model_store.extras import remedy
from model_store.seats import seats_for
from model_store.store import ModelStore
from service import telemetry
from service.access import Keyring
from service.api.application import Application
from service.api.common import Service
from service.api.dialects import TABLE
from service.api.reference import document
from service.background import on_own_thread
from service.control import Control
from service.demand import Demand
from service.engine import Engine
from service.loading import Loader
from service.metrics import Metrics
from service.registry import Registry
from service.settings import Settings

if TYPE_CHECKING:
    from service.tracing import Tracing

log = structlog.get_logger(__name__)

# How long a collector may take at the end.
_LAST_SPANS_S = 2.0

DESCRIPTION = """Classifies texts with the models of a store. A request names a model: `sentiment` (its production
version), `sentiment@3` (a version) or `sentiment@canary` (an alias). Every error has the same shape."""


def create_app(
    settings: Settings,
    control_dir: Path | None = None,
    open_tracing: Callable[[], Tracing | None] = telemetry.open_tracing,
) -> FastAPI:
    """The application; its lifespan owns the engine and the registry.

    Args:
        settings: what to serve, and how.
        control_dir: a folder that all processes of one server share, where it has several.
        open_tracing: what makes spans, if anything does.

    Raises:
        RuntimeInstallationError: ONNX Runtime is missing or there twice.
        ProviderNotAvailableError: the provider that was asked for isn't there, or does not start.
    """
    provider = check_installation(settings)
    app = Application(
        title="Successor",
        description=DESCRIPTION,
        lifespan=lambda _: running(settings, provider, control_dir, open_tracing),
    )
    document(app, TABLE, keys=settings.api_keys_file is not None)
    if settings.cors_origins:
        # Outermost: a preflight carries no key, and refusals must be readable too.
        app.outermost = CORSMiddleware(
            app.answer,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("*",),
        )
    return app


def check_installation(settings: Settings, *, try_provider: bool = True) -> str:
    """The execution provider to run on.

    Args:
        settings: what to serve, and how.
        try_provider: see whether it starts, which for a GPU takes some of its memory for as long as this process lives.

    Raises:
        RuntimeInstallationError: ONNX Runtime is missing or there twice.
        ProviderNotAvailableError: the provider that was asked for isn't there, or does not start.
    """
    check_runtime_installation()
    if settings.grpc_port is not None and importlib.util.find_spec("grpc") is None:
        raise RuntimeInstallationError(f"gRPC needs grpcio: {remedy('grpc')}, or unset SUCCESSOR_GRPC_PORT")
    return choose_provider(settings.provider, starts=provider_starts if try_provider else lambda _: True)


@contextlib.asynccontextmanager
async def running(
    settings: Settings, provider: str, control_dir: Path | None, open_tracing: Callable[[], Tracing | None]
) -> AsyncIterator[dict[str, Service]]:
    """A service that is ready inside the block: models loaded, workers started; all ended after it."""
    metrics = Metrics(CollectorRegistry())
    on_cpu = provider == PROVIDERS["cpu"]
    if on_cpu and settings.provider == "auto" and PROVIDERS["cuda"] in installed_providers():
        log.warning("CUDA does not start here: models run on the CPU; check its driver and libraries")
    workers = settings.workers(on_cpu=on_cpu)
    store = ModelStore(settings.store_dir)
    loader = Loader(
        store=store,
        provider=provider,
        workers=workers,
        seats=seats_for(workers) if settings.processes == 1 else None,  # processes would choose the same
        lone_max_bytes=settings.lone_max_bytes,
        max_batch_texts=settings.batch_texts(on_cpu=on_cpu),
        metrics=metrics,
        costs_dir=settings.state_dir / "costs" if settings.state_dir is not None else None,
    )
    shared_dir = settings.state_dir or control_dir
    registry = Registry(
        store,
        wanted=settings.models,
        default_model=settings.default_model,
        load=loader,
        metrics=metrics,
        demand=Demand(shared_dir / "demand" if shared_dir is not None else None),
    )

    async def synced() -> Mapping[str, str]:
        return (await registry.sync()).failures

    control = None if control_dir is None else Control(control_dir, synced)
    keyring = None if settings.api_keys_file is None else Keyring(settings.api_keys_file, control_dir)
    await (registry.sync() if control is None else control.begin())
    engine = Engine(
        workers=workers,
        metrics=metrics,
        max_wait_s=settings.max_wait_ms / 1e3,
        stuck_call_s=settings.stuck_call_ms / 1e3,
        worker_niceness=settings.worker_niceness,
    )
    tasks = [asyncio.create_task(registry.calibrate(lambda served: loader.calibrate(served, lambda: engine.idle)))]
    tasks.append(asyncio.create_task(registry.keep_house()))
    if settings.store_poll_ms:
        tasks.append(asyncio.create_task(registry.watch(settings.store_poll_ms / 1e3)))
    if control is not None:
        tasks.append(asyncio.create_task(control.follow()))
    if keyring is not None:
        tasks.append(asyncio.create_task(keyring.follow()))
    port = settings.operations_port
    tracing = open_tracing()
    service = Service(settings, provider, store, engine, registry, metrics, control, keyring, port, tracing)
    try:
        async with _grpc(service):
            yield {"service": service}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()
        if keyring is not None:
            keyring.close()
        for served in registry.table.models.values():
            loader.keep(served.classifier, served.cost)
        if tracing is not None:
            try:
                await asyncio.wait_for(on_own_thread(tracing.close), _LAST_SPANS_S)
            except TimeoutError:
                log.warning("the last spans were not taken", within_s=_LAST_SPANS_S)


def _grpc(service: Service) -> contextlib.AbstractAsyncContextManager[object]:
    """The gRPC server, where there is a port for it; grpcio is imported only then."""
    if service.settings.grpc_port is None:
        return contextlib.nullcontext()
    from service.api.open_inference_grpc import serving

    return serving(service)
