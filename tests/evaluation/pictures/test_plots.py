import subprocess
import sys

import numpy as np
import pytest
import torch

from flowdiff.evaluation.pictures import plots


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


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (7, 3), (64, 8)])
def test_grid_of_grey_images_in_any_number(image_of, number, columns):
    picture = image_of(plots.sample_grid, torch.full((number, 1, 28, 28), 128, dtype=torch.uint8), columns=columns)
    assert has(picture, [128 / 255] * 3)


def test_long_row_labels_widen_the_picture(image_of):
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    short = image_of(plots.sample_grid, images, columns=2, row_labels=["a", "b"])
    long = image_of(plots.sample_grid, images, columns=2, row_labels=["automobile", "b"])
    assert long.shape[1] > short.shape[1]


@pytest.mark.parametrize("dimensions", [2, 5])
def test_scatter_draws_both(image_of, dimensions):
    x = torch.randn(400, dimensions, generator=torch.Generator().manual_seed(0))
    blank = image_of(plots.scatter, x[:0], x)
    drawn = image_of(plots.scatter, x, x, title="both")
    assert blank.shape == drawn.shape
    assert (blank[200:600, :600] < 0.9).sum() < (drawn[200:600, :600] < 0.9).sum()


@pytest.mark.parametrize("dimensions", [2, 5])
def test_paths_are_drawn_with_their_ends_among_the_data(image_of, dimensions):
    x = torch.rand(200, dimensions, generator=torch.Generator().manual_seed(0))
    blank = image_of(plots.paths, torch.zeros(0, 9, dimensions), x)
    drawn = image_of(plots.paths, x[:18].view(2, 9, dimensions), x)
    assert not has(blank, ORANGE)
    assert has(drawn, ORANGE)
    image_of(plots.paths, torch.full((1, 9, dimensions), torch.nan), x)


def test_panels_of_images_are_side_by_side_with_titles(image_of):
    grey, white = (torch.full((10, 1, 8, 8), value, dtype=torch.uint8) for value in (100, 200))
    one = image_of(plots.side_by_side, [("a", grey)], columns=5, data=None)
    two = image_of(plots.side_by_side, [("a", grey), ("b\nc", white)], columns=5, data=None)
    assert two.shape[1] == 2 * one.shape[1]
    half = two.shape[1] // 2
    assert has(two[:, :half], [100 / 255] * 3)
    assert has(two[:, half:], [200 / 255] * 3)
    assert not has(two[:, :half], [200 / 255] * 3)


def test_panels_of_points_share_the_axes_of_the_data(image_of):
    x = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    near = image_of(plots.side_by_side, [("near", x), ("far", x + 100)], columns=5, data=x)
    half = near.shape[1] // 2
    assert (near[100:, :half] < 0.9).sum() > 1000
    assert not (near[100:, half:] < 0.9).any()


@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (2, 3, 16, 16), (300, 2)])
def test_trajectory_of_images_and_points(image_of, shape):
    x0 = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = image_of(plots.trajectory, steps_of(x0), columns=3, title="on the way")
    wider = image_of(plots.trajectory, steps_of(x0), columns=4)
    assert wider.shape[1] > picture.shape[1]
    assert image_of(plots.trajectory, steps_of(x0)[:1]).shape[1] < picture.shape[1]


def test_a_diverged_model_can_be_drawn(image_of):
    image_of(plots.trajectory, steps_of(torch.full((2, 1, 8, 8), torch.nan)))
    image_of(plots.trajectory, steps_of(torch.full((9, 2), torch.nan)))
    image_of(plots.loss_curve, [{"step": 0, "train_loss": "nan"}, {"step": 1, "train_loss": "inf"}])


def test_loss_curve_skips_empty_cells(image_of):
    rows = [{"step": str(i), "train_loss": str(2 - i / 100), "val_loss": "", "fd_x_cnn": None} for i in range(100)]
    without = image_of(plots.loss_curve, rows)
    orange = [0xD1 / 255, 0x57 / 255, 0x0B / 255]
    assert not has(without, orange)
    rows[50] |= {"val_loss": 1.5, "fd_x_cnn": 7.0}
    rows[90] |= {"val_loss": 1.2, "fd_x_cnn": 3.0, "fd_x_cnn_floor": 1.0}
    assert has(image_of(plots.loss_curve, rows, title="both"), orange)
    image_of(plots.loss_curve, [])


def test_no_window_and_no_global_state(tmp_path):
    code = (
        "import sys, torch; from flowdiff.evaluation.pictures import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.scatter(torch.randn(9, 2), torch.randn(9, 2), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
