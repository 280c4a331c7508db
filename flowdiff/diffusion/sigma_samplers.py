"""Sigma samplers: the noise levels of a training batch, σ = Q(u), u uniform in (0, 1), Q a quantile function.

`stratified` draws u_i = (i + U_i)/n, i = 0 … n−1, in random order, instead of n independent numbers: every σ still
follows the distribution, but a batch covers it evenly, so that the loss averaged over a batch varies less.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.schedules import Table, check_range, ddpm_sigmas
from flowdiff.registry import register


class SigmaSampler(ABC):
    """A distribution of training noise levels, given by its quantile function.

    Args:
        stratified: whether the n draws of a call are spread evenly over the distribution.
    """

    def __init__(self, stratified: bool):
        self.stratified = stratified

    def __call__(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """Draw n noise levels, (n,), in the default floating-point type.

        Args:
            n: how many, ≥ 0.
            generator: it draws on its own device, so that a CPU generator gives the same σ on every device.
            device: where the result is placed; by default where the numbers were drawn.
        """
        source = device if generator is None else generator.device
        u = torch.rand(n, generator=generator, device=source)
        if self.stratified:
            u = (torch.arange(n, device=source) + u) / n
            u = u[torch.randperm(n, generator=generator, device=source)]
        # rounding produces u = 0 and u = 1, where an unbounded distribution has σ = 0 and σ = ∞
        margin = torch.finfo(u.dtype).eps / 2
        return self.quantile(u.clamp(margin, 1 - margin)).to(device or source)

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The σ below which a fraction u of the distribution lies, like u; u (n,) in (0, 1). Never decreasing in u."""

    def nearest(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that this distribution can draw, like sigma (any shape, > 0).

        A model is asked only at these levels. A continuous distribution returns sigma unchanged, which is the default.
        """
        return sigma


@register("sigma_sampler", "edm")
class EDM(SigmaSampler):
    """Log-normal noise levels.

    ln σ ~ N(p_mean, p_std²)

    Args:
        p_mean: mean of ln σ.
        p_std: standard deviation of ln σ, > 0.
        stratified: whether the draws of a batch are spread evenly over the distribution.

    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
    table 1.
    """

    def __init__(self, *, p_mean: float, p_std: PositiveFloat, stratified: bool):
        super().__init__(stratified)
        self.p_mean = p_mean
        self.p_std = p_std

    def quantile(self, u: Tensor) -> Tensor:
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u))


@register("sigma_sampler", "logit_normal")
class LogitNormal(SigmaSampler):
    """Times of flow matching whose logit is normal, and then shifted: t = σ/(1+σ) is logit-normal.

    ln σ = ln(t/(1−t)) ~ N(mean + ln(shift), std²)

    A shift α takes t to αt/(1 + (α−1)t), which is σ to ασ: larger pictures need more noise to hide as much.

    Args:
        mean: mean of logit t before the shift; 0 puts half of the times below ½.
        std: standard deviation of logit t, > 0.
        shift: α > 0; 1 leaves the times as they are.
        stratified: whether the draws of a batch are spread evenly over the distribution.

    Source: Esser et al., Scaling rectified flow transformers for high-resolution image synthesis, 2024: mean 0, std 1
        and, for pictures of 1024×1024, shift 3.
    """

    def __init__(self, *, mean: float, std: PositiveFloat, shift: PositiveFloat, stratified: bool):
        super().__init__(stratified)
        self.mean = mean
        self.std = std
        self.shift = shift

    def quantile(self, u: Tensor) -> Tensor:
        return self.shift * torch.exp(self.mean + self.std * torch.special.ndtri(u))


@register("sigma_sampler", "log_uniform")
class LogUniform(SigmaSampler):
    """Noise levels uniform in ln σ.

    σ = sigma_min·(sigma_max/sigma_min)^u,  u ~ U(0, 1)

    Args:
        sigma_min: smallest noise level, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.
        stratified: whether the draws of a batch are spread evenly over the distribution.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.

    Source: Song, Ermon, Improved techniques for training score-based generative models, 2020 (geometric noise levels,
    each equally likely), in its continuous limit.
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat, stratified: bool):
        super().__init__(stratified)
        check_range(sigma_min, sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def quantile(self, u: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(u * math.log(self.sigma_max / self.sigma_min))


@register("sigma_sampler", "uniform")
class Uniform(SigmaSampler):
    """Noise levels uniform in σ, for a model that is used at low noise only.

    σ = sigma_min + (sigma_max − sigma_min)·u,  u ~ U(0, 1)

    Args:
        sigma_min: smallest noise level, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.
        stratified: whether the draws of a batch are spread evenly over the distribution.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.

    Source: iTARFlow, arXiv 2604.20041, 2026 (σ from 0.01 to 0.3 … 0.7, and samples that start from the flow there).
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat, stratified: bool):
        super().__init__(stratified)
        check_range(sigma_min, sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def quantile(self, u: Tensor) -> Tensor:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * u


@register("sigma_sampler", "discrete")
class Discrete(SigmaSampler):
    """Noise levels of a discrete diffusion model's table, all equally likely.

    σ_t = √((1−ᾱ_t)/ᾱ_t),  ᾱ_t = Π_{s≤t} (1 − β_s),  t uniform in 1 … num_levels

    Args:
        table: formula of β, `linear`, `sqrt_linear` or `cosine`.
        num_levels: number of levels in the table, ≥ 2.
        beta_start: first β, in (0, 1); null takes the table's usual one; `cosine` allows null only.
        beta_end: last β, in (0, 1); null takes the table's usual one; `cosine` allows null only.
        stratified: whether the draws of a batch are spread evenly over the distribution.

    Raises:
        ConfigurationError: num_levels is below 2, or a β is outside (0, 1) or given for table=cosine.

    Source: Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020.
    """

    def __init__(
        self,
        *,
        table: Table,
        num_levels: PositiveInt,
        beta_start: PositiveFloat | None,
        beta_end: PositiveFloat | None,
        stratified: bool,
    ):
        super().__init__(stratified)
        self.levels = ddpm_sigmas(table, num_levels, beta_start, beta_end)  # (num_levels,), increasing

    def quantile(self, u: Tensor) -> Tensor:
        index = (u * len(self.levels)).long().clamp(max=len(self.levels) - 1)
        return self.levels.to(u)[index]

    def nearest(self, sigma: Tensor) -> Tensor:
        """The table's levels nearest to sigma (any shape, > 0) in ln σ, like sigma in shape, type and device.

        Rounding is in ln σ because a denoiser's task changes with the ratio of noise levels, not with their
        difference: between neighbours a < b the border is √(ab). In linear σ it would be (a+b)/2, nearer to b
        in ratio, and a σ just below it would be rounded to a, which is smaller by a factor of almost (1 + b/a)/2.
        """
        log_levels = self.levels.log()
        midpoints = ((log_levels[1:] + log_levels[:-1]) / 2).to(sigma.device)
        return self.levels.to(sigma)[torch.bucketize(sigma.log().to(midpoints), midpoints)]
