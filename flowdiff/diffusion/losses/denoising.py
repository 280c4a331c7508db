"""Denoising: the weighted squared (or absolute) error of D."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import OF_THE_SCORE, PAIRING_IS_NOT_TWEEDIE, Loss, LossOutput, Share
from flowdiff.diffusion.losses.pairing import Pairing, nearest_pairs, noise_of_flow
from flowdiff.diffusion.losses.teacher import Load
from flowdiff.diffusion.other_run import OfData
from flowdiff.diffusion.weightings import Weighting
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.directional import Gradient
from flowdiff.noise import Generators, randn, randn_like
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch


@register("loss", "denoising", requires=(*OF_THE_SCORE, PAIRING_IS_NOT_TWEEDIE))
class Denoising(Loss):
    """The weighted error of the denoiser, w(σ)·‖D(x, σ, c) − x0‖²/D, or w(σ)·‖D − x0‖₁/D with norm="l1".

    Args:
        weighting: w(σ).
        load: run folder → its model.
        norm: l2 for the squared error, l1 for the absolute error.
        offset_noise: ≥ 0, standard deviation of one further normal number per channel that is added to the noise.
        pairing: which noise a sample of the batch gets: `independent`, or `optimal_transport`, the permutation of the
            batch's noise with the smallest Σ‖x0 − noise‖². Then the paths of samples cross less, so that fewer steps
            suffice. The ODE stays right, but noise and data are no longer independent, so Tweedie's formula does not
            hold for D: use a sampler without noise. Nor is the noise of one class N(0, I), where a sample of the class
            starts; that error grows with the batch. `flow`: the base point z of the sample in a trained flow, which is
            the same in every epoch, so that paths hardly cross, and N(0, I) for each class as far as the flow fits. D
            is Tweedie's no more than with optimal_transport.
        run: pairing=flow: folder of the flow.
        pairing_sigma: pairing=flow: noise level of the samples that the flow encodes, at which it was trained, > 0.
        gradient: how the score of a flow is differentiated: double_backward, directional or forward_mode.
        fokker_planck: λ ≥ 0, weight of the squared residual of the Fokker–Planck equation; 0 leaves it out.
        fokker_planck_share: part of the batch that the residual is computed for, in (0, 1].
        fokker_planck_every: steps from one with the residual, so many times as strong, to the next, ≥ 1.

    Raises:
        ConfigurationError: fokker_planck with offset_noise, whose data solve another equation; a run without
            pairing=flow, or pairing=flow without one or with one that is not a flow of the same data.

    Source: Vincent, A connection between score matching and denoising autoencoders, 2011; Karras et al., Elucidating
        the design space of diffusion-based generative models, 2022; Guttenberg, Diffusion with offset noise, 2023;
        Tong, Fatras et al., Improving and generalizing flow-based generative models with minibatch optimal transport,
        2024; `flow`: Normalizing flow matching, 2026.
    """

    def __init__(
        self,
        weighting: Weighting,
        load: Load | None = None,
        *,
        norm: Literal["l1", "l2"],
        offset_noise: NonNegativeFloat,
        pairing: Pairing,
        run: str | None,
        pairing_sigma: PositiveFloat,
        gradient: Gradient,
        fokker_planck: NonNegativeFloat,
        fokker_planck_share: Share,
        fokker_planck_every: PositiveInt,
    ):
        if fokker_planck and offset_noise:
            raise ConfigurationError(
                f"loss.fokker_planck={fokker_planck:g} loss.offset_noise={offset_noise:g} do not go together: the "
                "Fokker–Planck equation is that of noise N(0, σ²I); set one of them to 0."
            )
        self.weighting = weighting
        self.learned = weighting if isinstance(weighting, nn.Module) else None
        self.gradient = gradient
        self.fokker_planck = fokker_planck
        self.fokker_planck_share = fokker_planck_share
        self.fokker_planck_every = fokker_planck_every
        self.distance = {"l1": Tensor.abs, "l2": Tensor.square}[norm]
        self.offset_noise = offset_noise
        self.pairing = pairing
        self.flow_noise = noise_of_flow("denoising", load, pairing, run, pairing_sigma)

    def check(self, model: OfData) -> None:
        if self.flow_noise is not None:
            self.flow_noise.teacher.check(model)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        if self.flow_noise is not None:
            noise = self.flow_noise(x0, noise, cond)
        D = denoiser(x0 + append_dims(sigma, x0.ndim) * noise, sigma, cond)
        weight = self.weighting(sigma, denoiser.sigma_data)
        return LossOutput(weight * mean_except_batch(self.distance(D - x0)) + self.weighting.offset(sigma))

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        noise = randn_like(x0, generator)
        if self.offset_noise:
            per_channel = x0.shape[:2] + (1,) * (x0.ndim - 2)  # (B, C, 1, 1)
            noise = noise + self.offset_noise * randn(per_channel, generator, device=x0.device, dtype=x0.dtype)
        return noise[nearest_pairs(x0, noise)] if self.pairing == "optimal_transport" else noise
