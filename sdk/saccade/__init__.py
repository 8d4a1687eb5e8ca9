"""Saccade: efficient vision models from a trained checkpoint to a predictor in production."""

from saccade.errors import SaccadeError

__all__ = ["SaccadeError"]
