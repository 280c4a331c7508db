"""Inpainting: some pixels are seen, the others are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import times

Share = Annotated[float, Field(gt=0, lt=1)]
OF_VECTORS = ("left", "right", "random")
NAMES = (*OF_VECTORS, "top", "bottom", "centre")


@register("measurement", "inpaint")
class Inpaint(Measurement):
    """The pixels that a mask leaves.

    A·x = x[seen],  A·Aᵀ = I

    The mask says what is missing: one side, the centre, random pixels, or the white pixels of a picture. Of a vector
    `left` are its first numbers and `right` its last.

    Args:
        shape: shape of a sample.
        mask: what is missing: left | right | top | bottom | centre | random, or the file of a black and white picture
            of the size of a sample, whose white pixels are missing.
        share: share of the width, of the height, or of the pixels that is missing, in (0, 1); a file has its own.
        seed: seed of mask=random, ≥ 0.
        sigma_y: standard deviation of the noise of y, ≥ 0, in the unit of the data.

    Raises:
        ConfigurationError: the mask is unknown, cannot be read, has another size than a sample or more than two levels,
            or leaves nothing missing or nothing seen.
    """

    def __init__(
        self, shape: tuple[int, ...], *, mask: str, share: Share, seed: NonNegativeInt, sigma_y: NonNegativeFloat
    ):
        super().__init__(shape, sigma_y)
        missing = _missing(self.shape, mask, share, seed)  # (H, W) or (D,)
        if bool(missing.all()) or not bool(missing.any()):
            raise ConfigurationError(
                f"measurement.mask={mask} measurement.share={share:g} leaves {'nothing' if missing.all() else 'all'} "
                f"of a sample of {times(self.shape)} to be seen: some pixels must be seen and some missing."
            )
        self.seen = (~missing).expand(self.shape).flatten().nonzero()[:, 0]

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.seen.to(x.device))


def _missing(shape: tuple[int, ...], mask: str, share: float, seed: int) -> Tensor:
    """Which pixels (H, W), or numbers (D,) of a vector, are missing: bool."""
    places = shape[1:] if len(shape) == 3 else shape
    if mask not in NAMES:
        return _of_file(mask, places)
    if len(shape) != 3 and mask not in OF_VECTORS:
        raise ConfigurationError(
            f"measurement.mask={mask} is for images, and a sample is a vector of {times(shape)}: set measurement.mask "
            f"to {', '.join(OF_VECTORS)}."
        )
    missing = torch.zeros(places, dtype=torch.bool)
    across, down = (max(1, round(share * size)) for size in (places[-1], places[0]))
    if mask == "random":
        order = torch.randperm(missing.numel(), generator=torch.Generator().manual_seed(seed))
        missing.view(-1)[order[: max(1, round(share * missing.numel()))]] = True
    elif mask == "left":
        missing[..., :across] = True
    elif mask == "right":
        missing[..., -across:] = True
    elif mask == "top":
        missing[:down] = True
    elif mask == "bottom":
        missing[-down:] = True
    else:
        top, left = (places[0] - down) // 2, (places[1] - across) // 2
        missing[top : top + down, left : left + across] = True
    return missing


def _of_file(path: str, places: tuple[int, ...]) -> Tensor:
    from PIL import Image, UnidentifiedImageError

    if not Path(path).expanduser().is_file():
        raise ConfigurationError(
            f"measurement.mask={path} is neither a mask's name nor a file: allowed are {', '.join(NAMES)}, or a black "
            "and white picture whose white pixels are missing."
        )
    try:
        with Image.open(Path(path).expanduser()) as picture:
            levels = torch.from_numpy(np.array(picture.convert("L")))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigurationError(
            f"measurement.mask={path} cannot be read as a picture: give a black and white picture whose white pixels "
            "are missing."
        ) from error
    if tuple(levels.shape) != tuple(places):
        raise ConfigurationError(
            f"measurement.mask={path} has {times(levels.shape)} pixels, and a sample of this run has {times(places)}: "
            "give a mask of that size."
        )
    found = levels.unique().tolist()
    if len(found) != 2:
        raise ConfigurationError(
            f"measurement.mask={path} has {len(found)} grey {'level' if len(found) == 1 else 'levels'} and is no mask: "
            "give a picture of two, whose brighter pixels are missing."
        )
    return levels == found[1]
