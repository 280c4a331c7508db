"""start=image: sampling from a picture that is noised as far as a strength says, so that it is changed and not
replaced.

    x = x0 + σ·noise,  σ the level at the share 1 − strength of the grid,

from which the sampler goes down to 0. At strength 1 the start is lost in noise, as with start=noise.

Source: Meng, He, Song, Song, Wu, Zhu, Ermon, SDEdit: guided image synthesis and editing with stochastic differential
equations, 2022.
"""

from __future__ import annotations

from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import Generators, randn


def level_of(strength: float, sigmas: Tensor) -> float:
    """The noise level of a strength in (0, 1] in a grid (N+1,) that decreases to 0.

    Raises:
        ConfigurationError: the strength is not in (0, 1].
    """
    if not 0 < strength <= 1:
        raise ConfigurationError(
            f"strength={strength:g} is not allowed: it is the share of the steps that the picture is noised back, more "
            "than 0 (the picture as it is) and at most 1 (noise alone)."
        )
    steps = len(sigmas) - 1
    return float(sigmas[min(round((1 - strength) * steps), steps - 1)])


class NoisedImage:
    """What start=image begins with: a picture with fresh noise.

    Args:
        x0: the picture in the space of the model, (1, *shape).
    """

    def __init__(self, x0: Tensor):
        self.x0 = x0

    def sample(self, sigma: Tensor, cond: Conditioning | None = None, generator: Generators = None) -> Tensor:
        """x0 + σ·noise at the noise levels sigma (B,), (B, *shape)."""
        noise = randn((len(sigma), *self.x0.shape[1:]), generator, device=sigma.device, dtype=self.x0.dtype)
        return self.x0 + sigma.view(-1, *[1] * (noise.ndim - 1)) * noise
