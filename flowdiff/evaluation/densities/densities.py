"""The numbers of a run's table that describe its density: likelihood, classification, outliers, interpolation.

The likelihood by the probability-flow ODE needs only a denoiser, and classification needs a density or a classifier.
The other numbers need a normalised density p_σ(x|c).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from flowdiff.data.base import DataModule, Dataset
from flowdiff.data.encoded import in_model_space
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import ConfigurationError, DataError, InverseDidNotConverge
from flowdiff.evaluation.densities.autoencoding import image_bound
from flowdiff.evaluation.densities.classification import classify as classify_test_split
from flowdiff.evaluation.densities.interpolation import likelihood_between
from flowdiff.evaluation.densities.likelihood import Likelihood, bits_per_dim
from flowdiff.evaluation.densities.ode_likelihood import Solution, ode_bits_per_dim
from flowdiff.evaluation.densities.outliers import outlier_scores
from flowdiff.evaluation.retrieval import CANDIDATES
from flowdiff.models.networks.base import Density, FlowDensity

log = logging.getLogger(__name__)

# The limits of `auto`, which keep a measurement much cheaper than the samples of the Fréchet distance: evaluations of
# the density, and pairs of samples, whose interpolation inverts the flow, which is slow for some families.
AUTO_EVALUATIONS, AUTO_PAIRS = 10_000, 20
PAIRS = 100  # pairs of samples that interpolate=true measures

Choice = Literal["auto"] | bool
"""Whether to measure something: all of it, none of it, or `auto`: a cheap part of it if model and data allow it."""


@dataclass(frozen=True)
class OdeSettings:
    """The settings `metrics.ode`: likelihood by the probability-flow ODE.

    Args:
        measure: whether to measure it.
        rtol: relative tolerance of the solver, > 0.
        atol: absolute tolerance of the solver, ≥ 0.
        probes: random vectors of the trace's estimate, ≥ 1; None for the exact trace.
    """

    measure: bool
    rtol: PositiveFloat
    atol: NonNegativeFloat
    probes: PositiveInt | None


class Densities:
    """The part of the table that needs no samples; the settings are those of Metrics."""

    def __init__(
        self,
        data: DataModule,
        *,
        sigma_sweep: list[float],
        batch_size: int,
        likelihood: bool,
        ode: OdeSettings,
        classify: Choice,
        outliers: Choice,
        interpolate: Choice,
    ) -> None:
        self.data = data
        self.sigma_sweep = sigma_sweep
        self.batch_size = batch_size
        self.likelihood = likelihood
        self.ode = ode
        self.choices: dict[str, Choice] = {
            "ode.measure": ode.measure,
            "classify": classify,
            "outliers": outliers,
            "interpolate": interpolate,
        }

    def check(self, denoiser: ConditionedDenoiser) -> None:
        """Raise ConfigurationError if a setting is true that the model or the data do not allow."""
        for key, choice in self.choices.items():
            missing = self._missing(key, denoiser)
            if choice is True and missing:
                raise ConfigurationError(f"metrics.{key}=true needs {missing}; or set metrics.{key}=false.")

    def wants(self, key: str, denoiser: ConditionedDenoiser) -> bool:
        """Whether to measure `ode.measure`, `classify`, `outliers` or `interpolate` for this model."""
        return self.choices[key] is not False and self._missing(key, denoiser) is None

    def __call__(self, denoiser: ConditionedDenoiser, sigma: float, seed: int) -> dict[str, float]:
        """The numbers, as `Metrics.densities` names them."""
        settings = {"seed": seed, "batch_size": self.batch_size}
        results: dict[str, float] = {}
        data = in_model_space(denoiser, self.data)
        in_latents = data is not self.data
        prefix = "latent_" if in_latents else ""  # numbers of latents must not be mistaken for numbers of images
        if self.likelihood and (denoiser.is_autoencoder or (in_latents and denoiser.is_density)):
            results |= _numbers(image_bound(denoiser, self.data, sigma, **settings))
        if self.likelihood and denoiser.is_density:
            results |= _numbers(bits_per_dim(denoiser, data, sigma, **settings), prefix)
            for other in self.sigma_sweep:
                results |= _numbers(bits_per_dim(denoiser, data, other, **settings), prefix, f"_sigma_{other:g}")
        if self.wants("ode.measure", denoiser):
            sigma_max = denoiser.sampling.schedule.sigma_max
            solution = Solution(sigma, sigma_max, self.ode.rtol, self.ode.atol, self.ode.probes)
            results |= _numbers(ode_bits_per_dim(denoiser, data, solution, **settings), prefix, "_ode")
        if self.wants("classify", denoiser):
            most = self._most("classify", denoiser)
            kind = "caption" if denoiser.conditioner.reads_text else "class"
            accuracy, error, ece, n = classify_test_split(denoiser, data, sigma, most=most, **settings)
            results |= {f"{kind}_accuracy": accuracy, f"{kind}_accuracy_se": error, f"{kind}_ece": ece}
            results["num_classified"] = n
            if kind == "caption":
                results["num_captions"] = min(CANDIDATES, n)
            for other in self.sigma_sweep:
                found = classify_test_split(denoiser, data, other, most=most, **settings)
                name = f"{kind}_accuracy_sigma_{other:g}"
                results |= {name: found.accuracy, f"{name}_se": found.standard_error}
        if self.wants("outliers", denoiser):
            scores = outlier_scores(denoiser, data, sigma, most=self._most("outliers", denoiser), **settings)
            results |= {f"auroc_{name}": score for name, score in scores.items()}
        if self.wants("interpolate", denoiser):
            results |= self._between(denoiser, data, sigma, prefix, settings)
        return results

    def _most(self, key: str, denoiser: ConditionedDenoiser) -> int | None:
        """Number of test samples to use; None for all. Each costs an evaluation of the density for each candidate."""
        candidates = CANDIDATES if denoiser.conditioner.reads_text else denoiser.num_classes or 1
        return None if self.choices[key] is True else max(1, AUTO_EVALUATIONS // candidates)

    def _between(
        self, denoiser: ConditionedDenoiser, data: Dataset, sigma: float, prefix: str, settings: dict[str, int]
    ) -> dict[str, float]:
        try:
            pairs = PAIRS if self.choices["interpolate"] is True else AUTO_PAIRS
            found = likelihood_between(denoiser, data, sigma, pairs=pairs, **settings)
        except (InverseDidNotConverge, DataError) as reason:  # this must not cost a finished training its result
            log.warning("not interpolated: %s", reason)
            return {}
        name = f"interpolation_{prefix}{found.metric}"
        return {name: found.mean, f"{name}_se": found.standard_error, "interpolation_straight": found.straight}

    def _missing(self, key: str, denoiser: ConditionedDenoiser) -> str | None:
        """What a setting of `choices` needs and the model or the data lack; None if nothing is missing."""
        if key == "ode.measure" and (denoiser.is_autoencoder or not denoiser.can_sample):
            return "a denoiser: take another network"
        if key == "ode.measure":
            if isinstance(denoiser.network, Density) and not denoiser.network.twice_differentiable:
                return "a score that can be differentiated, and this flow can be differentiated only once: take another"
            return None
        if denoiser.hinting is not None:
            return "a model without hints: this one knows p(x|h) for the hints h of one image"
        if key == "classify" and denoiser.is_classifier:
            return None
        if not denoiser.is_density:
            return "a normalised density: take network=score_flow"
        if key == "classify" and denoiser.conditioner.reads_text == (denoiser.num_classes is not None):
            return "a density of either classes or captions: take conditioner=class or text"
        if key in ("outliers", "interpolate") and denoiser.conditioner.reads_text:
            return "a model of classes or none: p(x) is not the sum over all captions, and two images share no caption"
        if key == "outliers" and len(self.data.shape) == 1:
            return "images, whose pixels it permutes: take another dataset"
        if key == "interpolate" and not isinstance(denoiser.network, FlowDensity):
            return "a flow, which maps samples to base points: take network=score_flow"
        return None


def _numbers(found: Likelihood, prefix: str = "", suffix: str = "") -> dict[str, float]:
    name = prefix + found.metric + suffix
    return {name: found.mean, f"{name}_se": found.standard_error}
