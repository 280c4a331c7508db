import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from flowdiff.evaluation.pictures import plots
from flowdiff.runs.health import Curve, Denoising, Health


@pytest.fixture
def image_of(tmp_path):
    """Draw into a file and read it back, float (H, W, 3) in [0, 1]."""

    def draw(function, *args, **kwargs):
        from matplotlib.image import imread

        path = tmp_path / "new" / "picture.png"
        function(*args, path, **kwargs)
        return imread(path)[..., :3]

    return draw


def steps_of(x0, sigmas=(40.0, 4.0, 0.4, 0.0)):
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    return [(sigma, x0 + sigma * noise, x0) for sigma in sigmas]


ORANGE = [0xD1 / 255, 0x57 / 255, 0x0B / 255]


def has(picture, colour, tolerance=0.02):
    return bool((np.abs(picture - np.array(colour)) < tolerance).all(-1).any())


def test_grid_shows_every_pixel_enlarged_and_unsmoothed(image_of):
    images = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    images[:, 0], images[4, :, 2, 5] = 200, torch.tensor([0, 255, 0], dtype=torch.uint8)
    picture = image_of(plots.sample_grid, images, columns=3, row_labels=["a", "b"], title="six")
    green = (np.abs(picture - [0, 1, 0]) < 0.02).all(-1)
    rows, columns = green.any(1).nonzero()[0], green.any(0).nonzero()[0]
    side = columns[-1] - columns[0] + 1
    assert side > 8  # one pixel of the sample
    assert green.sum() == side * (rows[-1] - rows[0] + 1)  # a solid rectangle
    red = (np.abs(picture - [200 / 255, 0, 0]) < 0.02).all(-1)
    # six images of 64 pixels but one; edges of pixels may be rounded to a dot
    assert red.sum() / green.sum() == pytest.approx(6 * 64 - 1, rel=0.1)


def test_a_picture_keeps_its_prompts(tmp_path):
    prompts, path = ["a big red three", "蓝色的二"], tmp_path / "a.png"
    plots.sample_grid(flat(100, 2), path, columns=2, prompts=prompts)
    with Image.open(path) as picture:
        assert picture.text["Description"].splitlines() == prompts
    plots.side_by_side([("one", flat(0, 2)), ("two", flat(9, 2))], path, columns=2, data=None, prompts=prompts[:1])
    with Image.open(path) as picture:
        assert picture.text["Description"] == prompts[0]
    plots.sample_grid(flat(100, 2), path, columns=2)
    with Image.open(path) as picture:
        assert "Description" not in picture.text


def test_panels_of_points_share_the_axes_of_the_data(image_of):
    x = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    near = image_of(plots.side_by_side, [("near", x), ("far", x + 100)], columns=5, data=x)
    half = near.shape[1] // 2
    assert (near[100:, :half] < 0.9).sum() > 1000
    assert not (near[100:, half:] < 0.9).any()


def flat(value, n, side=8):
    """n grey images of one value."""
    return torch.full((n, 1, side, side), value, dtype=torch.uint8)


def test_grids_of_any_number_of_grey_images_with_labels_of_any_length(image_of):
    for number, columns in ((1, 1), (7, 3), (64, 8)):
        assert has(image_of(plots.sample_grid, flat(128, number, 28), columns=columns), [128 / 255] * 3)
    short, long = (
        image_of(plots.sample_grid, flat(0, 4), columns=2, row_labels=[label, "b"]) for label in ("a", "automobile")
    )
    assert long.shape[1] > short.shape[1]


@pytest.mark.parametrize("dimensions", [2, 5])
def test_scatter_draws_both_and_paths_have_their_ends_among_the_data(image_of, dimensions):
    x = torch.randn(400, dimensions, generator=torch.Generator().manual_seed(0))
    blank, drawn = (image_of(plots.scatter, points, x, title=title) for points, title in ((x[:0], None), (x, "both")))
    assert blank.shape == drawn.shape
    assert (blank[200:600, :600] < 0.9).sum() < (drawn[200:600, :600] < 0.9).sum()
    assert not has(image_of(plots.paths, torch.zeros(0, 9, dimensions), x), ORANGE)
    assert has(image_of(plots.paths, x[:18].view(2, 9, dimensions), x), ORANGE)
    image_of(plots.paths, torch.full((1, 9, dimensions), torch.nan), x)


def test_panels_of_images_are_side_by_side_with_titles(image_of):
    panels = [("a", flat(100, 10)), ("b\nc", flat(200, 10))]
    one, two = (image_of(plots.side_by_side, panels[:n], columns=5, data=None) for n in (1, 2))
    assert two.shape[1] == 2 * one.shape[1]
    left, right = two[:, : one.shape[1]], two[:, one.shape[1] :]
    assert has(left, [100 / 255] * 3)
    assert has(right, [200 / 255] * 3)
    assert not has(left, [200 / 255] * 3)


def test_loss_curve_skips_empty_cells_and_a_diverged_model_can_be_drawn(image_of):
    rows = [{"step": str(i), "train_loss": str(2 - i / 100), "val_loss": "", "fd_x_cnn": None} for i in range(100)]
    assert not has(image_of(plots.loss_curve, rows), ORANGE)
    rows[50] |= {"val_loss": 1.5, "fd_x_cnn": 7.0}
    rows[90] |= {"val_loss": 1.2, "fd_x_cnn": 3.0, "fd_x_cnn_floor": 1.0}
    assert has(image_of(plots.loss_curve, rows, title="both"), ORANGE)
    for few in ([], [{"step": 0, "train_loss": "nan"}, {"step": 1, "train_loss": "inf"}]):
        image_of(plots.loss_curve, few)
    for shape in ((2, 1, 8, 8), (9, 2)):
        image_of(plots.trajectory, steps_of(torch.full(shape, torch.nan)))


RED = [0xCF / 255, 0x22 / 255, 0x2E / 255]


def test_health_has_a_panel_for_each_measure_and_rings_where_d_is_worse_than_the_means(image_of):
    sigma, seen = (0.01, 1.0, 80.0), (True, True, False)
    good, bad = (Denoising(sigma, e, (1e-4, 0.2, 0.6), 0.3, True, 0.6, seen) for e in ((1e-4, 0.2, 9), (1e-4, 9, 9)))
    curve = Curve(sigma, (0.9, math.nan, -300.0))
    one, two, three = (
        image_of(plots.health, found)
        for found in (Health(good), Health(bad, curve), Health(bad, curve, Curve(sigma, (1.0, 0.1, 0.2))))
    )
    assert one.shape[0] < two.shape[0] < three.shape[0]
    assert not has(one, RED)  # the level at which it is worse is not visited
    assert has(two, RED)
    broken = Denoising(sigma, (math.nan, math.inf, 0.0), None, 0.0, False, 0.0, seen)
    image_of(plots.health, Health(broken, Curve(sigma, (math.nan,) * 3)))


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (2, 3, 16, 16), (300, 2)])
def test_trajectory_of_images_and_points(image_of, shape):
    x0 = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = image_of(plots.trajectory, steps_of(x0), columns=3, title="on the way")
    wider = image_of(plots.trajectory, steps_of(x0), columns=4)
    assert wider.shape[1] > picture.shape[1]
    assert image_of(plots.trajectory, steps_of(x0)[:1]).shape[1] < picture.shape[1]


def test_no_window_and_no_global_state(tmp_path):
    code = (
        "import sys, torch; from flowdiff.evaluation.pictures import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.scatter(torch.randn(9, 2), torch.randn(9, 2), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
