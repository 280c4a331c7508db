"""Where numbers stop being numbers: the layer whose output, or whose gradient, is the first that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.errors import FlowdiffError


class Divergence(FlowdiffError, ArithmeticError):
    """A loss or gradient is no longer a number; last.ckpt is from when it was."""


def first_not_finite(module: nn.Module, compute: Callable[[], Any]) -> str:
    """Run `compute`, which calls `module`, and say where the first NaN or Inf came up: "in flow.net.outer (Linear)".

    Forward: the first layer to finish with an output that is not finite, which is the innermost one. Backward, where
    all outputs were finite: the first layer to whose output a derivative arrives that is not. Costs two hooks per
    layer while it runs; for use after the fact.
    """
    with _watched(module) as found:
        compute()
    for kind in ("in", "in the derivative of"):
        if kind in found:
            return f"{kind} {found[kind]}"
    return "in what comes after the layers"


@contextmanager
def _watched(module: nn.Module) -> Iterator[dict[str, str]]:
    found: dict[str, str] = {}
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        label = f"{name or 'the network'} ({type(layer).__name__})"

        def on_output(layer: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not bool(torch.isfinite(tensor).all()):
                    found.setdefault("in", label)
                elif tensor.requires_grad:
                    tensor.register_hook(on_derivative)

        def on_derivative(gradient: Tensor) -> None:
            if not bool(torch.isfinite(gradient).all()):
                found.setdefault("in the derivative of", label)

        handles.append(layer.register_forward_hook(on_output))

    for name, layer in module.named_modules():
        watch(name, layer)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
