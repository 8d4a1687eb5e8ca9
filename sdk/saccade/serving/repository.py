"""The models of a server by name: loaded, checked and warmed before they serve, replaced without a gap.

What may be loaded is fixed when the repository is made: names with the paths they stand for. A request can
name a model, never a path.

All methods but the constructor run on one event loop. That is what makes a swap safe: between finding a
model and queueing a request for it nothing else happens.
"""

from __future__ import annotations

import asyncio
import difflib
import gc
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from saccade import bundle as bundles
from saccade.batching import Statistics
from saccade.errors import DeadlineError, SaccadeError, UsageError
from saccade.loading import load
from saccade.models.card import Card
from saccade.predictors.predictor import PICTURE_GRAPHS, Predictor
from saccade.serving.batched import BatchedEngine
from saccade.serving.counters import Counters, total
from saccade.serving.heap import give_back
from saccade.serving.refusals import NotLoaded, UnknownModel
from saccade.serving.settings import ServerSettings

__all__ = ["VERSION", "Loaded", "Model", "Repository", "named"]

logger = logging.getLogger("saccade.serving")

VERSION = "1"  # a bundle has no versions: what is loaded is what there is
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    """A name that requests may use: one graph of one bundle."""

    name: str
    bundle: str
    graph: str
    counters: Counters = field(default_factory=Counters)


class Loaded:
    """One load of one bundle: a predictor whose engines are batched, its models, and who uses it now."""

    def __init__(self, predictor: Predictor[Any], models: Iterable[Model]) -> None:
        self.predictor = predictor
        self.models = tuple(models)
        self.engines: Mapping[str, BatchedEngine] = predictor.engines  # type: ignore[assignment]
        self.users = 0
        self.idle = asyncio.Event()
        self.idle.set()

    @contextmanager
    def used(self) -> Iterator[None]:
        """While this is held the engines stay open."""
        self.users += 1
        self.idle.clear()
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self.idle.set()


@dataclass(slots=True)
class _Entry:
    """One bundle of the repository. state: LOADING, READY or UNAVAILABLE, as the protocol calls them."""

    name: str
    source: str | Path
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    loaded: Loaded | None = None
    state: str = "UNAVAILABLE"
    reason: str = ""


