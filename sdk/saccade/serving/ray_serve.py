"""The HTTP server as a Ray Serve application: every replica is a whole server, Ray routes and scales.

    serve run saccade.serving.ray_serve:app bundles=digits-stvit threads=1

deploy/ray/serve.yaml is an example for a cluster. Needs `saccade[ray,serve]` on every node.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount

from saccade.batching import Limits
from saccade.errors import EngineError, MissingDependency, UsageError
from saccade.serving.http import create_app
from saccade.serving.repository import Repository, named
from saccade.serving.settings import TEXTS, ServerSettings

__all__ = ["app"]

_LIMITS = frozenset(field.name for field in dataclasses.fields(Limits))
# Where the connections come from, and how long a drain takes, is Ray's own business.
_RAYS = frozenset(
    {"host", "http_port", "grpc_port", "max_connections", "tls_certificate", "tls_key", "batching"}
)
_SETTINGS = frozenset(field.name for field in dataclasses.fields(ServerSettings)) - _RAYS

# One replica takes as many requests at once as its batcher can join; another starts when it is often half
# full. All of it can be set in the configuration file, under `deployments`.
_DEPLOYMENT: Mapping[str, Any] = {
    "name": "saccade",
    "max_ongoing_requests": 64,
    "autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 32},
    "health_check_period_s": 10,
    "health_check_timeout_s": 10,
    "graceful_shutdown_timeout_s": 30,
    "ray_actor_options": {"num_cpus": 1},
}


def app(args: Mapping[str, Any]) -> Any:
    """The application for `serve run`, `serve build` and configuration files: a `ray.serve.Application`.

    args: `bundles`, a list, or a text with commas: BUNDLE or NAME=BUNDLE, which every node must find under
    that path or name; and fields of `ServerSettings` and of its `Limits`, as values, or as the text of a
    number, true, false or null. Raises UsageError for what is unknown or cannot be.
    """
    bundles, settings = _read(args)
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise MissingDependency("Ray Serve is not installed: pip install 'saccade[ray]'") from error
    deployment = serve.deployment(**_DEPLOYMENT)(serve.ingress(_builder(bundles, settings))(Replica))
    return deployment.bind()


class Replica:
    """What Ray asks of a replica besides answers. app: what `_builder` gave, put here by Ray."""

    app: Starlette

    def check_health(self) -> None:
        """Called by Ray now and then; a replica that raises is replaced."""
        if not self.app.state.repository.ready:
            raise EngineError("the models of this replica are not ready")


def _builder(bundles: Sequence[str], settings: ServerSettings) -> Callable[[], Starlette]:
    """What makes the application inside a replica: models cannot travel between processes."""

    def build() -> Starlette:
        repository = Repository(named(bundles), settings)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            await repository.load_all()
            yield
            await repository.close()

        served = Starlette(routes=[Mount("/", create_app(repository, settings))], lifespan=lifespan)
        served.state.repository = repository
        return served

    return build


def _read(args: Mapping[str, Any]) -> tuple[list[str], ServerSettings]:
    given = {name: _value(name, value) for name, value in args.items() if name != "bundles"}
    listed = _listed(args.get("bundles", []))
    if not listed:
        raise UsageError("there is nothing to serve: bundles=digits-stvit, or a list in the file")
    unknown = sorted(set(given) - _LIMITS - _SETTINGS)
    if unknown:
        raise UsageError(
            f"unknown {', '.join(unknown)}; there are bundles, {', '.join(sorted(_LIMITS | _SETTINGS))}"
        )
    limits = Limits(**{name: value for name, value in given.items() if name in _LIMITS})
    settings = {name: value for name, value in given.items() if name in _SETTINGS}
    named(listed)  # refuses names here, not in a replica
    return listed, ServerSettings(batching=limits, **settings)


def _listed(bundles: Any) -> list[str]:
    if isinstance(bundles, str):
        return [each for each in bundles.split(",") if each]
    if not isinstance(bundles, list | tuple) or not all(isinstance(each, str) for each in bundles):
        raise UsageError(f"bundles is {bundles!r}; it must be a text with commas, or a list of texts")
    return list(bundles)


def _value(name: str, value: Any) -> Any:
    """Texts of a command line as what they say: numbers, true, false, null. Fields that are text stay it."""
    if name in TEXTS or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value  # no field takes it, and the error shows it
