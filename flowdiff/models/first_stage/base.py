"""The space in which a model works: z = (ℓ − shift)·scale for the latent ℓ ~ q(ℓ|x) of an autoencoder, or data space.

`encode` maps images to z, and `decode` maps z to images, x ← E[x|ℓ]. The autoencoder comes from another run or is
pretrained. If it is frozen, the checkpoints and the weight average of the run contain its shift and scale but not its
weights. If it is trained together with the model of its latents, they contain all of it, and the loss is the bound

    log p(x) ≥ E_q[log p(x|ℓ) + log p(z) − log q(z|x)],    log q(z|x) = log q(ℓ|x) − ln|det ∂z/∂ℓ|,

in which `sample_latent` gives the terms of the autoencoder.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from flowdiff.digests import digest, weight_hash
from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.autoencoder.decoder_laws import GaussianLaw
from flowdiff.models.autoencoder.posterior import Posterior
from flowdiff.models.networks.base import Network
from flowdiff.noise import Generators, randn_like
from flowdiff.shapes import append_dims

Precision = Literal["float32", "float16", "bfloat16"]
Scale = Literal["channel", "global", "none"]
DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class FirstStage(nn.Module, ABC):
    """A pair of maps between data space and the space in which the model works.

    x (B, *shape) ∈ [−1, 1] → z (B, *latent_shape) → x
    """

    latent_shape: tuple[int, ...]
    is_identity: bool = False  # whether z = x
    trained: bool = False  # whether it is trained together with the model of its latents

    @abstractmethod
    def encode(self, x: Tensor, generator: Generators = None) -> Tensor:
        """z for data x (B, *shape), with ε from one generator or from one per sample. Not differentiable."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Data (B, *shape) for z (B, *latent_shape), on z's device. Not differentiable."""

    @abstractmethod
    def shares_space(self, other: FirstStage) -> bool:
        """Whether `other` maps the same data to the same z."""


class LoadedModel(Protocol):
    """The trained model of a run folder, as far as a first stage uses it."""

    @property
    def network(self) -> Network:
        """The trained network."""


class LatentSample(NamedTuple):
    """A sample of z for each image of a batch, with the autoencoder's terms of the bound."""

    z: Tensor  # of ℓ ~ q(ℓ|x), (B, *latent_shape)
    log_likelihood: Tensor  # log p(x|ℓ) in nats, (B,)
    log_posterior: Tensor  # log q(z|x) in nats, (B,)

    def bound(self, log_prior: Tensor) -> Tensor:
        """log p(x|ℓ) + log p(z) − log q(z|x), (B,) nats, for log p(z) (B,); its mean over ε is at most log p(x)."""
        return self.log_likelihood + log_prior - self.log_posterior


