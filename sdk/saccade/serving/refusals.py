"""What only a server has to refuse. Every class carries the HTTP status of the answer."""

from __future__ import annotations

from saccade.errors import InputError, UsageError

__all__ = [
    "BodyTooLarge",
    "Forbidden",
    "NotAcceptable",
    "NotLoaded",
    "SlowRequest",
    "Unauthorised",
    "UnknownModel",
]


class UnknownModel(UsageError):
    """A model, a version or a shared-memory region that is not there."""

    http_status = 404


class NotLoaded(UnknownModel):
    """A model that is served, but not now."""


class Unauthorised(UsageError):
    """The server wants a token, and the request has none or another."""

    http_status = 401


class Forbidden(UsageError):
    """The server was started without what the request asks for."""

    http_status = 403


class NotAcceptable(UsageError):
    """The answer has no form of the kind that was asked for."""

    http_status = 406


class SlowRequest(InputError):
    """The request did not arrive within the time it has."""

    http_status = 408


class BodyTooLarge(InputError):
    """The request is larger than the server reads."""

    http_status = 413
