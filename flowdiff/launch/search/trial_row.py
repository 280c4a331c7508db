"""A trial of a search as tables and pictures show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TrialRow:
    """One trial of a search.

    Args:
        number: the trial's number, from 0.
        state: complete, pruned, failed or open.
        note: further text on the state.
        params: override key to value, as typed.
        value: the metric of a complete trial, else None.
        curve: step to metric during training.
        best: whether no other trial has a better value.
    """

    number: int
    state: str
    note: str
    params: Mapping[str, str]
    value: float | None
    curve: Mapping[int, float]
    best: bool
