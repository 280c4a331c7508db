"""Great circles, and paths through the base points of a model whose flow is known."""

import copy
import math

import pytest
import torch

from flowdiff.errors import DataError
from flowdiff.evaluation.densities.interpolation import POINTS, great_circle, interpolate, likelihood_between


def test_a_great_circle_stays_on_the_sphere_and_turns_evenly():
    a, b = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 3.0, 0.0]])
    path = great_circle(a, b, torch.linspace(0, 1, 5))[0]
    angle = torch.linspace(0, math.pi / 2, 5)
    torch.testing.assert_close(path, 3 * torch.stack([angle.cos(), angle.sin(), 0 * angle], 1))
    a = torch.tensor([[1.0, 2.0]])
    for factor in (2.0, -1.0):  # between parallel or opposite points the path is the line through 0
        path = great_circle(a, factor * a, torch.linspace(0, 1, 3))[0]
        torch.testing.assert_close(path, torch.stack([a[0], (1 + factor) / 2 * a[0], factor * a[0]]))


def test_paths_join_test_samples_of_one_class(tiny, points, gaussian):
    lonely = copy.copy(points)
    lonely.test = type(points.test)(points.test.x[:2], torch.tensor([0, 1]))
    with pytest.raises(DataError, match="no class has two test samples"):
        interpolate(gaussian(), lonely, 0.02, seed=0, batch_size=10, pairs=4)
    paths = interpolate(gaussian(0.1, 0.5), tiny, 0.2, seed=0, batch_size=7, pairs=12)
    assert paths.curved.shape == paths.straight.shape == (12, POINTS, 3, 8, 8)
    assert paths.label.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    for end in (0, -1):
        torch.testing.assert_close(paths.curved[:, end], paths.straight[:, end], atol=1e-5, rtol=1e-5)
        levels = ((paths.straight[:, end] + 1) * 128).floor()
        for image, label in zip(levels, paths.label, strict=True):
            assert (tiny.test.x[tiny.test.label == label] == image).flatten(1).all(1).any()
    # A linear flow makes great circles of x − mean.
    norms = (paths.curved - 0.1).flatten(2).norm(dim=2)
    low, high = norms[:, [0, -1]].aminmax(dim=1)
    assert (norms >= low[:, None] - 1e-3).all()
    assert (norms <= high[:, None] + 1e-3).all()
    again = interpolate(gaussian(0.1, 0.5), tiny, 0.2, seed=0, batch_size=500, pairs=12)
    torch.testing.assert_close(again.curved, paths.curved)


def test_a_path_is_as_likely_as_its_ends_and_the_straight_line_likelier(digits, gaussian):
    # N(0, std²·I) depends on the distance from 0 only, and the chord of a sphere passes nearer to 0.
    found = likelihood_between(gaussian(0.0, 0.8), digits, 0.02, seed=0, batch_size=100, pairs=60)
    assert found.metric == "bpd"
    assert found.straight < found.mean - 5 * found.standard_error
