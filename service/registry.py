"""Which versions are loaded, and which of them a reference means.

The table from reference to version is replaced as a whole, so that a request sees either the old or the new one. A
version that is no longer in it answers what it has accepted and is then let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import structlog

from model_store.errors import ClassifierError, InferenceError, IntegrityError, SuccessorError
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.allocator import give_back
from service.background import on_own_thread, repeat
from service.demand import Demand
from service.errors import InvalidRequestError, ModelNotLoadedError, UnusableVersionError
from service.metrics import Metrics
from service.served_model import ServedModel

log = structlog.get_logger(__name__)

_HOUSEKEEPING_S = 1.0
# What can't be served is tried again at least this often.
_MOST_PATIENCE_S = 60.0
# A version that takes longer to load is not waited for: it is taken when it has loaded.
LOAD_PATIENCE_S = 30.0

DEFAULT_ARM = "default"
HINT = "publish one with `successor demo` or `successor build RECIPE`, or choose another store with SUCCESSOR_STORE_DIR"


@dataclass(frozen=True, slots=True)
class Route:
    """What one reference leads to."""

    model: ServedModel
    arm: str


@dataclass(frozen=True)
class Table:
    """One consistent view: what is served, under which references, and what could not be."""

    routes: dict[str, Route] = field(default_factory=dict)
    models: dict[ModelId, ServedModel] = field(default_factory=dict)
    aliases: dict[ModelId, tuple[str, ...]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Reference → why it can't be served, or only by the version that it meant before."""
    unloaded: frozenset[str] = frozenset()
    """Names that an operator has let go of by hand."""
    warnings: tuple[str, ...] = ()
    """What an operator should know of the whole."""


