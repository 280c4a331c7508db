"""The hybrid flow: the orthogonal split, the order of coding, what the CNN affects, the sizes it accepts."""

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.coupling import Affine, Coupling
from flowdiff.models.flows.hybrid import CoarseToFine, ElementwiseFlow, haar_join, haar_split

EMBED = 4


def make(shape=(1, 4, 4), **settings):
    return flow_of("hybrid", shape, EMBED, **{"hidden": 8, "n_flows": 2, "features": 4, **settings})


def inputs(n: int, shape=(1, 4, 4)) -> tuple[torch.Tensor, Conditioning]:
    x, e = normal((n, *shape), (n, EMBED))
    return x, Conditioning(e)


def test_the_split_is_orthogonal_and_acts_on_blocks():
    """It keeps lengths, the coarse image is twice the mean of each block, and constant blocks have no details."""
    x, _ = inputs(3, (2, 4, 6))
    c, d = haar_split(x)
    assert c.shape == (3, 2, 2, 3)
    assert d.shape == (3, 6, 2, 3)
    torch.testing.assert_close(c, 2 * torch.nn.functional.avg_pool2d(x, 2))
    torch.testing.assert_close(c.square().sum() + d.square().sum(), x.square().sum())
    torch.testing.assert_close(haar_join(c, d), x)
    even = torch.nn.functional.interpolate(c / 2, scale_factor=2)
    torch.testing.assert_close(haar_split(even)[1], torch.zeros_like(d), rtol=0, atol=1e-15)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_the_coarse_image_is_coded_before_its_details(direction):
    """It does not depend on the details; they depend on it, at every pixel within the reach of the nets."""
    flow = getattr(perturb(make(levels=1).double()), direction)
    x, cond = inputs(2)
    c, d = haar_split(x)
    coarse, details = haar_split(flow(x, cond)[0])
    torch.testing.assert_close(haar_split(flow(haar_join(c, d + 1), cond)[0])[0], coarse, rtol=1e-12, atol=1e-12)
    c[:, :, 0, 0] += 1.0
    assert (haar_split(flow(haar_join(c, d), cond)[0])[1] - details).abs().min() > 1e-6


@pytest.mark.parametrize("level", [0, 1])
def test_the_cnn_affects_the_details_of_its_own_scale_only(level):
    flow = perturb(make((1, 8, 8), levels=2).double())
    x, cond = inputs(2, (1, 8, 8))

    def codes() -> list[torch.Tensor]:
        coarse, details = haar_split(flow(x, cond)[0])
        return [details, haar_split(coarse)[1]]

    before = codes()
    scales = [m for m in flow.modules() if isinstance(m, CoarseToFine)]  # the finest first
    torch.nn.init.zeros_(scales[level].cnn.outer.weight)
    change = [(after - then).abs() for after, then in zip(codes(), before, strict=True)]
    assert change[level].min() > 1e-6
    assert change[1 - level].max() < 1e-12


@pytest.mark.parametrize(
    ("shape", "scales", "coarsest"),
    [((1, 4, 4), 1, (1, 2, 2)), ((1, 8, 8), 2, (1, 2, 2)), ((1, 28, 28), 2, (1, 7, 7)), ((3, 32, 32), 3, (3, 4, 4))],
)
def test_the_number_of_scales_follows_from_the_sides(shape, scales, coarsest):
    flow = make(shape)
    assert sum(isinstance(m, CoarseToFine) for m in flow.modules()) == scales
    (coarsest_flow,) = (m for m in flow.modules() if isinstance(m, ElementwiseFlow))
    assert coarsest_flow.shape[:3] == coarsest


def test_a_single_coarse_pixel_is_transformed_by_the_condition_alone():
    flow, (x, cond) = perturb(make((1, 2, 2)).double()), inputs(2, (1, 2, 2))
    assert sum(isinstance(m, Coupling) for m in flow.modules()) == 2  # of the details
    z, other = (flow(x, c)[0] for c in (cond, cond.with_vector(cond.vector.flip(0))))
    torch.testing.assert_close(flow.inverse(z, cond)[0], x)
    assert (haar_split(other)[0] - haar_split(z)[0]).abs().min() > 1e-3


def test_the_elementwise_flow_scales_and_shifts_each_number_by_the_condition():
    x, cond = inputs(3, (2, 1, 2))
    flow = perturb(ElementwiseFlow((2, 1, 2), EMBED, Affine(1.5)).double())
    a, t = flow.steer(cond.vector).view(3, 2, 1, 2, 2).unbind(-1)
    s = 1.5 * torch.tanh(a / 1.5)
    z, logdet = flow(x, cond)
    torch.testing.assert_close(z, x * s.exp() + t)
    torch.testing.assert_close(logdet, s.flatten(1).sum(1))
    back, inverse_logdet = flow.inverse(z, cond)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_logdet, -logdet)
