"""The models that may be served, and the way in and out for each: loaded and checked beside those that answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from edgemux.cloud.config import CloudConfig, ModelSettings
from edgemux.cloud.events import ModelAway, ModelGone, ModelKept, ModelNotLoaded, ModelReady
from edgemux.cloud.hosting import Loaded, host, load, open_far
from edgemux.cloud.metrics import Metrics
from edgemux.cloud.service import CloudService, Hosted
from edgemux.cloud.versions import Source, mark, sources
from edgemux.multiplexer.errors import (
    ArtifactError,
    ConfigError,
    EdgemuxError,
    ExecutionError,
    InputError,
    UnknownModel,
)
from edgemux.wire import oip_pb2 as oip
from edgemux.wire.events import Name, kind, places, tell, why
from edgemux.wire.process import Announce
from edgemux.wire.worker import Worker

UNLOADED = "unloaded"
# How often another server is asked whether it is ready.
FOLLOW_S = 1.0
# How often it is looked whether a version that was replaced still answers somebody.
LOOK_S = 0.05

_log = logging.getLogger("edgemux.cloud")


async def _nobody(name: str, ready: bool) -> None:
    """Nobody wants to know."""


class Repository:
    """Loads, replaces and unloads models; the servicer of the admin address. Lives in one event loop.

    A model is replaced as a whole: all of its versions that the policy serves are loaded, checked and measured in a
    thread, while the old ones answer; then they are swapped, and the old ones closed once nobody is inside. When one of
    them is broken the old ones stay, and the index says why. The tails of a bundle's splits are models of their own,
    that come and go with the bundle.
    """

    def __init__(self, config: CloudConfig, service: CloudService, metrics: Metrics) -> None:
        self.announce: Announce = _nobody
        self._config = config
        self._service = service
        self._metrics = metrics
        self._settings: dict[str, ModelSettings] = {}
        self._marks: dict[str, Any] = {}
        # The tails that a configured model had when it was last loaded.
        self._tails: dict[str, tuple[str, ...]] = {}
        self._loader = Worker("edgemux-loading", asyncio.get_running_loop())
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Load what is configured. Raises ArtifactError, and ConfigError where two models have one name."""
        for settings in self._config.every_model():
            marked = mark(settings)
            far = settings.kind == "address"
            hosted = await (self._sought(settings) if far else self._opened(settings))
            name = hosted[0].served.name if hosted else settings.name or ""
            twice = self._taken([name, *(each.served.name for each in hosted)])
            if twice is not None:
                raise ConfigError(f"models: several are named {twice}; give each a name of its own")
            self._settings[name], self._marks[name] = settings, marked
            self._put(name, hosted)
            if hosted:
                self._tell_ready(name)
            if far:
                self._keep(self._follow(name))
        if self._config.reload_s > 0:
            self._keep(self._watch())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises InputError."""
        return await self._service.RepositoryIndex(request, context)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel, InputError, and ArtifactError naming the file when the old versions stay."""
        _refuse_foreign(request)
        await self.load(request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Raises UnknownModel, InputError."""
        _refuse_foreign(request, "unload_dependents")
        await self.unload(request.model_name)
        return oip.RepositoryModelUnloadResponse()

    async def load(self, name: str) -> None:
        """Load a model, or load it again. Raises UnknownModel, and ArtifactError when the old versions stay."""
        settings = self._known(name)
        async with self._turn:
            self._marks[name] = mark(settings)
            hosted = await self._opened(settings, name)
            before = self._models_of(name)
            self._forget(name)
            self._retire(self._put(name, hosted))
            self._tell_ready(name)
            await self._announce(dict.fromkeys([*self._models_of(name), *before]))

    async def unload(self, name: str) -> None:
        """Serve a model no more; requests that are inside are answered. Raises UnknownModel."""
        self._known(name)
        async with self._turn:
            gone = self._put(name, [])
            self._forget(name)
            for each in gone:
                self._service.absent[each.served.name, each.served.version] = UNLOADED
            self._retire(gone)
            tell(_log, ModelGone(model=Name(name)))
            await self._announce(self._models_of(name))

    @property
    def names(self) -> tuple[str, ...]:
        """What is configured, served or not, and its tails."""
        return tuple(model for name in self._settings for model in self._models_of(name))

    def announced(self, announce: Announce) -> None:
        """Tell ``announce`` of models that come and go, and now of those that are not there."""

        self.announce = announce
        self._keep(self._announce(self.names))

    async def close(self) -> None:
        """Load nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._loader.stop()

    async def _announce(self, names: Iterable[str]) -> None:
        here = {each.served.name for each in self._service.hosted}
        for name in names:
            await self.announce(name, name in here)

    def _models_of(self, name: str) -> tuple[str, ...]:
        """A configured model and its tails."""
        return (name, *self._tails.get(name, ()))

    def _taken(self, names: Iterable[str], own: str | None = None) -> str | None:
        """The first of ``names`` that is another model's than the configured ``own``'s."""
        taken = {model for name in self._settings if name != own for model in self._models_of(name)}
        return next((name for name in names if name in taken), None)

    def _put(self, name: str, hosted: Sequence[Hosted]) -> list[Hosted]:
        """Serve these versions of a configured model and of its tails; returns those that are served no more."""
        models: dict[str, list[Hosted]] = {model: [] for model in self._models_of(name)}
        for each in hosted:
            models.setdefault(each.served.name, []).append(each)
        if hosted:
            self._tails[name] = tuple(model for model, versions in models.items() if versions and model != name)
        return [gone for model, versions in models.items() for gone in self._service.put(model, versions)]

    def _tell_ready(self, name: str) -> None:
        for model in self._models_of(name):
            tell(_log, ModelReady(model=Name(model), versions=len(self._service.versions(model))))

    def _known(self, name: str) -> ModelSettings:
        settings = self._settings.get(name)
        if any(name in tails for tails in self._tails.values()):
            raise InputError("model_name", "the tail of a split comes and goes with its bundle")
        if settings is None:
            raise UnknownModel("model_name", "no such model is configured here")
        return settings

    def _is_unloaded(self, name: str) -> bool:
        return any(key[0] == name and why == UNLOADED for key, why in self._service.absent.items())

    def _forget(self, name: str) -> None:
        models = self._models_of(name)
        self._service.absent = {key: why for key, why in self._service.absent.items() if key[0] not in models}

    async def _opened(self, settings: ModelSettings, name: str | None = None) -> list[Hosted]:
        """All versions that are to be served. Raises ArtifactError, and notes under ``name`` which is broken."""
        if settings.kind == "address":
            return await self._found(settings)
        found: Sequence[Source] = ()
        loaded: list[Loaded] = []
        at: Source | None = None
        try:
            found = sources(settings)
            for at in found:
                several = await self._load(settings, at)
                loaded += several
                if name is not None:
                    self._check_again(name, at, several)
        except EdgemuxError as error:
            for each in loaded:
                each.backend.close()
            if name is not None:
                self._service.absent[name, (at.version if at is not None else "") or ""] = str(error)
                tell(_log, ModelKept(model=Name(name), why=why(error)))
            raise
        return [host(each, settings, self._config, self._metrics) for each in loaded]

    def _check_again(self, name: str, at: Source, loaded: Sequence[Loaded]) -> None:
        """Raises ArtifactError for a name that has become another, or another model's."""
        now, *tails = (each.served.name for each in loaded)
        if now != name:
            raise ArtifactError(f"{at.path.name}: is named {now} now")
        taken = self._taken(tails, name)
        if taken is not None:
            raise ArtifactError(f"{at.path.name}: has a split whose tail is named as another model, {taken}")

    async def _found(self, settings: ModelSettings) -> list[Hosted]:
        """A model of another server. Raises ConfigError, and ExecutionError when that is away, which is noted."""
        try:
            return await open_far(settings, self._config, self._metrics)
        except ExecutionError as error:
            self._service.absent[settings.name or "", ""] = str(error)
            raise

    async def _sought(self, settings: ModelSettings) -> list[Hosted]:
        """None when the other server is away: the models that are here are served meanwhile. Raises ConfigError."""
        try:
            return await self._found(settings)
        except ExecutionError as error:
            tell(_log, ModelAway(model=Name(settings.name or ""), why=why(error)))
            return []

    async def _follow(self, name: str) -> None:
        """A model of another server is ready as that says, and described anew whenever that has come back."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            hosted = next((each for each in self._service.hosted if each.served.name == name), None)
            if hosted is None and self._is_unloaded(name):
                continue
            if hosted is not None and hosted.follows is not None:
                ready = await hosted.follows()
                if ready is not bool(hosted.away):
                    continue
                if not ready:
                    hosted.away = "the server that answers for it is away, or says that it is not ready"
                    tell(_log, ModelAway(model=Name(name)))
                    await self.announce(name, False)
                    continue
            try:
                await self.load(name)
            except EdgemuxError:
                continue  # said by the index; as it was, not ready

    async def _load(self, settings: ModelSettings, source: Source) -> tuple[Loaded, ...]:
        """``hosting.load`` in the thread. Raises what it raises, and ArtifactError for anything foreign."""
        try:
            return await self._loader.result(partial(load, settings, source, self._config))
        except EdgemuxError:
            raise
        except Exception as error:
            tell(_log, ModelNotLoaded(file=Name(source.path.name), error=kind(error), at=places(error)))
            raise ArtifactError(f"{source.path.name}: could not be loaded ({type(error).__name__})") from error

    def _retire(self, hosted: Sequence[Hosted]) -> None:
        async def close(each: Hosted) -> None:
            while each.inside:  # noqa: ASYNC110 - an event would cost every request
                await asyncio.sleep(LOOK_S)
            await each.engine.close()

        for each in hosted:
            self._keep(close(each))

    async def _watch(self) -> None:
        """Load what has changed on the disk."""
        while True:
            await asyncio.sleep(self._config.reload_s)
            for name, settings in self._settings.items():
                if self._is_unloaded(name) or mark(settings) == self._marks[name]:
                    continue
                try:
                    await self.load(name)
                except EdgemuxError:
                    continue  # said by the index, and in the log

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refuse_foreign(request: Any, *known: str) -> None:
    """Raises InputError for what would have to be obeyed and is not."""
    if request.repository_name:
        raise InputError("repository_name", "there is one repository, which has no name")
    parameters: Mapping[str, Any] = request.parameters
    for key in parameters:
        if key not in known:
            raise InputError("parameters", "models are loaded as they are configured; parameters are not taken")