class Repository:
    """sources: the path or name of each bundle by the name it is served under."""

    def __init__(self, sources: Mapping[str, str | Path], settings: ServerSettings) -> None:
        if not sources:
            raise UsageError("there is nothing to serve: give at least one bundle")
        self.settings = settings
        self._entries = {name: _Entry(_checked_name(name), source) for name, source in sources.items()}
        self._models: dict[str, Model] = {}
        for name, source in sources.items():
            self._models |= self._named(name, bundles.read(bundles.resolve(source), check=False).graphs)
        self._retiring: set[asyncio.Task[None]] = set()
        self.draining = False  # the server was told to stop: not ready, and connections end

    @property
    def ready(self) -> bool:
        """Whether every bundle that should be serving is."""
        return not self.draining and all(
            entry.state == "READY" for entry in self._entries.values() if entry.state != "UNLOADED"
        )

    @property
    def models(self) -> Mapping[str, Model]:
        """Every name that requests may use, loaded or not."""
        return self._models

    def model(self, name: str, version: str = "") -> tuple[Model, Loaded]:
        """What serves `name` now. UnknownModel where there is none of that name or version, or not now."""
        model = self._models.get(name)
        if model is None:
            near = difflib.get_close_matches(name[:128], self._models, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(self._models)}"
            raise UnknownModel(f"unknown model {name[:128]!r}: {hint}")
        if version not in ("", VERSION):
            raise UnknownModel(f"unknown version {version[:32]!r} of {name}: there is {VERSION}")
        entry = self._entries[model.bundle]
        if entry.loaded is None:
            raise NotLoaded(f"model {name} is not loaded ({entry.state.lower()}): {entry.reason}")
        return model, entry.loaded

    def is_ready(self, name: str, version: str = "") -> bool:
        """Whether requests for `name` are answered now; UnknownModel for what is never served."""
        try:
            self.model(name, version)
        except NotLoaded:
            return False
        return True

    def index(self) -> list[dict[str, str]]:
        """Name, version, state and reason of every model, as the protocol's repository index has them."""
        states = {name: (entry.state, entry.reason) for name, entry in self._entries.items()}
        return [
            {
                "name": model.name,
                "version": VERSION,
                "state": states[model.bundle][0].replace("UNLOADED", "UNAVAILABLE"),
                "reason": states[model.bundle][1],
            }
            for model in self._models.values()
        ]

    def statistics(self, name: str) -> Statistics:
        """The batcher's sums of `name`, over all its loads."""
        model = self._models[name]
        loaded = self._entries[model.bundle].loaded
        if loaded is None:
            return model.counters.retired
        return total(model.counters.retired, loaded.engines[model.graph].batcher.statistics())

    def card(self, name: str) -> tuple[Card, str] | None:
        """The card of a loaded model and the engine that runs it."""
        loaded = self._entries[self._models[name].bundle].loaded
        return None if loaded is None else (loaded.predictor.card, loaded.predictor.engine_name)

    async def load_all(self) -> None:
        """Load every bundle, one after the other. Raises what the first that fails raises."""
        for name in self._entries:
            await self.load(name)

    async def load(self, name: str) -> None:
        """Load or reload a bundle. While it loads, and where it fails, the one that is there goes on."""
        entry = self._entry(name)
        async with entry.lock:
            before = entry.state
            if entry.loaded is None:
                entry.state, entry.reason = "LOADING", ""
            try:
                predictor = await in_thread(lambda: _open(entry.source, self.settings), "saccade-load")
                try:
                    models = self._named(name, predictor.engines)
                except UsageError:
                    await in_thread(lambda: _close(predictor), "saccade-close")
                    raise
            except BaseException as error:
                entry.reason = str(error) if isinstance(error, SaccadeError) else type(error).__name__
                entry.state = before
                logger.error("bundle not loaded", extra={"model": name, "error": entry.reason})
                raise
            old, entry.loaded = entry.loaded, Loaded(predictor, models.values())
            others = {served: model for served, model in self._models.items() if model.bundle != name}
            self._models = others | models
            entry.state, entry.reason = "READY", ""
            logger.info("bundle loaded", extra={"model": name, "engine": predictor.engine_name})
            if old is not None:
                self._retire(old)

    async def unload(self, name: str) -> None:
        """Take no more requests for a bundle; those under way are answered."""
        entry = self._entry(name)
        async with entry.lock:
            old, entry.loaded = entry.loaded, None
            entry.state, entry.reason = "UNLOADED", "unloaded"
            if old is not None:
                self._retire(old)

    async def close(self) -> None:
        """Unload everything and wait until all is answered; DeadlineError after `settings.drain_s`."""
        for name in self._entries:
            await self.unload(name)
        if self._retiring:
            _, late = await asyncio.wait(self._retiring, timeout=self.settings.drain_s)
            if late:
                raise DeadlineError(f"{len(late)} bundles still work after {self.settings.drain_s:g} s")

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            self.model(name)  # refuses names that are unknown
            raise UsageError(f"{name} is a part of the bundle {self._models[name].bundle}: name that")
        return self._entries[name]

    def _named(self, name: str, graphs: Iterable[str]) -> dict[str, Model]:
        """The models of a bundle: the graph that takes pictures has the bundle's name; any other, NAME.graph.

        What was counted of a name before goes on.
        """
        models = {}
        for graph in graphs:
            served = name if graph in PICTURE_GRAPHS else f"{name}.{graph}"
            known = self._models.get(served)
            if known is not None and known.bundle != name:
                raise UsageError(
                    f"two bundles would be served as {served!r}: give one another name, NAME=PATH"
                )
            models[served] = Model(served, name, graph, Counters() if known is None else known.counters)
        return models

    def _retire(self, old: Loaded) -> None:
        task = asyncio.create_task(self._drain(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _drain(self, old: Loaded) -> None:
        await old.idle.wait()
        await in_thread(lambda: _close(old.predictor), "saccade-close")
        for model in old.models:
            sums = old.engines[model.graph].batcher.statistics()
            model.counters.retired = total(model.counters.retired, sums)


def _close(predictor: Predictor[Any]) -> None:
    """Close it, and give its memory back: what only a collection finds, and what the C library keeps."""
    predictor.close()
    gc.collect()
    give_back()


async def in_thread(work: Callable[[], T], name: str) -> T:
    """`work` in a thread of its own, which does not keep the process alive should it never return."""
    loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def settle(set_: Callable[[Any], None], value: Any) -> None:
        if not answer.done():
            set_(value)

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # whatever it is belongs to the one who waits
            outcome: tuple[Callable[[Any], None], Any] = (answer.set_exception, error)
        else:
            outcome = (answer.set_result, value)
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=run, name=name, daemon=True).start()
    result: T = await answer
    return result


def named(given: Sequence[str]) -> dict[str, str]:
    """BUNDLE or NAME=BUNDLE, as the command line takes them, by the name each is served under.

    >>> named(["digits-stvit", "mine=bundles/v2"])
    {'digits-stvit': 'digits-stvit', 'mine': 'bundles/v2'}
    """
    found: dict[str, str] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not equals:
            name, path = Path(each).name.removesuffix(".zip"), each
        if name in found:
            raise UsageError(f"two bundles are called {name!r}: write NAME=BUNDLE for one of them")
        found[_checked_name(name)] = path
    return found


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:128]!r} cannot name a model: letters, digits, '_', '.' and '-', at most 128; "
            "write NAME=BUNDLE"
        )
    return name


def _open(source: str | Path, settings: ServerSettings) -> Predictor[Any]:
    """A predictor over batched engines that has answered."""
    loaded = load(
        bundles.resolve(source),
        settings.engine,
        precision=settings.precision,
        prove=settings.prove,
        device=settings.device,
        threads=settings.threads,
    )
    try:
        _warm(loaded, settings.batching.max_rows)
    except BaseException:
        loaded.close()
        raise
    engines = {
        name: BatchedEngine(engine, settings.batching, settings.request_timeout_ms)
        for name, engine in loaded.engines.items()
    }
    return type(loaded)(engines, loaded.card, engine_name=loaded.engine_name, untrained=loaded.untrained)


def _warm(predictor: Predictor[Any], max_rows: int) -> None:
    """Answers for one picture, and for two where batches will come: the first requests find all in place."""
    picture = np.zeros((*predictor.card.preprocessing.input_size_hw, 3), np.uint8)
    prompts = [["a warm-up"]] if predictor.card.task == "zero_shot" else []
    for pictures in (picture, [picture, picture])[:max_rows]:
        predictor(pictures, *prompts)
