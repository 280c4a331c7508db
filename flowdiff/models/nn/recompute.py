"""Activation checkpointing: the activations inside a part of a flow are recomputed in the backward pass, not stored.

For n parts that store activations of size a each, the memory is

    without checkpoint    n·a
    with checkpoint       the inputs and outputs of the parts, plus a for the part that is being recomputed

Training by first derivatives (loss=nll, loss.gradient=directional) then needs 2 to 5 times less memory and one more
forward pass. With loss.gradient=double_backward it saves only a few per cent, because the graph of the score stores for
the second derivative what the graph of log p no longer stores for the first.

Source: Chen, Xu, Zhang, Guestrin, Training deep nets with sublinear memory cost, 2016.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint as checkpointed

from flowdiff.errors import ConfigurationError
from flowdiff.models.nn import sdpa

Output = TypeVar("Output")


def call(function: Callable[..., Output], *inputs: object, checkpoint: bool) -> Output:
    """function(*inputs), with activation checkpointing on request; values and derivatives are the same.

    Args:
        function: depends on its inputs and its parameters only.
        *inputs: its arguments.
        checkpoint: if autograd records, store only inputs and outputs and recompute the rest in the backward pass.

    Raises:
        ConfigurationError: checkpoint with forward-mode derivatives, which cannot be recomputed.
    """
    if not (checkpoint and torch.is_grad_enabled()):
        return function(*inputs)
    if any(isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise ConfigurationError(
            "flow.checkpoint=true does not work with loss.gradient=forward_mode, whose tangents no longer exist when "
            "the backward pass recomputes: set loss.gradient=directional or flow.checkpoint=false."
        )
    if not torch.compiler.is_compiling():  # compiled code recomputes the same operations without choosing again
        function = sdpa.keep_kernel_choice(function)
    return checkpointed(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing in a flow is random
