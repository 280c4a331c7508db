"""The space that a model lives in: z = (ℓ − shift)·scale for the latent ℓ ~ q(ℓ|x) of an autoencoder, or the data's.

An image goes there by `encode` and comes back by `decode`, x ← E[x|ℓ]. The autoencoder comes from another run or from
nobody here. Frozen, it is neither in the checkpoints nor in the weight average of the run that uses it, shift and scale
are; trained along with the model of its latents, it is a part of that run like any other, and of the bound

    log p(x) ≥ E_q[log p(x|ℓ) + log p(z) − log q(z|x)],    log q(z|x) = log q(ℓ|x) − ln|det ∂z/∂ℓ|,

`drawn` gives the autoencoder's part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from flowdiff.digests import digest, weight_hash
from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.autoencoder.posterior import Posterior
from flowdiff.noise import Generators, randn_like
from flowdiff.shapes import append_dims

Precision = Literal["float32", "float16", "bfloat16"]
Scale = Literal["channel", "global", "none"]


class FirstStage(nn.Module, ABC):
    """x (B, *shape) in [−1, 1] → z (B, *latent_shape) → x."""

    latent_shape: tuple[int, ...]
    is_identity = False
    trained = False  # along with the model that lives there

    @abstractmethod
    def encode(self, x: Tensor, generator: Generators = None) -> Tensor:
        """z for data x (B, *shape), ε drawn from `generator`: one, or one per sample. Carries no graph."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Data (B, *shape) for z (B, *latent_shape), on z's device. Carries no graph."""

    @abstractmethod
    def shares_space(self, other: FirstStage) -> bool:
        """Whether one z means the same to another first stage."""


class DrawnLatent(NamedTuple):
    """z (B, *latent_shape) of ℓ ~ q(ℓ|x), log p(x|ℓ) and log q(z|x) in nats (B,)."""

    z: Tensor
    log_likelihood: Tensor
    log_posterior: Tensor

    def bound(self, log_prior: Tensor) -> Tensor:
        """log p(x|ℓ) + log p(z) − log q(z|x), (B,) nats, for log p(z) (B,): its mean over ε is at most log p(x)."""
        return self.log_likelihood + log_prior - self.log_posterior


