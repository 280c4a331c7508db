"""diffusers' AutoencoderKL as the first stage: the autoencoders of Stable Diffusion, SDXL and their kin.

z = (ℓ − shift_factor)·scaling_factor by its own config, unless they are measured. What it lacks of a bound on images,
the scale s of p(x|ℓ) = N(decoder(ℓ), s²), is measured: the mean squared error on training images.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from pydantic import PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.autoencoder.decoder_laws import GaussianLaw
from flowdiff.models.autoencoder.posterior import Posterior
from flowdiff.models.first_stage.base import AutoencoderStage, Precision
from flowdiff.registry import register
from flowdiff.shapes import times

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

WEIGHTS = "a folder with config.json and its weights, as `save_pretrained` writes it, or a name on the hub"


@final
class PretrainedKL(Autoencoder):
    """A diffusers AutoencoderKL as the contract has it."""

    calibrated = False

    def __init__(self, vae: AutoencoderKL, shape: tuple[int, ...], latent_shape: tuple[int, ...]):
        super().__init__(shape, latent_shape, GaussianLaw())
        self.vae = vae

    def posterior(self, x: Tensor) -> Posterior:
        found = self.vae.encode(x).latent_dist
        return Posterior.of(found.mean, found.logvar)

    def decoded(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).sample


@final
@register("first_stage", "autoencoder_kl")
class AutoencoderKLFirstStage(AutoencoderStage):
    """A pretrained AutoencoderKL for images whose sides its levels divide.

    model: a local folder or a name on the hub.  scale: model, by its own scaling_factor and shift_factor; or channel,
    global, none.  tiled: large images tile by tile, too (diffusers' enable_tiling: seams may show).  chunk_size,
    precision, cache_dir: of AutoencoderStage.
    Raises ConfigurationError without a model, and for images of other channels or of sides that do not divide; RunError
    where the model cannot be read or fetched.
    Source: Rombach et al., High-resolution image synthesis with latent diffusion models, 2022.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        model: str | None,
        scale: Literal["model", "channel", "global", "none"],
        chunk_size: PositiveInt,
        tiled: bool,
        precision: Precision,
        cache_dir: str,
    ):
        if model is None:
            raise ConfigurationError(f"first_stage=autoencoder_kl needs first_stage.model: {WEIGHTS}.")
        vae = _pretrained(model, precision, tiled)
        autoencoder = PretrainedKL(vae, shape, _latent_shape(vae.config, model, shape))
        measured = "none" if scale == "model" else scale
        super().__init__(autoencoder, scale=measured, chunk_size=chunk_size, precision=precision, cache_dir=cache_dir)
        if scale == "model":
            self.shift.fill_(vae.config.get("shift_factor") or 0.0)
            self.scale.fill_(vae.config.get("scaling_factor") or 1.0)


@cache
def _pretrained(model: str, precision: Precision, tiled: bool) -> AutoencoderKL:
    """Read once in a process: its weights are frozen, and any number of models may stand on them."""
    from diffusers import AutoencoderKL

    inner = {"subfolder": "vae"} if (Path(model) / "vae" / "config.json").is_file() else {}  # of a whole pipeline
    try:
        # low_cpu_mem_usage would need accelerate, and say so where that is missing
        vae = AutoencoderKL.from_pretrained(
            model, torch_dtype=getattr(torch, precision), low_cpu_mem_usage=False, **inner
        )
    except Exception as error:  # whatever the hub, the network or the file system has to say
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(
            f"first_stage.model={model} cannot be read ({lines[0].rstrip('.: ')}): give {WEIGHTS} that can be reached."
        ) from error
    vae.use_tiling = tiled
    return vae


def _latent_shape(config: Any, model: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    channels, factor = config["in_channels"], 2 ** (len(config["block_out_channels"]) - 1)
    if len(shape) != 3 or shape[0] != channels:
        raise ConfigurationError(
            f"first_stage.model={model} encodes images of {channels} channels, and samples of the dataset are "
            f"{times(shape)}: take a dataset of {channels} channels or another autoencoder."
        )
    if shape[1] % factor or shape[2] % factor:
        raise ConfigurationError(
            f"first_stage.model={model} takes images whose sides are multiples of {factor}, not "
            f"{shape[1]}×{shape[2]}: resize them or take another autoencoder."
        )
    return config["latent_channels"], shape[1] // factor, shape[2] // factor
