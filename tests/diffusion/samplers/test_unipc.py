"""test_public.py compares unipc with diffusers."""

import math

import pytest
import torch

from flowdiff.diffusion.samplers.unipc import weights


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("places", [[-0.8, 1.0], [-0.8, -1.7], [-0.8, -1.7, 1.0]])
def test_polynomials_in_the_logarithm_are_integrated_exactly(places, variant):
    """D̂ − D for D = s^m, s = 0 … h from the step's start, is ∫ e^s s^m ds / ∫ e^s ds, whatever B(h)."""
    h = 0.9
    s = torch.linspace(0, h, 20_001, dtype=torch.float64)
    for power in range(1, len(places) + 1):
        exact = torch.trapezoid(s.exp() * s**power, s) / torch.trapezoid(s.exp(), s)
        found = sum(w / r * (r * h) ** power for w, r in zip(weights(places, h, variant), places, strict=True))
        assert found == pytest.approx(exact.item(), rel=1e-7)  # the trapezoidal rule has the error h³/(12·20000²)


def test_a_single_difference_has_weight_one_half():
    assert weights([-0.8], 0.5, "bh2") == [0.5]
    assert weights([1.0], 0.5, "bh1")[0] == pytest.approx(0.5 * 0.5 / (1 - math.exp(-0.5)))
