"""Rescaling keeps the spread, thresholding the bounds, and what both are given within them they leave alone."""

import pytest
import torch

from flowdiff.diffusion.guidance.limits import Limits, rescaled, thresholded

GENERATOR = torch.Generator().manual_seed(0)
PLAIN, GUIDED = (scale * torch.randn(5, 3, 4, 4, generator=GENERATOR, dtype=torch.float64) for scale in (0.5, 2.0))


def spread(D):
    return D.flatten(1).std(1)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rescaling_goes_that_share_of_the_way_to_the_unguided_spread(share):
    assert rescaled(torch.zeros(2, 3), torch.ones(2, 3), share).isfinite().all()  # a flat sample
    D = rescaled(GUIDED, PLAIN, share)
    torch.testing.assert_close(spread(D), share * spread(PLAIN) + (1 - share) * spread(GUIDED))
    torch.testing.assert_close(D / spread(D)[:, None, None, None], GUIDED / spread(GUIDED)[:, None, None, None])


@pytest.mark.parametrize(("quantile", "rank"), [(0.5, 24), (0.9, 44), (1.0, 48)])
def test_thresholding_bounds_by_a_quantile_what_is_out_of_bounds(quantile, rank):
    small = PLAIN / PLAIN.abs().max()
    assert torch.equal(thresholded(small, quantile), small)
    D = thresholded(GUIDED, quantile)
    assert D.abs().max() == 1
    s = GUIDED.flatten(1).abs().sort(1).values[:, rank - 1]  # of 48 numbers, all above 1
    torch.testing.assert_close(D, torch.clamp(GUIDED / s[:, None, None, None], -1, 1))


def test_the_order_is_rescale_then_threshold_within_an_interval_that_holds_its_ends():
    limits = Limits(None, 0.5, 0.9)
    assert torch.equal(limits(GUIDED, PLAIN), thresholded(rescaled(GUIDED, PLAIN, 0.5), 0.9))
    assert limits(GUIDED, PLAIN).abs().max() <= 1
    assert torch.equal(Limits(None, 0.0, None)(GUIDED, PLAIN), GUIDED)
    sigma = torch.tensor([0.1, 0.2, 1.0, 3.0, 3.1])
    assert Limits([0.2, 3.0], 0.0, None).inside(sigma).tolist() == [False, True, True, True, False]
    assert Limits(None, 0.0, None).inside(sigma).all()
