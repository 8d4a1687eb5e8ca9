"""Numbers that users set: only those that work."""

from __future__ import annotations

from dataclasses import dataclass

from saccade.errors import UsageError

__all__ = ["DAY_S", "Range"]

DAY_S = 86_400  # nobody waits longer; timers and sums of nanoseconds stand it


@dataclass(frozen=True, slots=True)
class Range:
    """From `low` to `high`, both of them included. whole: 2 is one of its numbers, 2.0 is not."""

    low: float
    high: float
    whole: bool = False

    def check(self, name: str, value: object) -> None:
        """UsageError with the value and the range, for what is no number in it: NaN, text and None too."""
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not self.low <= value <= self.high:
            number = "a whole number" if self.whole else "a number"
            raise UsageError(f"{name} is {value!r}; it must be {number} from {self.low} to {self.high}")
