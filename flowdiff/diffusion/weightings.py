"""Weightings w(σ) of the denoising loss w(σ)·‖D(x, σ) − x0‖² and of the likelihood loss −w(σ)·log p_σ(x|c).

The signal-to-noise ratio of x = x0 + σ·noise is SNR = σ⁻². Every weight applies to the error of D in data units;
multiplied by c_out² of a scaling it becomes the weight of the error of the network F.

A squared error of D has a size that changes with σ, and most weights undo that. A log-likelihood is in nats at every σ:
these weights would give nearly all of the loss to the smallest σ, so loss=nll takes only those with `of_likelihood`.
"""

from abc import ABC, abstractmethod

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.registry import create, register


class Weighting(ABC):
    """The weight of a sample's loss as a function of its noise level.

    of_likelihood: whether it can weight a log-likelihood, because it stays bounded as σ → 0.
    """

    of_likelihood: bool = False

    @abstractmethod
    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        """The weights, (B,), > 0.

        Args:
            sigma: noise levels, (B,), > 0, in data units.
            sigma_data: root mean square of the data, a scalar.
        """

    def offset(self, sigma: Tensor) -> Tensor:
        """What is added to the weighted loss, like sigma: 0, unless the weights are learned."""
        return torch.zeros_like(sigma)


@register("weighting", "edm")
class EDM(Weighting):
    """The unweighted loss of F under scaling=edm.

    w = (σ²+σ_d²)/(σσ_d)²,  σ_d = sigma_data

    A network that outputs zero has a loss of about one at every σ.

    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
    table 1.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


@register("weighting", "eps")
class Eps(Weighting):
    """The unweighted loss of the predicted noise.

    w = σ⁻² = SNR

    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020, equation 14.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return sigma**-2


@register("weighting", "v")
class V(Weighting):
    """The unweighted loss of the predicted velocity.

    w = (σ²+1)/σ² = SNR + 1

    Source: Salimans, Ho, Progressive distillation for fast sampling of diffusion models, 2022.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return 1 + sigma**-2


@register("weighting", "flow_matching")
class FlowMatching(Weighting):
    """The unweighted loss of the velocity noise − x0 of flow matching.

    w = ((1+σ)/σ)² = t⁻²,  t = σ/(1+σ)

    Source: Lipman, Chen, Ben-Hamu, Nickel, Le, Flow matching for generative modeling, 2023.
    """

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return (1 + 1 / sigma) ** 2


@register("weighting", "unit")
class Unit(Weighting):
    """w = 1: the plain mean squared error of D, which high noise levels dominate, or the plain likelihood."""

    of_likelihood = True

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return torch.ones_like(sigma)


@register("weighting", "min_snr")
class MinSNR(Weighting):
    """The loss of the predicted noise with a largest weight, so that nearly clean samples do not dominate.

    w = min(σ⁻², γ); for γ → ∞ this is `eps`.

    Args:
        gamma: γ, the largest weight, > 0.

    Source: Hang, Gu, Li, Bao, Chen, Hu, Geng, Guo, Efficient diffusion training via min-SNR weighting strategy, 2023.
    """

    def __init__(self, *, gamma: PositiveFloat):
        self.gamma = gamma

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return (sigma**-2).clamp(max=self.gamma)


@register("weighting", "soft_min_snr")
class SoftMinSNR(Weighting):
    """`min_snr` with its corner rounded off.

    w = γ·SNR/(γ + SNR) = 1/(σ² + 1/γ); γ = 1/σ_d² gives 1/(σ²+σ_d²), k-diffusion's "soft-min-snr".

    Args:
        gamma: γ, the weight as σ → 0, > 0.

    Source: Crowson, Baumann, Birch, Abraham, Kaplan, Shippole, Scalable high-resolution pixel-space image synthesis
    with hourglass diffusion transformers, 2024; in code in k-diffusion.
    """

    def __init__(self, *, gamma: PositiveFloat):
        self.gamma = gamma

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return 1 / (sigma**2 + 1 / self.gamma)


@register("weighting", "sigma")
class Sigma(Weighting):
    """A power of the noise level.

    w = σ^power

    With loss=nll, power=1 is iTARFlow's weight: high noise levels, which set the layout of a sample, count more.

    Args:
        power: exponent, ≥ 0; 0 is `unit`.

    Source: iTARFlow, arXiv 2604.20041, 2026.
    """

    of_likelihood = True

    def __init__(self, *, power: NonNegativeFloat):
        self.power = power

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return sigma**self.power


@register("weighting", "noise_share")
class NoiseShare(Weighting):
    """The noise's share of the size of x.

    w = σ/√(σ²+σ_d²),  σ_d = sigma_data

    It is σ/σ_d at low noise, as `sigma` is, and at most 1, so that no noise level above the data dominates.
    """

    of_likelihood = True

    def __call__(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return sigma / (sigma**2 + sigma_data**2) ** 0.5


@register("weighting", "uncertainty")
class Uncertainty(nn.Module, Weighting):
    """Another weighting, divided by the loss that is to be expected at each noise level, which is learned.

    loss = w(σ)·e^{−u(σ)}·‖D − x0‖² + u(σ),  u = ⟨v, √2·cos(ω·¼ln σ + φ)⟩/√K

    For a given model it is smallest where e^u is the mean of the weighted error at σ; then every noise level
    contributes the same gradient. u = 0 at the start. Random frequencies ω ~ N(0, 4π²) and phases φ are fixed, v is
    trained with the model, and only the checkpoints of the run hold it.

    Args:
        base: the name of the other weighting, with the settings of its YAML file.
        features: K ≥ 1.

    Raises:
        ConfigurationError: base is this weighting itself, or there is none of that name.

    Source: Karras, Aittala, Lehtinen, Hellsten, Aila, Laine, Analyzing and improving the training dynamics of diffusion
    models, 2024, equations 14 and 15; Kendall, Gal, Cipolla, Multi-task learning using uncertainty, 2018.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, *, base: str, features: PositiveInt):
        super().__init__()
        if base == "uncertainty":
            raise ConfigurationError("weighting.base=uncertainty names itself: give the weighting that it divides.")
        self.base: Weighting = create("weighting", base)
        fixed = torch.Generator().manual_seed(0)
        self.register_buffer("frequencies", 2 * torch.pi * torch.randn(features, generator=fixed))
        self.register_buffer("phases", 2 * torch.pi * torch.rand(features, generator=fixed))
        self.v = nn.Parameter(torch.zeros(features))

    def forward(self, sigma: Tensor, sigma_data: Tensor | float) -> Tensor:
        return self.base(sigma, sigma_data) * torch.exp(-self.offset(sigma))

    def offset(self, sigma: Tensor) -> Tensor:
        """u(σ), like sigma."""
        phase = sigma.log()[:, None] / 4 * self.frequencies.to(sigma) + self.phases.to(sigma)
        return (2 / len(self.v)) ** 0.5 * phase.cos() @ self.v.to(sigma)
