"""Results for which there is no number, and why: in memory a NaN that carries its reason, on disk null and a reason.

result.json holds {"metrics": {"bpd": 3.1, "bpd_se": null}, "reasons": {"bpd_se": "…"}}; older versions wrote NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

ONE_SAMPLE = "a standard error needs two samples, and there is one"
TOO_FEW = "a comparison needs two samples of each set, and one has fewer"
NOT_FINITE = "the samples of the model are not finite"


class Undefined(float):
    """A NaN with the reason why there is no number.

    Args:
        reason: a clause for tables and files.
    """

    reason: str

    def __new__(cls, reason: str) -> Undefined:
        self = super().__new__(cls, math.nan)
        self.reason = reason
        return self


def explained(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers with each NaN and infinity made Undefined."""

    def one(value: float) -> float:
        return value if math.isfinite(value) or isinstance(value, Undefined) else Undefined(f"the result is {value}")

    return {key: one(value) for key, value in numbers.items()}


def written(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """The numbers as a file or a logger takes them: None for each that is not finite."""
    return {key: value if math.isfinite(value) else None for key, value in numbers.items()}


def reasons(numbers: Mapping[str, float]) -> dict[str, str]:
    """The reason of each number that is not finite."""
    return {key: value.reason for key, value in explained(numbers).items() if isinstance(value, Undefined)}


def read(numbers: Mapping[str, float | None], why: Mapping[str, str]) -> dict[str, float]:
    """The numbers of a file as `explained` gave them, from what `written` and `reasons` gave."""
    return {
        key: Undefined(why.get(key, "no reason is recorded")) if value is None else value
        for key, value in numbers.items()
    }
