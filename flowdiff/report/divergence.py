"""Runs whose training loss falls while the distance of their samples rises: their loss no longer measures progress.

The loss of a consistency function is a distance from its own target, and it can fall while both leave the data. With
the averages of a third of a training's evaluations, one third is the best; the distance has risen if it is larger by
MARGIN in the last third, and the loss has fallen if it is smaller there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean

from flowdiff.runs.collect import Run, curves

MARGIN = 1.1  # distances of few samples vary by some percent from evaluation to evaluation
FEWEST = 6  # evaluations, two in a third
MARK = "↑"

Points = Sequence[tuple[float, float]]


def distances(metric: str) -> bool:
    """Whether a metric is a Fréchet distance of samples."""
    return metric.startswith("fd_") or metric == "fid"


def rising(run: Run) -> str:
    """How the distance has risen while the loss fell, as a clause; empty if it has not, or if that cannot be seen."""
    found = curves(run, lambda name: name == "train_loss" or distances(name))
    loss = found.pop("train_loss", [])
    for name, points in found.items():
        during = points[:-1]  # the last one is of more samples, which makes a distance smaller
        if len(during) < FEWEST or len(loss) < FEWEST:
            continue
        third = len(during) // 3
        starts = range(len(during) - third + 1)
        best = min(starts, key=lambda start: _mean(during[start : start + third]))
        then, now = during[best : best + third], during[-third:]
        rise = _mean(now) > MARGIN * _mean(then)
        if rise and _mean(_within(loss, now)) < _mean(_within(loss, then)):
            return f"{name} from {_mean(then):.3g} at step {then[0][0]:,.0f} to {_mean(now):.3g} at {now[-1][0]:,.0f}"
    return ""


def _mean(points: Points) -> float:
    return fmean(value for _, value in points) if points else float("nan")


def _within(curve: Points, part: Points) -> Points:
    """The points of a curve between the first and the last step of a part of another."""
    steps = [step for step, _ in curve]
    return curve[bisect_left(steps, part[0][0]) : bisect_left(steps, part[-1][0] + 1)]
