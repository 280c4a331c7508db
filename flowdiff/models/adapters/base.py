"""The contract of an adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn


class Adapter(ABC):
    """What is trained of the model of another run; the base class of every registered adapter.

    run: folder of the run whose model is the base; None: there is no base, and the model is trained from scratch.
    anchor: weight λ ≥ 0 of the squared distance to the base; assembly adds it to the loss.
    anchor_steps: optimiser steps over which λ falls linearly to 0, ≥ 1; None: it stays.
    """

    run: str | None = None
    anchor: float = 0.0
    anchor_steps: int | None = None

    @abstractmethod
    def attach(self, model: nn.Module) -> None:
        """Freeze a model, in place, and give it what is trained instead.

        Raises:
            ConfigurationError: the settings do not fit the model.
        """
