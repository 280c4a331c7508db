"""The inverse that computes each unit once equals the inverse that runs the whole net once per dimension."""

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.masked_walk import units_per_step

DIM, EMBED, HIDDEN = 7, 3, 16


def make(name: str, **settings) -> torch.nn.Module:
    return perturb(flow_of(name, (DIM,), EMBED, **{"hidden": HIDDEN, **settings}).double())


@pytest.mark.parametrize("name", ["maf", "nsf"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"passes": 1}, {"passes": 2}, {"passes": 3}, {"random_order": True}, {"depth": 1}, {"hidden": 3}],
    ids=str,
)
def test_it_equals_the_inverse_by_the_whole_net(name, settings):
    flow = make(name, **settings)
    z, e = normal((5, DIM), (5, EMBED))
    x, logdet = flow.inverse(z, Conditioning(e))  # with a graph: by zuko
    with torch.no_grad():
        found, found_logdet = flow.inverse(z, Conditioning(e))
    assert (x - z).abs().max() > 0.1
    torch.testing.assert_close(found, x.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found_logdet, logdet.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"passes": 3}, {"random_order": True}], ids=str)
def test_every_unit_is_computed_exactly_once(settings):
    for transform in make("maf", **settings).transform.transforms:
        linears = list(transform.hyper)[::2]
        for linear, steps in zip(linears, units_per_step(transform, linears), strict=True):
            assert len(steps) == transform.passes
            units = torch.cat([units for units, _, _ in steps])
            assert torch.equal(units.sort().values, torch.arange(linear.out_features))
