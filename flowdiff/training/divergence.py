"""Divergence: at which step, at which noise level and in which layer the first NaN or Inf appears.

Reading a number from a GPU makes the program wait, so the loss and the gradient norm of every step are checked on the
device, and the result is read only now and then. Nothing is lost in between: from the first bad step on the optimiser
leaves the weights unchanged. A step draws its random numbers from its own index, so it can be repeated to find the
layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flowdiff.errors import FlowdiffError
from flowdiff.models.conditioning import Conditioning


class Divergence(FlowdiffError, ArithmeticError):
    """A loss, gradient or weight is not finite any more; last.ckpt is from before."""


class Found(NamedTuple):
    """The first bad step, counted from 1; the index of its last batch; its loss and gradient norm."""

    step: int
    batch_idx: int
    loss: float
    norm: float


class Sentinel:
    """Remembers on the device the first step whose loss or gradient is not finite, and stops the optimiser there."""

    def __init__(self) -> None:
        self._loss: Tensor | None = None  # sum over the batches of the current step
        self._when: list[Tensor] = []  # step and batch index; zeros until a bad step is found
        self._what: list[Tensor] = []  # loss and norm of the bad step

    def add_loss(self, loss: Tensor) -> None:
        """Take the loss of a batch, before its backward pass."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def check_step(self, norm: Tensor, step: int, batch_idx: int, optimizer: torch.optim.Optimizer | None) -> None:
        """Check a step before the optimiser takes it, and stop the optimiser at the first bad step.

        Args:
            norm: norm of the step's gradient, a scalar.
            step: number of the step, ≥ 1.
            batch_idx: index of its last batch.
            optimizer: the optimiser to stop; None if a gradient scaler already skips bad steps.
        """
        assert self._loss is not None  # a step has at least one batch
        loss, self._loss = self._loss.to(norm), None
        if not self._when:
            self._when = [torch.zeros((), dtype=torch.int64, device=norm.device) for _ in range(2)]
            self._what = [torch.zeros_like(norm) for _ in range(2)]
        new = ~torch.isfinite(loss + norm) & (self._when[0] == 0)
        for kept, value in zip(self._when, (step, batch_idx), strict=True):
            kept.add_(new, alpha=value)  # a Python number is an argument of the kernel: no copy to the device
        self._what = [torch.where(new, x, kept) for x, kept in zip((loss, norm), self._what, strict=True)]
        if optimizer is None:
            return
        if is_fused(optimizer):
            optimizer.found_inf = (self._when[0] > 0).float()  # type: ignore[attr-defined]  # the fused kernel reads it, as it does with a gradient scaler
        elif self.found():
            optimizer.zero_grad(
                set_to_none=True
            )  # other optimisers are stopped from the host, which waits for the device

    def found(self) -> Found | None:
        """The first bad step so far, or None; waits for the device."""
        if not self._when or not int(self._when[0]):
            return None
        return Found(*map(int, self._when), *map(float, self._what))


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimiser's own kernel can skip a step by `found_inf`."""
    return all(group.get("fused") for group in optimizer.param_groups)


def not_finite(module: nn.Module) -> str | None:
    """The name of the first parameter that holds a NaN or Inf, or None; waits for the device."""
    parameters = list(module.named_parameters())
    if not parameters or bool(torch.stack([p.detach().isfinite().all() for _, p in parameters]).all()):
        return None
    return next(name for name, p in parameters if not bool(p.isfinite().all()))


def locate(module: nn.Module, loss_of: Callable[[Tensor], Tensor], n: int) -> tuple[str, Tensor] | None:
    """Where the loss of n samples, or its gradient, is not finite, and for which samples; None if it is finite.

    loss_of(rows) is the loss of the samples at int64 positions `rows`, computed through `module`. The samples are
    halved as long as one half alone fails, which takes up to 2·log₂ n passes.
    """

    def sound(rows: Tensor) -> bool:
        module.zero_grad()
        loss = loss_of(rows)
        loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        return bool(torch.isfinite(loss + torch.nn.utils.get_total_norm(gradients)))

    rows = torch.arange(n)
    if sound(rows):
        return None
    while len(rows) > 1:
        failing = next((half for half in rows.chunk(2) if not sound(half)), None)
        if failing is None:
            break
        rows = failing
    return first_not_finite(module, lambda: loss_of(rows).backward()), rows


