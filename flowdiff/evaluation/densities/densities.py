"""What a run's table says of the density behind a model: likelihoods, classes, outliers, what lies between two samples.

The likelihood by the probability-flow ODE is of any denoiser, and classes are told by a classifier, too; the rest is of
normalised densities p_σ(x|c) only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from flowdiff.data.encoded import as_seen_by, is_autoencoder
from flowdiff.errors import ConfigurationError, DataError, InverseDidNotConverge
from flowdiff.evaluation.densities.autoencoding import image_bound
from flowdiff.evaluation.densities.classification import classify as classified
from flowdiff.evaluation.densities.classification import is_classifier
from flowdiff.evaluation.densities.interpolation import likelihood_between
from flowdiff.evaluation.densities.likelihood import Likelihood, bits_per_dim
from flowdiff.evaluation.densities.ode_likelihood import Solution, ode_bits_per_dim
from flowdiff.evaluation.densities.outliers import outlier_scores
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import create

log = logging.getLogger(__name__)

# What nobody asked for is a fraction of what the Fréchet distance's samples take: so many evaluations of a density, and
# pairs of samples, whose flow is to be inverted, which for some families is slow.
CHEAP, CHEAP_PAIRS, PAIRS = 10_000, 20, 100

CondOf = Callable[[Tensor], Conditioning | None]


class OdeSettings(NamedTuple):
    """Whether the ODE's likelihood is wanted, and how it is solved (flowdiff/evaluation/densities/ode_likelihood.py)."""

    wanted: bool
    rtol: float
    atol: float
    probes: int | None


class Densities:
    """The part of the table that needs no samples; the settings are those of Metrics."""

    def __init__(
        self,
        data: Any,
        *,
        sigma_eval: float | None,
        sigma_sweep: list[float],
        batch_size: int,
        likelihood: bool,
        ode: OdeSettings,
        classify: bool | None,
        outliers: bool | None,
        interpolate: bool | None,
    ) -> None:
        self.data = data
        self.sigma_eval = sigma_eval
        self.sigma_sweep = sigma_sweep
        self.batch_size = batch_size
        self.likelihood = likelihood
        self.ode = ode
        self.asked = {"ode": ode.wanted, "classify": classify, "outliers": outliers, "interpolate": interpolate}

    def check(self, denoiser: nn.Module) -> None:
        """Raise ConfigurationError where something is asked for that this model or these data cannot give."""
        for key, asked in self.asked.items():
            lacking = self._lacking(key, denoiser)
            if asked and lacking:
                raise ConfigurationError(f"metrics.{key}=true needs {lacking}; or set metrics.{key}=false.")

    def wants(self, key: str, denoiser: nn.Module) -> bool:
        """Whether `ode`, `classify`, `outliers` or `interpolate` is to be done with this model."""
        return self.asked[key] is not False and self._lacking(key, denoiser) is None

    def __call__(self, denoiser: nn.Module, cond_of: CondOf, sigma_min: float, seed: int) -> dict[str, float]:
        """The numbers, as `Metrics.densities` names them."""
        sigma = self.sigma_eval or sigma_min
        settings = {"seed": seed, "batch_size": self.batch_size}
        results: dict[str, float] = {}
        data = as_seen_by(denoiser, self.data)
        of = "latent_" if data is not self.data else ""  # what is of latents never passes for what is of images
        if self.likelihood and (is_autoencoder(denoiser) or (of and denoiser.is_density)):
            results |= _numbers(image_bound(denoiser, self.data, sigma, cond_of, **settings))
        if denoiser.is_density and self.likelihood:
            results |= _numbers(bits_per_dim(denoiser, data, sigma, cond_of, **settings), of)
            for other in self.sigma_sweep:
                found = bits_per_dim(denoiser, data, other, cond_of, **settings)
                results |= _numbers(found, of, f"_sigma_{other:g}")
        if self.wants("ode", denoiser):
            sigma_max = create("schedule", denoiser.settings["schedule"]).sigma_max
            solution = Solution(sigma, sigma_max, *self.ode[1:])
            results |= _numbers(ode_bits_per_dim(denoiser, data, solution, cond_of, **settings), of, "_ode")
        if self.wants("classify", denoiser):
            most = None if self.asked["classify"] else max(1, CHEAP // denoiser.num_classes)
            accuracy, error, ece, n = classified(denoiser, data, sigma, cond_of, most=most, **settings)
            results |= {"class_accuracy": accuracy, "class_accuracy_se": error, "class_ece": ece, "num_classified": n}
            for other in self.sigma_sweep:
                found = classified(denoiser, data, other, cond_of, most=most, **settings)
                name = f"class_accuracy_sigma_{other:g}"
                results |= {name: found.accuracy, f"{name}_se": found.standard_error}
        if self.wants("outliers", denoiser):
            most = None if self.asked["outliers"] else max(1, CHEAP // (denoiser.num_classes or 1))
            scores = outlier_scores(denoiser, data, sigma, cond_of, most=most, **settings)
            results |= {f"auroc_{name}": score for name, score in scores.items()}
        if self.wants("interpolate", denoiser):
            results |= self._between(denoiser, cond_of, sigma, settings)
        return results

    def _between(
        self, denoiser: nn.Module, cond_of: CondOf, sigma: float, settings: dict[str, int]
    ) -> dict[str, float]:
        try:
            pairs = PAIRS if self.asked["interpolate"] else CHEAP_PAIRS
            data = as_seen_by(denoiser, self.data)
            found = likelihood_between(denoiser, data, sigma, cond_of, pairs=pairs, **settings)
        except (InverseDidNotConverge, DataError) as reason:  # no reason to lose a finished training
            log.warning("not interpolated: %s", reason)
            return {}
        name = f"interpolation_{'latent_' if data is not self.data else ''}{found.metric}"
        return {name: found.mean, f"{name}_se": found.standard_error, "interpolation_straight": found.straight}

    def _lacking(self, key: str, denoiser: nn.Module) -> str | None:
        """What a setting of `asked` would need and does not find."""
        if key == "ode" and is_autoencoder(denoiser):
            return "a denoiser: take another network"
        if key == "ode":
            flow = getattr(denoiser.network, "flow", None)
            if denoiser.is_density and flow is not None and not flow.twice_differentiable:
                return "a score that can be differentiated, and this flow can be differentiated only once: take another"
            return None
        if key == "classify" and is_classifier(denoiser):
            return None
        if not denoiser.is_density:
            return "a normalised density: take network=score_flow"
        if key == "classify" and denoiser.num_classes is None:
            return "a class-conditional density: take conditioner=class"
        if key == "outliers" and len(self.data.shape) == 1:
            return "images, whose pixels it permutes: take another dataset"
        if key == "interpolate" and not hasattr(denoiser.network, "decode"):
            return "a density that encodes and decodes: take network=score_flow"
        return None


def _numbers(found: Likelihood, prefix: str = "", suffix: str = "") -> dict[str, float]:
    name = prefix + found.metric + suffix
    return {name: found.mean, f"{name}_se": found.standard_error}
