"""What is served, whether it is well, its metrics, and administration."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Depends, Request, Response, params
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import HTMLResponse

from model_store.manifest import Problem
from service.access import Permission
from service.api.access import asked_over_http, authorise, check_port
from service.api.common import ErrorAnswer, Service, read_body
from service.api.docs_page import DOCS_PAGE
from service.api.parsing import parse_body
from service.registry import Table

log = structlog.get_logger(__name__)

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "a name, an alias or the body is not as it must be",
        404: "no such version, or the route is on the server's other port",
        409: "the store can't be changed, or the version is not whole or can't be served",
        413: "the body is too large",
        500: "something unexpected",
        504: "another server process did not say in time that it did the same, or could not do it",
    }.items()
}


class ModelCard(BaseModel):
    """One loaded version."""

    id: str = Field(examples=["sentiment@3"])
    object: Literal["model"] = "model"
    created: int = Field(description="seconds since 1970")
    owned_by: str = "successor"
    name: str
    version: int
    aliases: list[str]
    file: str = Field(description="the file that answers")
    precision: str
    bytes: int = Field(description="size of that file")
    batch_invariant: bool = Field(description="answers don't depend on batch-mates: texts are batched")
    labels: list[str]
    problem: Problem
    pair: bool = Field(description="reads [text, pair]")
    max_length: int = Field(description="tokens that it reads")
    provider: str
    threads: int = Field(description="workers, each of which runs one call at a time")
    lone_session: bool = Field(description="a second copy of the weights serves lone requests with all cores")


class ModelList(BaseModel):
    """What is loaded."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    failures: dict[str, str] = Field(
        default={}, description="reference → why it can't be served, or only by the version that it meant before"
    )


class Health(BaseModel):
    """Whether the server works, and if not, what to do."""

    status: Literal["ok", "unavailable"]
    detail: str = ""
    models: list[str] = []
    failures: dict[str, str] = Field(
        default={}, description="reference → why it can't be served, or only by the version that it meant before"
    )


class Promotion(BaseModel):
    """Where an alias is to point."""

    model_config = ConfigDict(
        extra="allow",  # `parse_body` refuses them
        strict=True,
        json_schema_extra={"additionalProperties": False, "example": {"version": 3}},
    )

    version: int = Field(ge=1)


def running(request: Request) -> Service:
    """The running service."""
    service: Service = request.state.service
    return service


Running = Annotated[Service, Depends(running)]


def permitted(permission: Permission) -> list[params.Depends]:
    """What lets only those through who may do it, before a body is read; see `authorise`."""

    async def check(service: Running, request: Request) -> None:
        check_port(service, request.scope, permission)
        authorise(service, dict(request.scope["headers"]), permission, lambda: asked_over_http(request.scope))

    return [Depends(check)]


async def promotion_of(service: Running, request: Request) -> Promotion:
    """The body of a promotion, within the server's limit; FastAPI itself would read one of any size.

    Raises:
        BodyTooLargeError: more bytes than the server reads.
        ClientGoneError: the connection was closed before its end.
        InvalidRequestError: not what `Promotion` says.
    """
    body = await read_body(service, request.receive, dict(request.scope["headers"]))
    return parse_body(Promotion, body, {})


router = APIRouter()


@router.head("/docs", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
async def docs() -> HTMLResponse:
    """The API for people."""
    return HTMLResponse(DOCS_PAGE)


@router.head("/v1/models", include_in_schema=False, dependencies=permitted("infer"))
@router.get("/v1/models", tags=["models"], dependencies=permitted("infer"))
async def list_models(service: Running) -> ModelList:
    """The versions that answer, and what each of them reads and says."""
    table = service.registry.table
    return ModelList(data=cards(table, service.engine.workers, service.provider), failures=table.failures)


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", tags=["health"])
async def live() -> Health:
    """The process works; restart it when this fails."""
    return Health(status="ok")


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", tags=["health"], responses={503: {"model": Health}})
async def ready(service: Running, response: Response) -> Health:
    """Requests will be answered; send none while this fails. Where models need a key, it names none."""
    table = service.registry.table
    obstacle = service.obstacle
    if not service.open_to_all:
        response.status_code = 200 if obstacle is None else 503
        return Health(status="ok" if obstacle is None else "unavailable", detail=obstacle or "")
    if obstacle is None:
        detail = "; ".join(table.warnings)
        return Health(status="ok", detail=detail, models=sorted(map(str, table.models)), failures=table.failures)
    response.status_code = 503
    return Health(status="unavailable", detail=obstacle, failures=table.failures)


@router.head("/metrics", include_in_schema=False, dependencies=permitted("metrics"))
@router.get("/metrics", tags=["health"], response_class=Response, dependencies=permitted("metrics"))
async def metrics(service: Running) -> Response:
    """Prometheus text, of all server processes; gauges and histograms of the others are up to half a second old."""
    service.engine.sample()
    return Response(await asyncio.to_thread(service.metrics.expose), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.post("/v1/admin/sync", tags=["administration"], responses=FAILURES, dependencies=permitted("admin"))
async def sync(service: Running) -> ModelList:
    """Load what is new in the store and let go of what is no longer wanted, in every server process."""
    await service.sync()
    return await list_models(service)


@router.put(
    "/v1/admin/models/{name}/aliases/{alias}",
    tags=["administration"],
    responses=FAILURES,
    dependencies=permitted("admin"),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": Promotion.model_json_schema()}}}
    },
)
async def promote(
    name: str, alias: str, promotion: Annotated[Promotion, Depends(promotion_of)], service: Running
) -> ModelList:
    """Point an alias at a version and serve it, in every server process, before this answers.

    A version that can't be served is refused, and the alias stays where it was.
    """
    store = service.store
    model = await asyncio.to_thread(store.resolve, f"{name}@{promotion.version}")
    async with service.registry.at_hand(model):
        await asyncio.to_thread(store.promote, model, alias)
        log.info("alias moved", alias=f"{name}@{alias}", model=str(model))
        await service.sync(name)
    return await list_models(service)


def cards(table: Table, threads: int, provider: str) -> list[ModelCard]:
    """The loaded versions of a table."""
    return [
        ModelCard(
            id=str(model),
            created=int(served.manifest.created.timestamp()),
            name=model.name,
            version=model.version,
            aliases=list(table.aliases.get(model, ())),
            file=served.classifier.artifact.file,
            precision=served.classifier.artifact.precision,
            bytes=served.classifier.artifact.bytes,
            batch_invariant=served.classifier.artifact.batch_invariant,
            labels=list(served.manifest.scores.labels),
            problem=served.manifest.scores.problem,
            pair=served.manifest.inputs.pair,
            max_length=served.manifest.inputs.max_length,
            provider=provider,
            threads=threads,
            lone_session=served.lone is not None,
        )
        for model, served in sorted(table.models.items(), key=lambda entry: str(entry[0]))
    ]
