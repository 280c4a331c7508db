"""Each toy density agrees with its docstring."""

import math

import pytest
import torch
from prepared_data import prepared

from flowdiff import registry
from flowdiff.data.toy import Toy

TOYS = [name for name in registry.names("dataset") if issubclass(registry.resolve("dataset", name), Toy)]
N = 20000


def toy(name):
    return prepared(name, num_train=N, num_test=500)


def test_all_five_are_covered():
    assert set(TOYS) >= {"two_moons", "eight_gaussians", "checkerboard", "swiss_roll", "pinwheel"}


@pytest.mark.parametrize("name", TOYS)
def test_points_are_centred_of_unit_scale_balanced_and_the_same_in_every_run(name):
    data, (x, label, _) = toy(name), toy(name).train[:]
    assert x.dtype == torch.float32
    assert x.shape == (N, 2)
    # Five standard errors of a mean whose standard deviation is at most 1.3; the scales are rounded to 1 %.
    assert x.mean(0).abs().max() < 5 * 1.3 / math.sqrt(N)
    assert abs(x.var(0).mean().sqrt() - 1) < 0.02
    counts = label.bincount(minlength=data.num_classes or 1).float() / N
    share = 1 / len(counts)
    assert len(counts) == (data.num_classes or 1)
    assert (counts - share).abs().max() <= 5 * math.sqrt(share * (1 - share) / N)  # five standard errors
    assert torch.equal(data.train[:].x, x)
    assert torch.equal(data.train[:].label, label)
    assert len(data.test) == 500
    assert not torch.isin(data.test[:].x[:, 0], x[:500, 0]).all()


def test_moons_lie_on_their_half_circles():
    x, label, _ = toy("two_moons").train[:]
    x = x * 0.706 + torch.tensor([0.5, 0.25])
    centre = torch.stack([label.float(), 0.5 * label], 1)  # (n, 2)
    radius = (x - centre).norm(dim=1)
    assert (radius - 1).abs().max() < 6 * 0.05  # six standard deviations of the noise
    sign = 1 - 2 * label  # the inner moon opens upwards
    assert ((x - centre)[:, 1] * sign).min() > -6 * 0.05


def test_gaussians_sit_on_the_circle():
    x, label, _ = toy("eight_gaussians").train[:]
    for k in range(8):
        own = x[label == k]
        angle = torch.tensor(2 * math.pi * k / 8)
        centre = 1.4 * torch.stack([angle.cos(), angle.sin()])
        assert (own.mean(0) - centre).abs().max() < 5 * 0.1 / math.sqrt(len(own))
        torch.testing.assert_close(own.T.cov(), 0.01 * torch.eye(2), rtol=0, atol=0.0015)  # > 5 standard errors


def test_checkerboard_fills_the_black_fields_evenly():
    x = toy("checkerboard").train[:].x / (math.sqrt(3) / 2) + 2
    fields = x.clamp(0, 4 - 1e-6).floor().long()
    assert x.min() > -1e-5
    assert x.max() < 4 + 1e-5
    assert (fields.sum(1) % 2 == 0).all()
    counts = (fields[:, 0] * 4 + fields[:, 1]).bincount(minlength=16)
    assert (counts > 0).sum() == 8
    assert (counts[counts > 0] - N / 8).abs().max() < 5 * math.sqrt(N / 8)


def test_swiss_roll_follows_its_spiral():
    x = toy("swiss_roll").train[:].x * 6.8 + torch.tensor([2, 2 / (3 * math.pi)])
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    turns = (radius - angle) / (2 * math.pi)
    # On the spiral the radius is the angle plus whole turns; the noise moves the radius by 0.5.
    assert ((turns - turns.round()).abs() * 2 * math.pi).quantile(0.99) < 3.5 * 0.5
    assert radius.min() > 1.5 * math.pi - 6 * 0.5
    assert radius.max() < 4.5 * math.pi + 6 * 0.5


def test_pinwheel_arms_are_turns_of_each_other():
    x, label, _ = toy("pinwheel").train[:]
    z = torch.view_as_complex(x.contiguous()) * torch.polar(torch.ones(N), -label * (2 * math.pi / 5))
    means = torch.stack([z[label == k].mean() for k in range(5)])
    assert (means - means.mean()).abs().max() < 6 * 0.6 / math.sqrt(N / 5)  # an arm is 0.6 long at most
    assert means.abs().min() > 0.5  # arms stand off the centre
