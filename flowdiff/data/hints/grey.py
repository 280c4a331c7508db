"""The image without its colours."""

from __future__ import annotations

from torch import Tensor

from flowdiff.data.hints.base import Hint, grey
from flowdiff.registry import register


@register("hint", "grey")
class Grey(Hint):
    """The luma of the image; of a grey image it is the image itself.

    h = 0.299·R + 0.587·G + 0.114·B

    Agreement is the root mean square difference.

    Args:
        shape: shape of an image, (C, H, W).
    """

    agreement = "grey_error"

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(shape)

    def __call__(self, x: Tensor) -> Tensor:
        return grey(x)
