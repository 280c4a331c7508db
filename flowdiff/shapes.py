"""Broadcasting one number per sample over a batch, reducing each sample to one number, and a shape as text."""

from collections.abc import Iterable

from torch import Tensor


def append_dims(v: Tensor, ndim: int) -> Tensor:
    """View v (B,) as (B, 1, …, 1) with `ndim` dimensions, so that it multiplies a batch x of that shape."""
    return v if v.ndim == ndim else v.reshape(v.shape + (1,) * (ndim - v.ndim))


def sum_except_batch(x: Tensor) -> Tensor:
    """Sum x (B, …) over all but the first dimension: (B,)."""
    return x.flatten(1).sum(1)


def mean_except_batch(x: Tensor) -> Tensor:
    """Average x (B, …) over all but the first dimension: (B,)."""
    return x.flatten(1).mean(1)


def times(shape: Iterable[int]) -> str:
    """A shape as text, for error messages: "3×32×32"."""
    return "×".join(map(str, shape))
