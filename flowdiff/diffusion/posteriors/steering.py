"""Posteriors that steer the denoiser: E[x0|x, y] in the place of D = E[x0|x], so that any sampler draws from p(x0|y).

By Bayes' rule the score of p_σ(x|y) is that of p_σ(x) plus ∇ₓ log p(y|x), and by Tweedie's formula

    E[x0|x, y] = D + σ²·∇ₓ log p(y|x).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidable, Guidance
from flowdiff.diffusion.guidance.none import NoGuidance
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.posteriors.base import Drawing, Draws, Posterior
from flowdiff.diffusion.posteriors.jacobian import Product, linearised
from flowdiff.diffusion.samplers.base import Sampler
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density
from flowdiff.registry import name_of


class Steering(Posterior):
    """A posterior that steers the denoiser.

    differentiates: whether it takes derivatives of D, at the cost of further evaluations.

    Args:
        measurement: A and σ_y.
    """

    differentiates: bool = False

    def __init__(self, measurement: Measurement):
        super().__init__(measurement)
        self.derivatives = 0  # samples whose D it has differentiated, and products with ∂D/∂x

    @abstractmethod
    def steered(self, denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None, y: Tensor) -> Tensor:
        """The estimate of E[x0|x, y], like x (B, …), at sigma (B,) for y (B, …) or one y for all, (1, …)."""

    def sampler(self, sampler: Sampler) -> Sampler:
        """The steps that it draws by, given those of the model."""
        return sampler

    def linearised(
        self, denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None
    ) -> tuple[Tensor, Product]:
        """D and v ↦ (∂D/∂x)ᵀ·v, both counted as evaluations."""
        D, pulled = linearised(denoiser, x, sigma, cond)
        if isinstance(denoiser.network, Density):
            self.derivatives += len(x)  # it was not the denoiser that was called

        def product(v: Tensor) -> Tensor:
            self.derivatives += len(v)
            return pulled(v)

        return D, product

    def check(self, model: ConditionedDenoiser, guidance: Guidance) -> None:
        super().check(model, guidance)
        name = name_of("posterior", self)
        if not self.differentiates:
            return
        if not isinstance(guidance, NoGuidance):
            raise ConfigurationError(
                f"posterior={name} differentiates D, and guidance={name_of('guidance', guidance)} changes D in a way "
                "that it does not differentiate: set guidance=none, or posterior=replacement or repaint."
            )
        if isinstance(model.network, Density) and not model.network.twice_differentiable:
            raise ConfigurationError(
                f"posterior={name} differentiates the score, and the flow of this run can be differentiated only once: "
                "set posterior=replacement, repaint or hmc, or train another flow."
            )

    def draw(self, model: ConditionedDenoiser, y: Tensor, drawing: Drawing) -> Draws:
        guidance = drawing.guidance or model.sampling.guide(model)
        self.check(model, guidance)
        sampler = self.sampler(drawing.sampler or model.sampling.sampler)
        n, count = len(y) * drawing.count, drawing.count
        # Several measurements share a batch, unless the sampler would ask for some rows of it, whose y is not known.
        together = 1 if sampler.asks_for_rows else max(1, drawing.batch_size // count)
        labels = None if drawing.labels is None else [label for label in drawing.labels for _ in range(count)]
        prompts = None if drawing.prompts is None else [text for text in drawing.prompts for _ in range(count)]
        found, evaluations = [], 0
        for first in range(0, len(y), together):
            seen = y[first : first + together]
            steered = Steered(guidance, self, seen if len(seen) == 1 else seen.repeat_interleave(count, 0))
            before = steered.evaluations
            drawn = model.sample(
                n,
                label=labels,
                prompt=prompts,
                seed=drawing.seed,
                sampler=sampler,
                schedule=drawing.schedule,
                guidance=steered,
                start="noise",
                clip=drawing.clip,
                batch_size=drawing.batch_size,
                indices=range(first * count, (first + len(seen)) * count),
            )
            found.append(drawn.view(len(seen), count, *drawn.shape[1:]))
            evaluations += steered.evaluations - before
            if drawing.progress is not None:
                drawing.progress((first + len(seen)) * count, n)
        return Draws(torch.cat(found), evaluations / n)


class Steered(Guidance):
    """A denoiser that a posterior steers towards a measurement; samplers call it like any other.

    D_y ≈ E[x0|x, y]

    Args:
        denoiser: what is wrapped: a model, or a guidance around one.
        method: how it is steered.
        y: the measurement, one for all samples, (1, …), or one for each sample of a batch, (B, …).
    """

    def __init__(self, denoiser: Guidable, method: Steering, y: Tensor):
        super().__init__(denoiser)
        self.method = method
        self.y = y

    @property
    def evaluations(self) -> int:
        return self.denoiser.evaluations + self.method.derivatives

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """The estimate of E[x0|x, y], like x (B, …), at sigma (B,)."""
        if len(self.y) not in (1, len(x)):
            raise ConfigurationError(
                f"{len(self.y)} measurements were given for a batch of {len(x)} samples: give one for each sample, or "
                "one for all of them."
            )
        return self.method.steered(self.denoiser, x, sigma, cond, self.y)
