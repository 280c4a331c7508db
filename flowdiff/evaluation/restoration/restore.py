"""Measure samples and draw them again from the posterior of what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowdiff.diffusion.measurements import Measurement
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.posteriors import Drawing, Draws, Posterior
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.restoration import scores
from flowdiff.noise import generators
from flowdiff.runs.result_table import Row

LEVELS = (50, 90)  # per cent of the credible intervals
NOISE_SEED = 2**31 - 2  # added to the seed of the draws: the noise of y is not that of the draws


@dataclass(frozen=True)
class Restoration:
    """N samples, what was measured of them, and draws of each given that.

    Args:
        truth: the samples, (N, *shape).
        y: the measurements, (N, …).
        shown: y as samples to be looked at, (N, *shape).
        draws: draws of the posterior; draws.x (N, K, *shape).
    """

    truth: Tensor
    y: Tensor
    shown: Tensor
    draws: Draws

    @property
    def mean(self) -> Tensor:
        """The mean over the draws, the best estimate in mean square, (N, *shape)."""
        return self.draws.x.mean(1)

    @property
    def std(self) -> Tensor:
        """The standard deviation of each number over the draws, (N, *shape); 0 for a single draw."""
        return self.draws.x.std(1, correction=min(1, self.draws.x.shape[1] - 1))

    def numbers(self) -> dict[str, float]:
        """What the draws are worth: {metric: value}."""
        x, t = self.draws.x, self.truth
        found: dict[str, float] = {}
        if t.ndim == 4:
            found["psnr"] = scores.psnr(self.mean, t)
            if (similarity := scores.ssim(self.mean, t)) is not None:
                found["ssim"] = similarity
        if x.shape[1] > 1:
            found["crps"] = float(scores.crps(x, t).mean())
            for level in LEVELS:
                nominal, inside = scores.coverage(x, t, level / 100)
                found |= {f"coverage_{level}": inside, f"coverage_{level}_nominal": nominal}
        found["nfe"] = self.draws.evaluations
        if self.draws.rhat is not None:
            found["rhat"] = float(self.draws.rhat.max())
        if self.draws.effective is not None:
            found["effective"] = float(self.draws.effective.min())
        if self.draws.acceptance is not None:
            found["acceptance"] = float(self.draws.acceptance.mean())
        return found


def rows_of(numbers: dict[str, float]) -> list[Row]:
    """The rows of the result table for the numbers of a restoration."""
    about = {
        "psnr": ("PSNR of the mean", ".2f", "dB"),
        "ssim": ("SSIM of the mean", ".4f", f"windows of {scores.WINDOW} × {scores.WINDOW} pixels"),
        "crps": ("CRPS", ".4f", "data units, mean over all numbers; smaller is better"),
        "rhat": ("R̂, worst", ".3f", "of all dimensions; chains that agree are below 1.01"),
        "effective": (
            "effective draws, worst",
            ".0f",
            "independent draws that the chains are worth, of all dimensions",
        ),
        "acceptance": ("accepted proposals", ".3f", "share"),
        "nfe": ("network evaluations", ",.0f", "for a draw, derivatives included"),
    }
    for level in LEVELS:
        nominal = numbers.get(f"coverage_{level}_nominal", 0.0)
        text = f"share of numbers whose truth lies in it; {nominal:.3f} if calibrated"
        about[f"coverage_{level}"] = (f"central {level} % interval", ".3f", text)
    return [(about[k][0], format(v, about[k][1]), about[k][2]) for k, v in numbers.items() if k in about]


def restore(
    model: ConditionedDenoiser, measurement: Measurement, posterior: Posterior, truth: Tensor, drawing: Drawing
) -> Restoration:
    """Measure samples with noise of their own and draw from their posterior.

    Args:
        model: the prior.
        measurement: A and σ_y.
        posterior: how to draw.
        truth: samples x0, (N, *shape), in the model's space.
        drawing: how many draws, and how; the noise of measurement i depends on (seed, i).

    Raises:
        ConfigurationError: the samples do not fit the measurement, or the posterior the model.
    """
    if tuple(truth.shape[1:]) != measurement.shape:
        raise ConfigurationError(
            f"samples of shape {tuple(truth.shape[1:])} were given to a measurement of {measurement.shape}: give "
            "samples of that shape."
        )
    for given, needed, key in (
        (drawing.labels, model.num_classes is not None and not model.conditioner.reads_text, "label"),
        (drawing.prompts, model.conditioner.reads_text and model.num_classes is None, "prompt"),
    ):
        if needed and given is None:
            raise ConfigurationError(
                f"this model is told the {key} of what it draws, and no {key} was given: give one for each sample."
            )
        if given is not None and len(given) != len(truth):
            raise ConfigurationError(
                f"{len(given)} values of {key} were given for {len(truth)} samples: give one for each sample."
            )
    posterior.check(model, drawing.guidance or model.sampling.guide(model))
    truth = truth.to(model.sigma_data)
    y = measurement.observe(truth, generators(NOISE_SEED + drawing.seed, range(len(truth))))
    draws = posterior.draw(model, y, drawing)
    return Restoration(truth, y, measurement.as_sample(y), draws)
