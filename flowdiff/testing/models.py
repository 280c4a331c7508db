"""A model around a known network: what samplers, guidance and metrics take, without a training run."""

from __future__ import annotations

from torch import Tensor

from flowdiff.data.pixels import Pixels
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.guidance.none import NoGuidance
from flowdiff.diffusion.model import ConditionedDenoiser, Sampling
from flowdiff.diffusion.samplers.clipping import DataRange
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioners.classes import Unconditional
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.base import FirstStage
from flowdiff.models.first_stage.identity import IdentityFirstStage
from flowdiff.models.networks.base import Density, Network
from flowdiff.registry import create


class ScoreOf(Network):
    """The score of a density as a plain network, which is not itself a density.

    F = ∇ₓ log p_σ(x|c)

    Args:
        density: p.
    """

    def __init__(self, density: Density):
        super().__init__()
        self.density = density

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        return self.density(x, c_noise, cond)


def model_of(
    network: Network,
    *,
    conditioner: Conditioner | None = None,
    first_stage: FirstStage | None = None,
    shape: tuple[int, ...] = (),
    sigma_data: float = 0.5,
) -> ConditionedDenoiser:
    """A model in eval mode with the scaling `score`, D = x + σ²·F, and the sampler heun and the default
    schedule; D is not clipped.

    Args:
        network: F, a score; for an oracle its `network`.
        conditioner: labels → condition; by default the model is unconditional.
        first_stage: the latent space; by default the model works in data space.
        shape: shape of a sample in data space; only sampling needs it.
        sigma_data: root mean square of the data, > 0.
    """
    denoiser = Denoiser(network, create("scaling", "score"))
    denoiser.sigma_data.fill_(sigma_data)
    schedule, levels = create("schedule", "karras"), create("sigma_sampler", "edm")
    sampling = Sampling(
        create("sampler", "heun"), schedule, lambda model, *_: NoGuidance(model), levels, settings={}, clip=False
    )
    to_uint8 = Pixels(256, dequantize=True, flip=False).to_uint8
    stage = first_stage or IdentityFirstStage(shape)
    data_range = DataRange(stage.latent_shape[0] if stage.latent_shape else 1, images=False)
    return ConditionedDenoiser(denoiser, conditioner or Unconditional(), stage, to_uint8, sampling, data_range).eval()
