"""Every error Saccade raises on purpose. A leaf module: anything may import it.

SaccadeError
    UsageError            a name, argument or combination of them that cannot work
    InputError            a picture or tensor that cannot be used
    CheckpointError       weights that do not fit the model, or cannot be read safely
    BundleError           a bundle that is missing, changed, too new or malformed
        EngineMismatch    an engine file built for another machine or version
    ExportError           a model could not be turned into a verified graph
    EngineError           an engine failed while loading or running
        ClosedError       use after close, or in a forked child
    OverloadedError       more requests wait than may
    DeadlineError         no answer within the time that was given
    MissingDependency     an optional package is needed; the message has the install line

Each class carries the CLI's exit code and the server's HTTP status, so neither needs a table.
"""

from __future__ import annotations


class SaccadeError(Exception):
    """Root of all errors raised on purpose. The message says what happened and what to do next."""

    exit_code = 1
    http_status = 500


class UsageError(SaccadeError):
    """A name, an argument or a combination of arguments that cannot work."""

    exit_code = 2
    http_status = 400


class InputError(SaccadeError):
    """A picture or tensor that cannot be used: unreadable, of the wrong shape, too large."""

    exit_code = 3
    http_status = 422


class CheckpointError(SaccadeError):
    """Weights that do not fit the model, or a file that cannot be read without executing it."""

    exit_code = 4
    http_status = 422


class BundleError(SaccadeError):
    """A bundle that is missing, changed since it was written, too new, or malformed."""

    exit_code = 5
    http_status = 422


class EngineMismatch(BundleError):
    """An engine file that was built for another GPU, driver or runtime version."""


class ExportError(SaccadeError):
    """A model could not be exported, or the exported graph does not compute what the model does."""

    exit_code = 6


class EngineError(SaccadeError):
    """An engine failed while loading a graph or running it."""

    exit_code = 7


class ClosedError(EngineError):
    """A predictor or engine used after `close()`, or in a process forked from its owner."""


class OverloadedError(SaccadeError):
    """A queue is full: nothing was started, the same request may be sent again later."""

    exit_code = 9
    http_status = 503


class DeadlineError(SaccadeError):
    """There was no answer within the time that the caller gave."""

    exit_code = 10
    http_status = 504


class MissingDependency(SaccadeError):
    """An optional package is needed for this call; the message holds the line that installs it."""

    exit_code = 8
    http_status = 501
