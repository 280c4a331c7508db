"""What moves the weights: the optimiser, its learning-rate schedule, and the average of the weights on its way."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch.optim.lr_scheduler import LambdaLR

from flowdiff.registry import register

Fraction = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class Optimizer(ABC):
    """An optimiser with linear warm-up, then a `cosine` to zero at the last step or a `constant` rate.

    lr is the peak rate; ema_decay ∈ [0, 1) is the decay per step of the weight average that is evaluated, sampled and
    exported (0: no average).
    """

    def __init__(self, lr: float, warmup_steps: int, lr_schedule: str, ema_decay: float):
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule
        self.ema_decay = ema_decay

    @abstractmethod
    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser over these parameters; a fused one can be kept from a bad step without asking a GPU."""

    def scheduler(self, optimizer: torch.optim.Optimizer, max_steps: int) -> LambdaLR:
        """The learning-rate schedule, to be stepped once per optimiser step."""

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
            if self.lr_schedule == "constant":
                return warm
            done = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))

        return LambdaLR(optimizer, factor)


@register("optimizer", "adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

    def __init__(
        self,
        *,
        lr: PositiveFloat,
        betas: Betas,
        weight_decay: NonNegativeFloat,
        warmup_steps: NonNegativeInt,
        lr_schedule: Literal["cosine", "constant"],
        ema_decay: Fraction,
    ):
        super().__init__(lr, warmup_steps, lr_schedule, ema_decay)
        self.betas = betas
        self.weight_decay = weight_decay

    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        betas = tuple(self.betas)
        return torch.optim.AdamW(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=True)


@register("optimizer", "adam")
class Adam(Optimizer):
    """Adam without weight decay (Kingma & Ba, 2015)."""

    def __init__(
        self,
        *,
        lr: PositiveFloat,
        betas: Betas,
        warmup_steps: NonNegativeInt,
        lr_schedule: Literal["cosine", "constant"],
        ema_decay: Fraction,
    ):
        super().__init__(lr, warmup_steps, lr_schedule, ema_decay)
        self.betas = betas

    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=self.lr, betas=tuple(self.betas), fused=True)