class AutoencoderStage(FirstStage):
    """An autoencoder in chunks and in a precision of its own.

    chunk_size: images that go through it at once; memory grows with these, not with what is encoded or decoded.
    precision: of its weights and what it computes; what comes out is float32.
    scale: channel (or, of a vector, dimension) by channel, or global: shift and scale are measured so that the training
    latents have mean 0 and standard deviation 1; none: they stay as the constructor of a subclass sets them.
    cache_dir: folder of the encoded data (flowdiff/data/latents.py).
    train: whether its weights are trained. Shift and scale stay those of the latents it began with: once these have
    moved, mean 0 and deviation 1 are no longer theirs, and z = (ℓ − shift)·scale is no more than the coordinates that
    the model sees, in which every bound is exact, whatever they are.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        *,
        scale: Scale,
        chunk_size: int,
        precision: Precision,
        cache_dir: str,
        train: bool = False,
    ):
        super().__init__()
        autoencoder.to(getattr(torch, precision)).train(train).requires_grad_(train)
        self.trained = train
        self.held = _Own(autoencoder) if train else _Shared(autoencoder)
        self.law = autoencoder.law.float().train()  # one number, and the run's own: what its bound in bits/dim is of
        self.shape = autoencoder.shape
        self.latent_shape = autoencoder.latent_shape
        self.how_scaled = scale
        self.chunk_size = chunk_size
        self.precision = precision
        self.cache_dir = Path(cache_dir).expanduser()
        self.register_buffer("shift", torch.zeros(self.latent_shape[0]))
        self.register_buffer("scale", torch.ones(self.latent_shape[0]))

    @property
    def autoencoder(self) -> Autoencoder:
        """In its own precision."""
        return self.held.module

    def key(self) -> str:
        """Hash of what decides the latents of an image: the weights, in their precision."""
        weights = self.autoencoder.state_dict()
        return digest(weight_hash({name: w for name, w in weights.items() if not name.startswith("law.")}))

    def shares_space(self, other: FirstStage) -> bool:
        if not isinstance(other, AutoencoderStage) or self.key() != other.key():
            return False
        pairs = (self.shift, other.shift), (self.scale, other.scale)
        return all(torch.allclose(mine.cpu(), theirs.cpu()) for mine, theirs in pairs)

    def posterior(self, x: Tensor) -> Posterior:
        """q(ℓ|x) of x (B, *shape), on x's device; differentiable where it is trained."""
        parts = [Posterior(*self._run(self.autoencoder.posterior, part)) for part in x.split(self.chunk_size)]
        return Posterior(*map(torch.cat, zip(*parts, strict=True)))

    @torch.no_grad()
    def encode(self, x: Tensor, generator: Generators = None) -> Tensor:
        posterior = self.posterior(x)
        return self.scaled(posterior.sample(randn_like(posterior.mean, generator)))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        return self._in_chunks(self.autoencoder.decode, self.latent(z))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x|ℓ] at ℓ = E[ℓ|x], like x."""
        return self._in_chunks(self.autoencoder.reconstruct, x)

    def log_likelihood(self, x: Tensor, latent: Tensor) -> Tensor:
        """log p(x|ℓ) in nats, (B,); differentiable where it is trained."""
        a, place = self._in_chunks(self.autoencoder.decoded, latent), self.shift.device
        return self.law.log_prob(x.to(place), a.to(place)).to(x.device)

    def drawn(self, x: Tensor, noise: Tensor) -> DrawnLatent:
        """z at ℓ = m(x) + e^{v(x)/2}·noise, noise (B, *latent_shape) ~ N(0, I); differentiable where it is trained."""
        posterior = self.posterior(x)
        latent = posterior.sample(noise)
        log_posterior = posterior.log_prob(latent) - self.log_volume.to(x.device)
        return DrawnLatent(self.scaled(latent), self.log_likelihood(x, latent), log_posterior)

    def scaled(self, latent: Tensor) -> Tensor:
        """z of ℓ (B, *latent_shape)."""
        return (latent - self._of_channels(self.shift, latent)) * self._of_channels(self.scale, latent)

    def latent(self, z: Tensor) -> Tensor:
        """ℓ of z (B, *latent_shape)."""
        return z / self._of_channels(self.scale, z) + self._of_channels(self.shift, z)

    @property
    def log_volume(self) -> Tensor:
        """ln|det ∂z/∂ℓ|, the same everywhere: a scalar."""
        return self.scale.double().log().sum() * math.prod(self.latent_shape[1:])

    def fit(self, posteriors: Iterable[Posterior], images: Tensor) -> None:
        """Measure what is to be measured: shift and scale on the posteriors of the training data, in float64, and the
        scale of p(x|ℓ) on training images (N, *shape), if the autoencoder was trained without one.
        """
        if self.how_scaled != "none":
            self._fit_scale(posteriors)
        if not self.autoencoder.calibrated:
            posterior = self.posterior(images)
            noise = randn_like(posterior.mean, torch.Generator(images.device).manual_seed(0))
            error = images - self._in_chunks(self.autoencoder.decode, posterior.sample(noise))
            self.law.fit(error.double().square().mean().item())

    def _fit_scale(self, posteriors: Iterable[Posterior]) -> None:
        n, total, square = 0, 0.0, 0.0
        for mean, log_variance in posteriors:
            mean, log_variance = (t.transpose(0, 1).flatten(1).double().cpu() for t in (mean, log_variance))
            n += mean.shape[1]
            total, square = total + mean.sum(1), square + (mean**2 + log_variance.exp()).sum(1)
        mean, power = total / n, square / n  # (channels,)
        if self.how_scaled == "global":
            mean, power = mean.mean().expand_as(mean), power.mean().expand_as(power)
        self.shift.copy_(mean)
        self.scale.copy_((power - mean**2).clamp(min=torch.finfo(torch.float32).tiny).rsqrt())

    def _run(self, function: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, ...]:
        """function of the autoencoder on one chunk, on its device and in its precision; back where x is, float32."""
        weight = next(w for name, w in self.autoencoder.named_parameters() if not name.startswith("law."))
        with torch.autocast(weight.device.type, enabled=False):
            found = function(x.to(weight))
        return tuple(part.to(x.device, torch.float32) for part in (found if isinstance(found, tuple) else (found,)))

    def _in_chunks(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        parts = [self._run(function, part)[0] for part in x.split(self.chunk_size)]
        return torch.cat(parts) if parts else x.new_empty(0, *self.shape)

    def _of_channels(self, v: Tensor, like: Tensor) -> Tensor:
        return append_dims(v.to(like.device), like.ndim - 1)


class _Own(nn.Module):
    """Holds a module as a part of its holder."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


class _Shared(nn.Module):
    """Holds a module of others, which is in no state_dict and among no parameters, but moves along.

    It is its own copy: the weight average shares what never changes.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self._theirs = (module,)  # a tuple, into which nn.Module does not look

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        (module,) = self._theirs
        return module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Shared:
        self.module._apply(fn)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self