class AutoencoderStage(FirstStage):
    """An autoencoder as first stage; it processes a batch in chunks and may compute in half precision.

    z = (ℓ − shift)·scale,  ℓ ~ q(ℓ|x)

    With train=true, shift and scale keep the values measured on the latents before training. Later the latents do not
    have mean 0 and standard deviation 1 any more, but every bound stays exact, because it holds in any coordinates z.

    Args:
        autoencoder: the encoder, decoder and distribution p(x|ℓ).
        scale: channel | global: shift and scale are measured, so that the training latents have mean 0 and standard
            deviation 1, per channel (for vectors: per dimension) or overall; none: they are not measured.
        chunk_size: images encoded or decoded at once, ≥ 1; peak memory grows with it.
        precision: of weights and computation; the results are float32.
        cache_dir: folder of the encoded data (flowdiff/data/latents.py).
        train: whether the weights are trained.
    """

    shift: Tensor  # (channels,)
    scale: Tensor  # (channels,)

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
        autoencoder.to(DTYPES[precision]).train(train).requires_grad_(train)
        self.trained = train
        self.held: _Registered | _Unregistered = _Registered(autoencoder) if train else _Unregistered(autoencoder)
        self.law = autoencoder.law.float().train()  # saved with the run, even if frozen: its scale is in the bound
        self.shape = autoencoder.shape
        self.latent_shape = autoencoder.latent_shape
        self.scale_mode = scale
        self.chunk_size = chunk_size
        self.precision = precision
        self.cache_dir = Path(cache_dir).expanduser()
        self.register_buffer("shift", torch.zeros(self.latent_shape[0]))
        self.register_buffer("scale", torch.ones(self.latent_shape[0]))

    @property
    def unmeasured(self) -> bool:
        """Whether shift and scale are still those of construction and are to be measured before training."""
        return self.scale_mode != "none" and not bool(self.shift.any()) and bool((self.scale == 1).all())

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder, in the stage's precision."""
        return self.held.module

    def key(self) -> str:
        """Hash of the weights, in their precision, which determine the latents of an image; the law is not included."""
        weights = self.autoencoder.state_dict()
        return digest(weight_hash({name: w for name, w in weights.items() if not name.startswith("law.")}))

    def shares_space(self, other: FirstStage) -> bool:
        if not isinstance(other, AutoencoderStage) or self.key() != other.key():
            return False
        if self.unmeasured or other.unmeasured:  # the same data will give the same
            return self.scale_mode == other.scale_mode
        pairs = (self.shift, other.shift), (self.scale, other.scale)
        return all(torch.allclose(mine.cpu(), theirs.cpu()) for mine, theirs in pairs)

    def posterior(self, x: Tensor) -> Posterior:
        """q(ℓ|x) of x (B, *shape), on x's device; differentiable if the stage is trained."""
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
        """E[x|ℓ] at ℓ = E[ℓ|x], shaped like x."""
        return self._in_chunks(self.autoencoder.reconstruct, x)

    def log_likelihood(self, x: Tensor, latent: Tensor) -> Tensor:
        """log p(x|ℓ) in nats, (B,); differentiable if the stage is trained."""
        a, device = self._in_chunks(self.autoencoder.decoded, latent), self.shift.device
        return self.law.log_prob(x.to(device), a.to(device)).to(x.device)

    def sample_latent(self, x: Tensor, noise: Tensor) -> LatentSample:
        """z at ℓ = m(x) + e^{v(x)/2}·noise, noise (B, *latent_shape) ~ N(0, I); differentiable if trained."""
        posterior = self.posterior(x)
        latent = posterior.sample(noise)
        log_posterior = posterior.log_prob(latent) - self.log_volume.to(x.device)
        return LatentSample(self.scaled(latent), self.log_likelihood(x, latent), log_posterior)

    def scaled(self, latent: Tensor) -> Tensor:
        """z = (ℓ − shift)·scale for latents ℓ (B, *latent_shape)."""
        return (latent - self._of_channels(self.shift, latent)) * self._of_channels(self.scale, latent)

    def latent(self, z: Tensor) -> Tensor:
        """ℓ = z/scale + shift for z (B, *latent_shape)."""
        return z / self._of_channels(self.scale, z) + self._of_channels(self.shift, z)

    @property
    def log_volume(self) -> Tensor:
        """ln|det ∂z/∂ℓ|, a scalar: it is the same for all ℓ."""
        return self.scale.double().log().sum() * math.prod(self.latent_shape[1:])

    def fit(self, posteriors: Iterable[Posterior], images: Tensor) -> None:
        """Measure shift and scale, in float64, and the scale of p(x|ℓ) if the autoencoder was trained without it.

        Args:
            posteriors: of the training data, in batches; for shift and scale.
            images: training images (N, *shape); for the scale of p(x|ℓ).
        """
        if self.scale_mode != "none":
            self._fit_scale(posteriors)
        if not self.autoencoder.calibrated:
            posterior = self.posterior(images)
            noise = randn_like(posterior.mean, torch.Generator(images.device).manual_seed(0))
            error = images - self._in_chunks(self.autoencoder.decode, posterior.sample(noise))
            assert isinstance(self.law, GaussianLaw)  # the only law whose scale can be measured
            self.law.fit(error.double().square().mean().item())

    def _fit_scale(self, posteriors: Iterable[Posterior]) -> None:
        n = 0
        total = square = torch.zeros((), dtype=torch.float64)
        for mean, log_variance in posteriors:
            mean, log_variance = (t.transpose(0, 1).flatten(1).double().cpu() for t in (mean, log_variance))
            n += mean.shape[1]
            total, square = total + mean.sum(1), square + (mean**2 + log_variance.exp()).sum(1)
        mean, power = total / n, square / n  # (channels,)
        if self.scale_mode == "global":
            mean, power = mean.mean().expand_as(mean), power.mean().expand_as(power)
        self.shift.copy_(mean)
        self.scale.copy_((power - mean**2).clamp(min=torch.finfo(torch.float32).tiny).rsqrt())

    def _run(self, function: Callable[[Tensor], Tensor | Posterior], x: Tensor) -> tuple[Tensor, ...]:
        """A method of the autoencoder on one chunk, on its device in its precision; the results as float32, like x."""
        weight = next(w for name, w in self.autoencoder.named_parameters() if not name.startswith("law."))
        with torch.autocast(weight.device.type, enabled=False):
            output = function(x.to(weight))
        return tuple(part.to(x.device, torch.float32) for part in (output if isinstance(output, tuple) else (output,)))

    def _in_chunks(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        parts = [self._run(function, part)[0] for part in x.split(self.chunk_size)]
        return torch.cat(parts) if parts else x.new_empty(0, *self.shape)

    def _of_channels(self, v: Tensor, like: Tensor) -> Tensor:
        return append_dims(v.to(like.device), like.ndim - 1)


class _Registered(nn.Module):
    """Holds an autoencoder as a submodule."""

    module: Autoencoder

    def __init__(self, module: Autoencoder):
        super().__init__()
        self.module = module


class _Unregistered(nn.Module):
    """Holds an autoencoder that moves to devices with this module but is in neither state_dict nor parameters.

    A deep copy is the object itself: the weight average shares weights that never change.
    """

    def __init__(self, module: Autoencoder):
        super().__init__()
        self._module = (module,)  # in a tuple, because nn.Module registers every attribute that is a module

    @property
    def module(self) -> Autoencoder:
        """The autoencoder."""
        (module,) = self._module
        return module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.module._apply(fn)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self