def take(cond: Conditioning | None, rows: Tensor) -> Conditioning | None:
    """The conditions of some samples, detached from the graph."""
    if cond is None:
        return None
    parts = (cond.vector, cond.tokens, cond.mask, None, None, cond.label)
    return Conditioning(*(None if part is None else part.detach()[rows.to(part.device)] for part in parts))


def first_not_finite(module: nn.Module, compute: Callable[[], Any]) -> str:
    """Run `compute`, which calls `module` and a backward pass, and name the layer where the first NaN or Inf appeared.

    In the forward pass this is the innermost layer with a finite input and an output that is not finite; in the
    backward pass the layer with a finite derivative of its output but not of its input or weight; in a second backward
    pass the same for the second derivative. Examples: "in flow.net.outer (Linear)", "in the derivative of
    flow.net.outer (Linear)". It is slow, because it reads every number.
    """
    with _watched(module) as watch, torch.compiler.set_stance("force_eager"):  # compiled code calls no hooks
        compute()
    return watch.verdict or "after all layers"


class _Point:
    """A tensor between layers: the layer that made it, and the layers that read it."""

    def __init__(self) -> None:
        self.derived = False  # whether a backward pass that is differentiated again has reached it
        self.maker: str | None = None
        self.readers: list[str] = []


class _Watch:
    """Checks the inputs, outputs and derivatives of all layers; `verdict` says where the first bad number was."""

    def __init__(self, module: nn.Module):
        self.verdict: str | None = None
        self.types = {name: type(layer).__name__ for name, layer in module.named_modules()}
        self._points: dict[int, tuple[Tensor, _Point]] = {}  # keeps the tensors alive, so that their ids stay unique

    def reads(self, name: str, inputs: Any) -> None:
        """A layer is called."""
        for tensor in _tensors(inputs):
            if not _is_finite(tensor):
                self._say(f"in {self._label(name.rpartition('.')[0])}, before {self._label(name)}")
            elif tensor.requires_grad:
                self._point(tensor).readers.append(name)

    def makes(self, name: str, output: Any) -> None:
        """A layer has returned."""
        for tensor in _tensors(output):
            if not _is_finite(tensor):
                self._say(f"in {self._label(name)}")
            elif tensor.requires_grad:
                point = self._point(tensor)
                point.maker = point.maker or name

    def derives(self, name: str, gradient: Tensor) -> None:
        """A weight of a layer receives its derivative."""
        if not _is_finite(gradient):
            self._say(f"in the derivative of {self._label(name)}")

    def _point(self, tensor: Tensor) -> _Point:
        if id(tensor) not in self._points:
            point = _Point()
            self._points[id(tensor)] = tensor, point
            tensor.register_hook(lambda gradient: self._arrives(point, gradient))
        return self._points[id(tensor)][1]

    def _arrives(self, point: _Point, gradient: Tensor) -> None:
        if not _is_finite(gradient):
            # Among nested layers name the innermost; among several that read the tensor, name them all.
            inner = [n for n in point.readers if not any(m != n and m.startswith(f"{n}.") for m in point.readers)]
            if "" in inner and len(inner) > 1:
                inner.remove("")
            after = f"what follows {self._label(point.maker)}" if point.maker is not None else "the layers"
            which = "second derivative" if point.derived else "derivative"
            self._say(f"in the {which} of {' or '.join(map(self._label, dict.fromkeys(inner))) or after}")
        elif gradient.requires_grad:
            point.derived = True
            gradient.register_hook(lambda second: self._arrives_again(point, second))

    def _arrives_again(self, point: _Point, second: Tensor) -> None:
        if not _is_finite(second):
            self._say(f"in the second derivative of {self._label(point.maker or '')}")

    def _label(self, name: str) -> str:
        return f"{name or 'the model'} ({self.types[name]})"

    def _say(self, verdict: str) -> None:
        self.verdict = self.verdict or verdict


@contextmanager
def _watched(module: nn.Module) -> Iterator[_Watch]:
    watch = _Watch(module)
    handles = []
    for name, layer in module.named_modules():
        handles += [
            layer.register_forward_pre_hook(
                lambda layer, args, kwargs, name=name: watch.reads(name, [args, list(kwargs.values())]),
                with_kwargs=True,
            ),
            layer.register_forward_hook(lambda layer, args, output, name=name: watch.makes(name, output)),
        ]
        for parameter in layer.parameters(recurse=False):
            if parameter.requires_grad:
                handles.append(parameter.register_hook(lambda g, name=name: watch.derives(name, g)))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.detach()).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Conditioning):
        yield from _tensors([value.vector, value.tokens])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
