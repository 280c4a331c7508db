"""The laws of scalings and weightings: functions of the noise level with the shape and the type of sigma."""

from __future__ import annotations

import math

import torch

from flowdiff.diffusion.scalings import Scaling
from flowdiff.diffusion.weightings import Weighting
from flowdiff.testing.compare import require, require_finite, require_like

SIGMA = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)


def check_scaling(scaling: Scaling) -> None:
    """Hold a scaling to its laws: four finite coefficients like sigma, and c_out ≠ 0, so that F can reach every D.

    A consistency function has D = x at its boundary: c_skip = 1 and c_out = 0.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    for sigma in (SIGMA, SIGMA.float()):
        coefficients = scaling(sigma, torch.tensor(0.5, dtype=sigma.dtype))
        for name, value in coefficients._asdict().items():
            require_like(value, sigma, f"{name} is like sigma")
            require_finite(value, f"{name} is finite at σ = {sigma.tolist()}")
        inside = sigma != (math.nan if scaling.boundary is None else scaling.boundary)
        require((coefficients.c_out[inside] != 0).all(), "c_out ≠ 0", f"at {sigma.tolist()} it is {coefficients.c_out}")
    if scaling.boundary is not None:
        end = torch.tensor([scaling.boundary], dtype=torch.float64)
        found = scaling(end, torch.tensor(0.5, dtype=torch.float64))
        at_end = f"at its boundary it has c_skip = {found.c_skip.item()} and c_out = {found.c_out.item()}"
        require(bool(found.c_skip == 1 and found.c_out == 0), "D = x at the boundary", at_end)


def check_weighting(weighting: Weighting) -> None:
    """Hold a weighting to its laws: finite weights > 0 like sigma.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    for sigma in (SIGMA, SIGMA.float()):
        weight = weighting(sigma, torch.tensor(0.7, dtype=sigma.dtype))
        require_like(weight, sigma, "the weights are like sigma")
        require_finite(weight, f"the weights are finite at σ = {sigma.tolist()}")
        require((weight > 0).all(), "the weights are above 0", f"at σ = {sigma.tolist()} they are {weight.tolist()}")
