"""Sigma samplers: the noise levels of a training batch, σ = Q(u), u uniform in (0, 1), Q a quantile function.

`stratified` draws u_i = (i + U_i)/n, i = 0 … n−1, in random order, instead of n independent ones: every σ
still follows the law, but a batch covers it evenly, so that the loss averaged over a batch varies less.
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
    """A law of training noise levels, given by its quantile function.

    stratified: whether the n draws of a call are spread evenly over the law (see the module).
    """

    def __init__(self, stratified: bool):
        self.stratified = stratified

    def __call__(
        self, n: int, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """n noise levels: (n,) in the default floating type, on `device`.

        generator: draws on its own device, so that a CPU generator gives the same σ on every device.
        """
        source = device if generator is None else generator.device
        u = torch.rand(n, generator=generator, device=source)
        if self.stratified:
            u = (torch.arange(n, device=source) + u) / n
            u = u[torch.randperm(n, generator=generator, device=source)]
        # rounding produces u = 0 and u = 1, where a law without bounds has σ = 0 and σ = ∞
        margin = torch.finfo(u.dtype).eps / 2
        return self.quantile(u.clamp(margin, 1 - margin)).to(device or source)

    @abstractmethod
    def quantile(self, u: Tensor) -> Tensor:
        """The σ below which a share u of the law lies: u (n,) in (0, 1) -> (n,), never decreasing."""


@register("sigma_sampler", "edm")
class EDM(SigmaSampler):
    """Log-normal: ln σ ~ N(p_mean, p_std²).

    p_mean: mean of ln σ; p_std > 0: its standard deviation.
    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models,
    2022, table 1.
    """

    def __init__(self, *, p_mean: float, p_std: PositiveFloat, stratified: bool):
        super().__init__(stratified)
        self.p_mean = p_mean
        self.p_std = p_std

    def quantile(self, u: Tensor) -> Tensor:
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u))


@register("sigma_sampler", "log_uniform")
class LogUniform(SigmaSampler):
    """ln σ uniform between ln sigma_min and ln sigma_max.

    0 < sigma_min < sigma_max: in data units; ConfigurationError otherwise.
    Source: Song, Ermon, Improved techniques for training score-based generative models, 2020 (geometric noise
    levels, each equally likely), in its continuous limit.
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat, stratified: bool):
        super().__init__(stratified)
        check_range(sigma_min, sigma_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def quantile(self, u: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(u * math.log(self.sigma_max / self.sigma_min))


@register("sigma_sampler", "discrete")
class Discrete(SigmaSampler):
    """A level of a discrete model's table, all equally likely.

    table, num_levels, beta_start, beta_end: see `flowdiff.diffusion.schedules.ddpm_sigmas`.
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
        in ratio, and a σ just below it would be treated as if it were almost b/a times smaller than it is.
        """
        log_levels = self.levels.log()
        midpoints = ((log_levels[1:] + log_levels[:-1]) / 2).to(sigma.device)
        return self.levels.to(sigma)[torch.bucketize(sigma.log().to(midpoints), midpoints)]
