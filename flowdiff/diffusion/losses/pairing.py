"""Which noise a sample of a batch is paired with: independent noise, the nearest of the batch, or what a flow makes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowdiff.diffusion.losses.teacher import FlowTeacher, Load
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.shapes import append_dims

Pairing = Literal["independent", "optimal_transport", "flow"]


class FlowNoise:
    """The noise that a trained flow pairs with a sample, z = f(x; σ, c), which is N(0, I) if the flow fits its data.

    x is the sample with noise σ, a level at which the flow was trained.

    Args:
        teacher: the flow.
        sigma: σ > 0, in data units.

    Source: Normalizing flow matching (NFM), 2026.
    """

    def __init__(self, teacher: FlowTeacher, sigma: float):
        self.teacher = teacher
        self.sigma = sigma

    def __call__(self, x0: Tensor, noise: Tensor, cond: Conditioning | None) -> Tensor:
        """z, like x0 (B, …), for independent noise like x0 and the condition of B samples."""
        sigma = x0.new_full((len(x0),), self.sigma)
        return self.teacher.encode(x0 + append_dims(sigma, x0.ndim) * noise, sigma, cond)


def noise_of_flow(loss: str, load: Load | None, pairing: Pairing, run: str | None, sigma: float) -> FlowNoise | None:
    """What pairing=flow pairs samples with; None for another pairing.

    Args:
        loss: the name of the loss, for errors.
        load: run folder → its model.
        pairing: the pairing.
        run: folder of the flow; None for another pairing.
        sigma: noise level of the samples that it encodes, > 0, in data units.

    Raises:
        ConfigurationError: pairing=flow without a run, or a run with another pairing.
    """
    if pairing != "flow":
        if run is not None:
            raise ConfigurationError(
                f"loss.run={run} is the flow of loss.pairing=flow, and loss.pairing is {pairing}: set "
                "loss.pairing=flow, or remove loss.run."
            )
        return None
    assert load is not None  # the program passes it
    return FlowNoise(FlowTeacher(load, run, f"{loss} loss.pairing=flow"), sigma)


def nearest_pairs(x0: Tensor, noise: Tensor) -> Tensor:
    """The permutation π of a batch that minimises Σᵢ ‖x0ᵢ − noise_π(i)‖², (B,) int64; exact, in O(B³)."""
    from scipy.optimize import linear_sum_assignment  # slow to import

    cost = torch.cdist(x0.flatten(1).double(), noise.flatten(1).double()).square()
    return torch.from_numpy(linear_sum_assignment(cost.cpu().numpy())[1]).to(x0.device)
