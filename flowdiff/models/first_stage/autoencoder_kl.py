"""diffusers' AutoencoderKL as the first stage: the autoencoders of Stable Diffusion, SDXL and similar models.

z = (ℓ − shift_factor)·scaling_factor with the factors of the model's config, unless they are measured. A bound on
images also needs the scale s of p(x|ℓ) = N(decoder(ℓ), s²), which the model does not have: s² is measured as the mean
squared error on training images.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.autoencoder.decoder_laws import GaussianLaw
from flowdiff.models.autoencoder.posterior import Posterior
from flowdiff.models.first_stage.base import DTYPES, AutoencoderStage, Precision
from flowdiff.registry import register
from flowdiff.shapes import times

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

WEIGHTS = "a folder with config.json and weights, as `save_pretrained` writes it, or a name on the Hugging Face hub"


@final
class PretrainedKL(Autoencoder):
    """A diffusers AutoencoderKL as an Autoencoder."""

    calibrated = False

    def __init__(self, vae: AutoencoderKL, shape: tuple[int, ...], latent_shape: tuple[int, ...]):
        super().__init__(shape, latent_shape, GaussianLaw())
        self.vae = vae

    def posterior(self, x: Tensor) -> Posterior:
        posterior = self.vae.encode(x).latent_dist
        return Posterior.of(posterior.mean, posterior.logvar)

    def decoded(self, latent: Tensor) -> Tensor:
        return self.vae.decode(latent).sample


@final
@register("first_stage", "autoencoder_kl")
class AutoencoderKLFirstStage(AutoencoderStage):
    """A pretrained AutoencoderKL of diffusers, frozen.

    z = (ℓ − shift)·scale

    Args:
        shape: shape of one image, (C, H, W).
        model: folder as `save_pretrained` writes it, or name on the Hugging Face hub; required.
        scale: model: shift_factor and scaling_factor of the model; channel | global: measured, so that the training
            latents have mean 0 and standard deviation 1, per channel or overall; none: z = ℓ.
        chunk_size: images encoded or decoded at once, ≥ 1; it changes only speed and memory.
        tiled: process large images in tiles (diffusers' enable_tiling); seams may be visible.
        precision: of weights and computation, float32 | float16 | bfloat16; the results are float32.
        cache_dir: folder of the encoded data.

    Raises:
        ConfigurationError: no model is given, or the images have other channels or sides that its levels do not divide.
        RunError: the model cannot be read or downloaded.

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

    def save(self, folder: Path) -> None:
        """Write the model into a folder, which `model` can then name."""
        assert isinstance(self.autoencoder, PretrainedKL)
        self.autoencoder.vae.save_pretrained(folder)


@cache
def _pretrained(model: str, precision: Precision, tiled: bool) -> AutoencoderKL:
    """Read the model once per process: its weights are frozen, so several runs can share them."""
    from diffusers import AutoencoderKL

    inner = {"subfolder": "vae"} if (Path(model) / "vae" / "config.json").is_file() else {}  # the folder of a pipeline
    try:
        # low_cpu_mem_usage needs the package accelerate
        vae = AutoencoderKL.from_pretrained(model, torch_dtype=DTYPES[precision], low_cpu_mem_usage=False, **inner)
    except Exception as error:  # the hub, the network and the file system raise many kinds
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
            f"first_stage.model={model} encodes images of {channels} channels, and samples of the dataset have shape "
            f"{times(shape)}: take a dataset of {channels} channels or another autoencoder."
        )
    if shape[1] % factor or shape[2] % factor:
        raise ConfigurationError(
            f"first_stage.model={model} needs images whose sides are multiples of {factor}, not "
            f"{shape[1]}×{shape[2]}: resize them or take another autoencoder."
        )
    return config["latent_channels"], shape[1] // factor, shape[2] // factor