class Registry:
    """Loads versions from a store and finds them for requests; used on the event loop.

    Args:
        store: where versions come from.
        wanted: references to load; empty: of every name its default and its aliased versions.
        default_model: what a request means that names no model.
        load: opens and warms one version, on a thread of its own.
        metrics: the process's instruments.
        demand: names that were asked for or let go of by hand.
        load_patience_s: how long a version that loads holds up everything else that is to change.
    """

    def __init__(  # noqa: PLR0913 - what `create_app` wires, each by its name
        self,
        store: ModelStore,
        *,
        wanted: tuple[str, ...],
        default_model: str | None,
        load: Callable[[ModelId], ServedModel],
        metrics: Metrics,
        demand: Demand | None = None,
        load_patience_s: float = LOAD_PATIENCE_S,
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._default_model = default_model
        self._load = load
        self._metrics = metrics
        self.demand = demand or Demand(None)
        self._load_patience_s = load_patience_s
        self._loading: dict[ModelId, asyncio.Task[ServedModel]] = {}
        """What is being loaded, or was when nobody waited any more."""
        self._late: set[ModelId] = set()
        """Of these, those that somebody has waited for in vain."""
        self._catching_up: asyncio.Task[None] | None = None
        """Takes what has loaded late; kept here, since the loop keeps no task alive."""
        self._changing = asyncio.Lock()
        self._at_hand: dict[ModelId, ServedModel] = {}
        """Loaded before anything in the store means them; see `at_hand`."""
        self.table = Table()
        self.retired: list[ServedModel] = []
        """Versions that left the table and still have answers to give."""
        self._released = False
        """One was let go of, and what it leaves was not given back yet."""

    def route(self, reference: str | None) -> Route:
        """Find the version for a request.

        Raises:
            ModelNotLoadedError: nothing that is loaded answers to the reference.
            InvalidRequestError: the request names no model and there is no default.
        """
        name = reference if reference is not None else self._default_model
        route = self.table.routes.get(name) if name is not None else None
        if route is not None:
            return route
        there = ", ".join(sorted(self.table.routes)) or "nothing"
        if name is None:
            raise InvalidRequestError(f"name a model: this server has {there}", param="model")
        self.check_current(name)
        if name.partition("@")[0] in self.table.unloaded:
            raise ModelNotLoadedError(f"model {name[:200]!r} was unloaded: load it to have it answer", param="model")
        raise ModelNotLoadedError(f"no model {name[:200]!r} here: this server has {there}", param="model")

    def check_current(self, reference: str) -> None:
        """Refuse a reference that does not lead to what the store means by it.

        Raises:
            ModelNotLoadedError: that could not be loaded; a version that it meant before may answer.
        """
        if reference in self.table.failures:
            why = self.table.failures[reference]
            raise ModelNotLoadedError(f"model {reference!r} could not be loaded: {why}", param="model")

    async def sync(self) -> Table:
        """Load what the store has and the table lacks, swap the table, and let go of what is no longer wanted.

        A version that can't be loaded leaves the others as they are, and so do aliases that can't be read.
        """
        async with self._changing:
            demand = await on_own_thread(self.demand.all)
            unloaded = frozenset(name for name, wanted in demand.items() if not wanted)
            asked_for = [name for name, wanted in demand.items() if wanted]
            chosen, failures = await on_own_thread(self._chosen, asked_for, unloaded)
            there = await self._load_missing(chosen.values())
            models: dict[ModelId, ServedModel] = {}
            for model in sorted(set(chosen.values()), key=str):
                try:
                    models[model] = there.get(model) or self._taken(model)
                except SuccessorError as error:
                    failures.update({ref: str(error) for ref, target in chosen.items() if target == model})
                    continue
                if model not in self.table.models:
                    log.info("version loaded", model=str(model), file=models[model].classifier.artifact.file)
            self._swap(chosen, models, failures, unloaded)
            for model in [one for one, loading in self._loading.items() if loading.done()]:
                self._loading.pop(model).exception()  # nothing means it any more
            self.release_drained()
            return self.table

    async def _load_missing(self, models: Iterable[ModelId]) -> dict[ModelId, ServedModel]:
        """Begin to load what is not there, all at a time, and wait for that, but no longer than is said.

        What was begun before and is not done yet was waited for then.

        Returns:
            What was there already; the rest can be taken.
        """
        there: dict[ModelId, ServedModel] = {}
        begun = set()
        for model in set(models):
            known = self.table.models.get(model) or self._at_hand.get(model)
            if known is not None:
                there[model] = known
            elif model not in self._loading:
                loading = self._loading[model] = asyncio.create_task(on_own_thread(self._load, model))
                loading.add_done_callback(functools.partial(self._loaded, model))
                begun.add(loading)
        if begun:
            await asyncio.wait(begun, timeout=self._load_patience_s)
        return there

    def _taken(self, model: ModelId) -> ServedModel:
        """What was loaded.

        Raises:
            UnusableVersionError: it takes too long to be waited for, or failed in a way that nobody expects.
            SuccessorError: it can't be loaded.
        """
        loading = self._loading[model]
        if not loading.done():
            self._late.add(model)
            raise UnusableVersionError(
                f"{model} has not loaded within {self._load_patience_s:g} s: it is served as soon as it has"
            )
        del self._loading[model]
        error = loading.exception()
        if error is None or isinstance(error, SuccessorError):
            return loading.result()
        log.error("a load failed in an unexpected way", model=str(model), exc_info=error)
        raise UnusableVersionError(f"{model} can't be loaded: {error!r}") from error

    def _loaded(self, model: ModelId, loading: asyncio.Task[ServedModel]) -> None:
        """Take what was loaded when nobody waited for it any more, or let go of it."""
        if model in self._late and not loading.cancelled():
            self._late.discard(model)
            self._catching_up = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            await self.sync()
        except Exception:
            log.exception("what has loaded late is not served yet")

    @contextlib.asynccontextmanager
    async def at_hand(self, model: ModelId) -> AsyncIterator[None]:
        """Have a version loaded inside the block, in which a sync takes it: for one that an alias is about to mean.

        Nothing is loaded of a name that this server does not serve.

        Raises:
            StoreError: it is not in the store, or not what was published.
            UnusableVersionError: it can't be served, and nothing should mean it.
        """
        served = {one.partition("@")[0] for one in (*self._wanted, *self.table.routes)}
        if (self._wanted and model.name not in served) or model.name in self.table.unloaded:
            yield
            return
        try:
            async with self._changing:
                if model not in self.table.models:
                    there = await self._load_missing([model])
                    self._at_hand[model] = there.get(model) or self._taken(model)
        except (ClassifierError, InferenceError) as error:
            raise UnusableVersionError(f"{model} can't be served: {error}") from error
        try:
            yield
        finally:
            self._at_hand.pop(model, None)

    def _swap(
        self,
        chosen: dict[str, ModelId],
        models: dict[ModelId, ServedModel],
        failures: dict[str, str],
        unloaded: frozenset[str],
    ) -> None:
        routes: dict[str, Route] = {}
        aliases: dict[ModelId, tuple[str, ...]] = {}
        for reference, model in sorted(chosen.items()):
            selector = reference.partition("@")[2]
            is_alias = bool(selector) and not selector.isdigit()
            if is_alias:
                aliases[model] = (*aliases.get(model, ()), selector)
            served = models.get(model)
            if served is None:
                # A reference whose new version can't be loaded stays with its old one.
                previous = self.table.routes.get(reference)
                if previous is None:
                    continue
                routes[reference] = previous
                models.setdefault(previous.model.manifest.id, previous.model)
            else:
                routes[reference] = Route(served, selector if is_alias else DEFAULT_ARM)
        kept = set(map(id, models.values()))
        self.retired += [model for model in self.table.models.values() if id(model) not in kept]
        before = self.table
        self.table = Table(routes, models, aliases, failures, unloaded, self._warnings(routes, failures))
        self._metrics.loaded_versions.set(len(models))
        self._metrics.unserved_references.set(len(failures))
        self._report(before)

    def _warnings(self, routes: dict[str, Route], failures: dict[str, str]) -> tuple[str, ...]:
        warnings = []
        if not routes:
            why = next(iter(failures.values()), HINT)
            warnings.append(f"no model is loaded from {self._store.root}: {why}")
        if self._default_model is not None and self._default_model not in routes:
            warnings.append(
                f"no loaded version answers to the default model {self._default_model!r}: "
                "requests that name none are refused until SUCCESSOR_DEFAULT_MODEL names one that is loaded"
            )
        return tuple(warnings)

    def _report(self, before: Table) -> None:
        """Log what is wrong now and was not before."""
        fresh = {name: why for name, why in self.table.failures.items() if before.failures.get(name) != why}
        for why in sorted(set(fresh.values())):
            names = sorted(name for name in fresh if fresh[name] == why)
            still = [name for name in names if name in self.table.routes]
            log.warning("references not served as the store has them", references=names, error=why, still_served=still)
        for warning in self.table.warnings:
            if warning not in before.warnings:
                log.warning(warning)

    async def calibrate(self, measure: Callable[[ServedModel], Awaitable[None]]) -> None:
        """Measure each version that is loaded, now or later, once, until cancelled."""
        seen: weakref.WeakSet[ServedModel] = weakref.WeakSet()

        async def look() -> None:  # a function of its own: between looks nothing here holds a version
            for served in [one for one in self.table.models.values() if one not in seen]:
                seen.add(served)
                try:
                    await measure(served)
                except Exception:
                    log.exception("a version was not measured", model=served.reference)

        await repeat("measure what calls cost", look, _HOUSEKEEPING_S)

    async def keep_house(self) -> None:
        """Let go of retired versions as soon as they have answered everything, until cancelled.

        Their memory is given back a moment later: what counts answered batches may hold one for as long.
        """

        async def keep() -> None:
            if self._released:
                self._released = False
                await on_own_thread(give_back)
            self.release_drained()

        await repeat("release versions", keep, _HOUSEKEEPING_S)

    def release_drained(self) -> None:
        """Let go of retired versions that have answered everything."""
        for model in [one for one in self.retired if one.pending == 0]:
            self.retired.remove(model)
            self._released = True
            log.info("version released", model=str(model.manifest.id))

    async def watch(self, every_s: float) -> None:
        """Sync whenever the store's versions or aliases change, until cancelled.

        The first look syncs: the store may have changed while the table was loaded from it. What can't be served is
        tried again, more and more seldom: its files may still be arriving, or the machine may have lacked something.
        """
        seen: dict[str, tuple[object, ...]] | None = None
        patience_s, tried = every_s, time.monotonic()

        async def look() -> None:
            nonlocal seen, patience_s, tried
            now = await on_own_thread(self._snapshot)
            if now != seen:
                patience_s = every_s
            elif self.table.failures and time.monotonic() - tried >= patience_s:
                patience_s = min(2 * patience_s, _MOST_PATIENCE_S)
            else:
                return
            await self.sync()
            seen, tried = now, time.monotonic()

        await asyncio.sleep(every_s)
        await repeat("look at the store", look, every_s)

    def _snapshot(self) -> dict[str, tuple[object, ...]]:
        """What a change of the store changes; a name whose aliases can't be read counts by that."""
        snapshot: dict[str, tuple[object, ...]] = {}
        for name in self._store.names():
            versions: object = None
            aliases: object = None
            with contextlib.suppress(SuccessorError):
                versions = self._store.versions(name)
                aliases = self._store.aliases(name)
            snapshot[name] = (versions, aliases)
        return snapshot

    def _chosen(self, asked_for: list[str], unloaded: frozenset[str]) -> tuple[dict[str, ModelId], dict[str, str]]:
        """Every reference that is to be served with its version, and those that mean nothing."""
        chosen: dict[str, ModelId] = {}
        failures: dict[str, str] = {}
        for reference in [*(self._wanted or self._everything()), *asked_for]:
            if reference.partition("@")[0] in unloaded:
                continue
            try:
                chosen[reference] = self._store.resolve(reference)
            except IntegrityError as error:
                failures[reference] = str(error)
                if reference in self.table.routes:
                    chosen[reference] = self._last_meant(reference)
            except SuccessorError as error:
                failures[reference] = str(error)
        for model in set(chosen.values()):
            chosen[str(model)] = model
            self._add_names(chosen, model)
        return chosen, failures

    def _everything(self) -> list[str]:
        references: list[str] = []
        for name in self._store.names():
            references.append(name)
            try:
                references += [f"{name}@{alias}" for alias in self._store.aliases(name)]
            except SuccessorError:
                references += [one for one in self._last_names(name) if one != name]
        return references

    def _last_names(self, name: str) -> list[str]:
        """The references to versions of `name` in the table as it is."""
        return [reference for reference in self.table.routes if reference.partition("@")[0] == name]

    def _last_meant(self, reference: str) -> ModelId:
        return self.table.routes[reference].model.manifest.id

    def _add_names(self, chosen: dict[str, ModelId], model: ModelId) -> None:
        """The bare name and the aliases that mean a chosen version, even if they were not asked for."""
        try:
            for alias in self._store.aliases_of(model):
                chosen.setdefault(f"{model.name}@{alias}", model)
            if self._store.resolve(model.name) == model:
                chosen.setdefault(model.name, model)
        except SuccessorError:
            for reference in self._last_names(model.name):
                if self._last_meant(reference) == model:
                    chosen.setdefault(reference, model)
