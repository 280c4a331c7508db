"""Edges, by Canny's detector."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from flowdiff.data.hints.base import Hint, grey
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register

Threshold = Annotated[float, Field(ge=0, le=1)]
KEPT = 2**16  # images whose edges are kept, so that those of a training image are computed once


@register("hint", "edges")
class Edges(Hint):
    """The edges of the grey image, by Canny's detector: 1 on an edge, −1 elsewhere.

    Edges are the ridges of the gradient of the blurred image that exceed `high`, and those above `low` connected to
    them. Agreement is the F1 score of edge pixels: 2·|both|/(|asked| + |found|), 1 if neither has an edge.

    Args:
        shape: shape of an image, (C, H, W).
        sigma: standard deviation of the blur in pixels, ≥ 0; small images need a small one.
        low: lower threshold of the gradient of the image in [0, 1], in [0, high].
        high: upper threshold, in [low, 1].

    Raises:
        ConfigurationError: low is above high, scikit-image is not installed, or the samples are no images.

    Source: Canny, A computational approach to edge detection, 1986, as scikit-image has it.
    """

    agreement = "edge_f1"

    def __init__(self, shape: tuple[int, ...], *, sigma: NonNegativeFloat, low: Threshold, high: Threshold):
        super().__init__(shape)
        if low > high:
            raise ConfigurationError(
                f"low={low:g} of hint=edges is above high={high:g}: edges grow from pixels above high along those "
                "above low, so set low to high or less."
            )
        _canny()
        self.settings = (sigma, low, high)

    def __call__(self, x: Tensor) -> Tensor:
        images = ((grey(x).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        height, width = images.shape[2:]
        found = [_edges(image.tobytes(), height, width, *self.settings) for image in images]
        edges = torch.from_numpy(np.frombuffer(bytearray(b"".join(found)), dtype=np.bool_)).view(-1, 1, height, width)
        return (2 * edges.float() - 1).to(x)

    def obeyed(self, asked: Tensor, found: Tensor) -> Tensor:
        asked, found = asked.flatten(1) > 0, found.flatten(1) > 0
        both, total = (asked & found).sum(1).double(), (asked.sum(1) + found.sum(1)).double()
        return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


@lru_cache(KEPT)
def _edges(image: bytes, height: int, width: int, sigma: float, low: float, high: float) -> bytes:
    """The edges of a grey image of uint8, as bytes of bool."""
    pixels = np.frombuffer(image, dtype=np.uint8).reshape(height, width) / 255
    edges: bytes = _canny()(pixels, sigma=sigma, low_threshold=low, high_threshold=high).tobytes()
    return edges


def _canny():  # type: ignore[no-untyped-def]  # scikit-image has no types
    try:
        from skimage.feature import canny
    except ImportError as error:
        raise ConfigurationError(
            "hint=edges needs the library scikit-image, which is not installed: pip install 'flowdiff[adapters]'."
        ) from error
    return canny
