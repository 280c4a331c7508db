"""The health of a score as numbers: the curves over σ in a run's health.json, and what the result table says of them.

    {"denoising": {"sigma": […], "model": […], "wiener": […], "means": 0.33, "of_classes": true, "variance": 0.64,
                   "visited": […]},
     "eigenvalues": {"sigma": […], "value": […]},
     "fokker_planck": {"sigma": […], "value": […]},
     "reasons": {"min_eigenvalue": "…"}}

Each of the curves is null if it was not measured, and a number that is not finite is null. Noise levels rise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from flowdiff.runs.undefined import Undefined

WORSE = 1.1  # an error that is larger than that of the means by this factor is worse than them


@dataclass(frozen=True)
class Denoising:
    """Mean squared errors per dimension of denoising the same test samples at noise levels sigma.

    Args:
        sigma: the noise levels, rising.
        model: the error of D at each level; NaN or infinite where D is.
        wiener: the error of the Wiener filter at each level; None if it was not computed.
        means: the error of the mean of a sample's class in the training data, or of the mean of all training data.
        of_classes: whether `means` are those of classes.
        variance: the variance of the training data, averaged over dimensions.
        visited: whether each level is the nearest to one that the run's sampler visits.
    """

    sigma: tuple[float, ...]
    model: tuple[float, ...]
    wiener: tuple[float, ...] | None
    means: float
    of_classes: bool
    variance: float
    visited: tuple[bool, ...]

    def numbers(self) -> dict[str, float]:
        """Worst level, its error and how many times that of the means it is, and the number of levels that are worse.

        denoising_worst, denoising_worst_sigma, denoising_worst_ratio; class_means_error or data_mean_error;
        levels_visited, and levels_worse_than_means of these.
        """
        worst = max(zip(map(_or_infinite, self.model), self.sigma, strict=True))
        error, sigma = worst
        if not math.isfinite(error):
            error = Undefined(f"D is not finite at σ = {sigma:.3g}")
        ratio = error if isinstance(error, Undefined) else error / self.means if self.means else math.inf
        visited = [_or_infinite(e) for e, seen in zip(self.model, self.visited, strict=True) if seen]
        return {
            "denoising_worst": error,
            "denoising_worst_sigma": sigma,
            "denoising_worst_ratio": ratio,
            "class_means_error" if self.of_classes else "data_mean_error": self.means,
            "levels_visited": len(visited),
            "levels_worse_than_means": sum(e > WORSE * self.means for e in visited),
        }


@dataclass(frozen=True)
class Curve:
    """A value at each of the noise levels sigma, which rise; NaN where there is none."""

    sigma: tuple[float, ...]
    value: tuple[float, ...]

    def smallest(self) -> tuple[float, float]:
        """The smallest finite value and its σ; both Undefined if there is none."""
        found = [(v, s) for s, v in zip(self.sigma, self.value, strict=True) if math.isfinite(v)]
        undefined = Undefined("it is finite at no noise level")
        return min(found) if found else (undefined, undefined)

    def mean(self) -> float:
        """The mean over the noise levels; Undefined if one of the values is not finite."""
        missing = [s for s, v in zip(self.sigma, self.value, strict=True) if not math.isfinite(v)]
        return Undefined(f"it is not finite at σ = {missing[-1]:.3g}") if missing else fmean(self.value)


@dataclass(frozen=True)
class Health:
    """The health of a score; None for what was not measured.

    Args:
        denoising: the error of D.
        eigenvalues: the smallest eigenvalue of ∂D/∂x on trajectories of the run's own sampler.
        fokker_planck: the residual of the Fokker–Planck equation.
        reasons: {metric: a clause that says why it has no number}.
    """

    denoising: Denoising | None = None
    eigenvalues: Curve | None = None
    fokker_planck: Curve | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured."""
        return self.denoising is None and self.eigenvalues is None and self.fokker_planck is None

    def numbers(self) -> dict[str, float]:
        """The numbers of the result table; a measurement that a reason excludes is Undefined.

        Those of `Denoising.numbers`; min_eigenvalue, the smallest one, and min_eigenvalue_sigma; fokker_planck, the
        mean of the residual over its noise levels.
        """
        numbers: dict[str, float] = {} if self.denoising is None else self.denoising.numbers()
        if self.eigenvalues is not None:
            numbers["min_eigenvalue"], numbers["min_eigenvalue_sigma"] = self.eigenvalues.smallest()
        if self.fokker_planck is not None:
            numbers["fokker_planck"] = self.fokker_planck.mean()
        return numbers | {key: Undefined(reason) for key, reason in self.reasons.items()}

    def to_json(self) -> dict[str, Any]:
        """The content of health.json."""
        return _plain(asdict(self))

    @classmethod
    def of_json(cls, found: Mapping[str, Any]) -> Health:
        """What the content of health.json says; ValueError if it is not what `to_json` gives."""
        denoising, reasons = found.get("denoising"), found.get("reasons", {})
        if not isinstance(reasons, Mapping):
            raise ValueError("its reasons are not a mapping")
        return cls(
            None if denoising is None else _denoising(denoising),
            _curve(found.get("eigenvalues"), "eigenvalues"),
            _curve(found.get("fokker_planck"), "fokker_planck"),
            {str(key): str(value) for key, value in reasons.items()},
        )


def _denoising(node: object) -> Denoising:
    if not isinstance(node, Mapping):
        raise ValueError("its denoising is not a mapping")
    sigma = _numbers(node.get("sigma"), "denoising.sigma")
    model = _numbers(node.get("model"), "denoising.model", len(sigma))
    wiener = None if node.get("wiener") is None else _numbers(node["wiener"], "denoising.wiener", len(sigma))
    visited = node.get("visited")
    if not isinstance(visited, Sequence) or len(visited) != len(sigma):
        raise ValueError("its denoising.visited does not fit denoising.sigma")
    (means,), (variance,) = (_numbers([node.get(key)], f"denoising.{key}") for key in ("means", "variance"))
    return Denoising(
        sigma, model, wiener, means, node.get("of_classes") is True, variance, tuple(seen is True for seen in visited)
    )


def _curve(node: object, name: str) -> Curve | None:
    if node is None:
        return None
    if not isinstance(node, Mapping):
        raise ValueError(f"its {name} are not a mapping")
    sigma = _numbers(node.get("sigma"), f"{name}.sigma")
    return Curve(sigma, _numbers(node.get("value"), f"{name}.value", len(sigma)))


def _numbers(given: object, name: str, count: int | None = None) -> tuple[float, ...]:
    """A list of numbers, null as NaN; ValueError if it is none, or has another length."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"its {name} is not a list of numbers")
    if any(isinstance(value, bool) or not isinstance(value, int | float | None) for value in given):
        raise ValueError(f"its {name} is not a list of numbers")
    if count is not None and len(given) != count:
        raise ValueError(f"its {name} has {len(given)} numbers where {count} are expected")
    return tuple(math.nan if value is None else float(value) for value in given)


def _plain(value: Any) -> Any:
    """Lists and mappings of plain values; None for a number that is not finite."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _or_infinite(value: float) -> float:
    return value if math.isfinite(value) else math.inf
