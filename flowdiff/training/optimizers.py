"""Optimisers, their learning-rate schedules, and the decay of the weight average."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch.optim.lr_scheduler import LambdaLR

from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.training.averages import Averaging, Fraction

Schedule = Literal["cosine", "constant", "inverse_sqrt"]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]


class Optimizer(ABC):
    """An optimiser with a linear warm-up, followed by a rate that falls or stays.

    cosine         from lr to final_lr at the last step
    constant       lr
    inverse_sqrt   lr·√(t_ref/t) from step t = t_ref on, before it lr; it knows no last step

    Args:
        lr: peak learning rate, > 0.
        warmup_steps: optimiser steps of the warm-up, ≥ 0.
        lr_schedule: cosine, constant or inverse_sqrt.
        ema_decay: decay per step of the weight average that is evaluated, sampled and exported, in [0, 1); 0 for none.
        final_lr: learning rate at the end of the cosine, in [0, lr]; 0 for the others.
        t_ref: optimiser steps after which inverse_sqrt begins to fall, ≥ 1.
        ema: further averages; None for none.

    Raises:
        ConfigurationError: final_lr is above lr, or given for another rate than the cosine.

    Source: for inverse_sqrt Karras et al., Analyzing and improving the training dynamics of diffusion models, 2024,
        equation 67.
    """

    def __init__(
        self,
        lr: float,
        warmup_steps: int,
        lr_schedule: str,
        ema_decay: float,
        final_lr: float = 0.0,
        t_ref: int = 1000,
        ema: Averaging | None = None,
    ):
        if final_lr > lr:
            raise ConfigurationError(
                f"optimizer.final_lr={final_lr:g} is above optimizer.lr={lr:g}, from which the cosine falls: lower it."
            )
        if final_lr and lr_schedule != "cosine":
            raise ConfigurationError(
                f"optimizer.final_lr={final_lr:g} is where a cosine ends, and optimizer.lr_schedule={lr_schedule} is "
                "none: set lr_schedule=cosine or final_lr=0."
            )
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule
        self.final_lr = final_lr
        self.t_ref = t_ref
        self.ema_decay = ema_decay
        self.ema = ema or Averaging(0.0, [], [], 1)

    @abstractmethod
    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimiser of these parameters; a fused one can skip a bad step without a copy to the host."""

    def scheduler(self, optimizer: torch.optim.Optimizer, max_steps: int) -> LambdaLR:
        """The learning-rate schedule, to be stepped once per optimiser step."""

        def factor(step: int) -> float:
            warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
            if self.lr_schedule == "constant":
                return warm
            if self.lr_schedule == "inverse_sqrt":
                return warm * math.sqrt(1 / max(1.0, (step + 1) / self.t_ref))
            done = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
            falling = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))
            end = self.final_lr / self.lr
            return warm * (end + (1 - end) * falling)

        return LambdaLR(optimizer, factor)


@register("optimizer", "adamw")
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Args:
        lr: peak learning rate, > 0.
        betas: decay of the mean and of the mean square of the gradient, each in [0, 1).
        weight_decay: ≥ 0.
        warmup_steps: optimiser steps of the linear warm-up, ≥ 0.
        lr_schedule: cosine to final_lr at the last step, constant, or inverse_sqrt, lr·√(t_ref/t) from t_ref on.
        final_lr: learning rate at the end of the cosine, in [0, lr]; 0 for the others.
        t_ref: optimiser steps after which inverse_sqrt begins to fall, ≥ 1.
        ema_decay: decay per step of the weight average, in [0, 1); 0 for none.
        ema: further averages of the weights and ramp-up (flowdiff/training/averages.py).

    Raises:
        ConfigurationError: final_lr is above lr, or given for another rate than the cosine.

    Source: Loshchilov & Hutter, Decoupled weight decay regularization, 2019.
    """

    def __init__(
        self,
        *,
        lr: PositiveFloat,
        betas: Betas,
        weight_decay: NonNegativeFloat,
        warmup_steps: NonNegativeInt,
        lr_schedule: Schedule,
        final_lr: NonNegativeFloat,
        t_ref: PositiveInt,
        ema_decay: Fraction,
        ema: Averaging,
    ):
        super().__init__(lr, warmup_steps, lr_schedule, ema_decay, final_lr, t_ref, ema)
        self.betas = betas
        self.weight_decay = weight_decay

    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        first, second = self.betas
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=(first, second), weight_decay=self.weight_decay, fused=True
        )


@register("optimizer", "adam")
class Adam(Optimizer):
    """Adam without weight decay.

    Args:
        lr: peak learning rate, > 0.
        betas: decay of the mean and of the mean square of the gradient, each in [0, 1).
        warmup_steps: optimiser steps of the linear warm-up, ≥ 0.
        lr_schedule: cosine to final_lr at the last step, constant, or inverse_sqrt, lr·√(t_ref/t) from t_ref on.
        final_lr: learning rate at the end of the cosine, in [0, lr]; 0 for the others.
        t_ref: optimiser steps after which inverse_sqrt begins to fall, ≥ 1.
        ema_decay: decay per step of the weight average, in [0, 1); 0 for none.
        ema: further averages of the weights and ramp-up (flowdiff/training/averages.py).

    Raises:
        ConfigurationError: final_lr is above lr, or given for another rate than the cosine.

    Source: Kingma & Ba, Adam: a method for stochastic optimization, 2015.
    """

    def __init__(
        self,
        *,
        lr: PositiveFloat,
        betas: Betas,
        warmup_steps: NonNegativeInt,
        lr_schedule: Schedule,
        final_lr: NonNegativeFloat,
        t_ref: PositiveInt,
        ema_decay: Fraction,
        ema: Averaging,
    ):
        super().__init__(lr, warmup_steps, lr_schedule, ema_decay, final_lr, t_ref, ema)
        self.betas = betas

    def make(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        first, second = self.betas
        return torch.optim.Adam(parameters, lr=self.lr, betas=(first, second), fused=True)
