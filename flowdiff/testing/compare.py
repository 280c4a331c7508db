"""How a law is checked: comparisons that raise AssertionError with the law, the size of the error and its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowdiff.errors import ConfigurationError


def require(condition: bool | Tensor, law: str, detail: str) -> None:
    """Raise AssertionError 'the law "<law>" is broken: <detail>.' unless the condition is true.

    Args:
        condition: whether the law holds.
        law: the law as a clause, for example "inverse(forward(x)) = x".
        detail: what was found and what is right.
    """
    if not condition:
        raise AssertionError(f'the law "{law}" is broken: {detail}.')


def require_close(found: Tensor, right: Tensor, law: str, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Require the same shape and dtype, and |found − right| ≤ atol + rtol·|right| everywhere.

    With both tolerances 0 the tensors have to be equal. The message names the worst value and its index.
    """
    require_like(found, right, law)
    found, right = found.detach(), right.detach()
    error, allowed = (found - right).abs(), atol + rtol * right.abs()
    error = torch.where(found == right, torch.zeros_like(error), error)  # the difference of infinities is NaN
    _require_below(error, allowed, law, lambda at: f"{found[at]:.6g} instead of {right[at] + 0:.6g}")


def require_at_most(values: Tensor, limit: Tensor | float, law: str) -> None:
    """Require values ≤ limit everywhere; NaN is never below a limit."""
    values = values.detach()
    limit = torch.as_tensor(limit, dtype=values.dtype).expand_as(values)
    _require_below(values, limit, law, lambda at: f"{values[at]:.3g}")


def require_like(found: Tensor, right: Tensor, law: str) -> None:
    """Require the same shape and dtype."""
    require(found.shape == right.shape, law, f"the shape is {tuple(found.shape)} instead of {tuple(right.shape)}")
    require(found.dtype == right.dtype, law, f"the type is {found.dtype} instead of {right.dtype}")


def require_finite(values: Tensor, law: str) -> None:
    """Require that no value is NaN or infinite."""
    bad = ~values.isfinite()
    if bad.any():
        at = tuple(bad.nonzero()[0].tolist())
        require(False, law, f"the value at {_place(at)} is {values[at]}, and {int(bad.sum())} of {bad.numel()} are so")


def require_refused(call: Callable[[], Any], law: str, words: str = "") -> None:
    """Require that the call raises a ConfigurationError whose message contains the words."""
    try:
        call()
    except ConfigurationError as error:
        require(words in str(error), law, f"the error does not say {words!r} but {str(error)!r}")
    else:
        require(False, law, "no ConfigurationError was raised")


def _require_below(error: Tensor, allowed: Tensor, law: str, describe: Callable[[tuple[int, ...]], str]) -> None:
    wrong = ~(error <= allowed)
    if not wrong.any():
        return
    excess = torch.where(wrong, torch.nan_to_num(error - allowed, nan=torch.inf), -torch.inf)
    at = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    found = f"at {_place(at)} it is {describe(at)}, an error of {error[at]:.2g} where {allowed[at]:.2g} is allowed"
    require(False, law, f"{found}, and {int(wrong.sum())} of {wrong.numel()} values are wrong")


def _place(at: tuple[int, ...]) -> str:
    return f"index {list(at)}" if at else "its only value"
