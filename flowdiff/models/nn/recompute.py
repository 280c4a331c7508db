"""Activation checkpointing: what a part of a flow computes on the way is computed again in the backward pass, not kept.

    kept                  of n parts of size a each, all n·a until the backward pass has used them
    with checkpoint       what passes between the parts, and the a of the one that the backward pass is at

Training by first derivatives (loss=nll, loss.gradient=directional) then takes 2 to 5 times less memory and one more
forward pass. Under loss.gradient=double_backward it saves a few per cent only: the graph of the score holds for the
second derivative what the graph of log p no longer holds for the first.
Source: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016.
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
    """function(*inputs), a function of its inputs and parameters alone; what is differentiated stays the same.

    checkpoint: keep the inputs and outputs only, where autograd records. Raises ConfigurationError in forward mode,
    which the second computation could not repeat.
    """
    if not (checkpoint and torch.is_grad_enabled()):
        return function(*inputs)
    if any(isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise ConfigurationError(
            "flow.checkpoint=true does not go with loss.gradient=forward_mode, whose tangents are gone when the "
            "backward pass computes again: take loss.gradient=directional or flow.checkpoint=false."
        )
    if not torch.compiler.is_compiling():  # compiled code repeats operations, not what chose them
        function = sdpa.as_promised(function)
    return checkpointed(function, *inputs, use_reentrant=False, preserve_rng_state=False)  # nothing in a flow is random
