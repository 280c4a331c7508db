"""Restoring samples of a model whose posterior is known, and a run's test images from outside."""

import json

import numpy as np
import pytest
import torch
from cli_process import check_mistakes, succeed
from PIL import Image
from runs import TINY, TINY_DIGITS, train, without_flow

import flowdiff
from flowdiff import registry
from flowdiff.diffusion.posteriors import Drawing
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.restoration.restore import restore
from flowdiff.testing import oracles
from flowdiff.testing.models import model_of

LINE = oracles.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.9], [0.9, 1.0]]))


@pytest.mark.parametrize("sampler", ["heun", "adaptive"])
def test_draws_of_a_gaussian_are_calibrated(sampler):
    """mmps is exact there, and both are of second order; `adaptive` asks for some rows of a batch alone."""
    n = 12 if sampler == "adaptive" else 300
    model = model_of(LINE.network, shape=(2,), sigma_data=1.0)
    A = registry.create("measurement", "inpaint", shape=(2,))
    truth = LINE.sample(torch.full((n,), 0.002), generator=torch.Generator().manual_seed(0))
    method = registry.create("posterior", "mmps", measurement=A)
    found = restore(model, A, method, truth, Drawing(19, sampler=registry.create("sampler", sampler)))
    assert found.draws.x.shape == (n, 19, 2)
    torch.testing.assert_close(found.shown[:, 1], found.y[:, 0])
    deviation = (1 - 0.9**2) ** 0.5
    assert float(found.std[:, 0].mean()) == pytest.approx(deviation, rel=0.1)
    if sampler == "heun":
        numbers = found.numbers()
        assert numbers["coverage_90"] == pytest.approx(0.9, abs=0.06)  # 5 standard errors of 600 numbers
        assert numbers["coverage_50"] == pytest.approx(0.5, abs=0.1)
        assert "psnr" not in numbers


def test_draws_do_not_depend_on_the_batch():
    model = model_of(LINE.network, shape=(2,), sigma_data=1.0)
    A = registry.create("measurement", "inpaint", shape=(2,))
    truth = LINE.sample(torch.full((5,), 0.002), generator=torch.Generator().manual_seed(0))
    method = registry.create("posterior", "mmps", measurement=A)
    together, apart = (restore(model, A, method, truth, Drawing(3, batch_size=size)).draws.x for size in (64, 4))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    train(path := tmp_path_factory.mktemp("restore") / "run", *TINY_DIGITS)
    return path


@pytest.mark.slow
def test_a_run_is_restored_from_outside(run, tmp_path):
    mask = tmp_path / "mask.png"
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2)).save(mask)
    command = ["measurement=inpaint", f"measurement.mask={mask}", "num_samples=3", "draws=4"]
    succeed("sample", f"run={run}", *command, f"out={tmp_path / 'out'}", cwd=tmp_path)
    arrays = np.load(tmp_path / "out" / "restored.npz")
    assert {name: arrays[name].shape for name in arrays} == {
        "truth": (3, 1, 8, 8),
        "measured": (3, 48),
        "draws": (3, 4, 1, 8, 8),
        "mean": (3, 1, 8, 8),
        "std": (3, 1, 8, 8),
    }
    numbers = json.loads((tmp_path / "out" / "restored.json").read_text())
    assert {"psnr", "ssim", "crps", "coverage_90", "nfe"} <= set(numbers)
    with Image.open(tmp_path / "out" / "restored.png") as picture:
        assert min(picture.size) > 300
    # from Python, the same draws
    settings = {"name": "inpaint", "mask": str(mask)}
    x, label = torch.from_numpy(arrays["truth"]), [0, 0, 0]
    found = flowdiff.restore(flowdiff.load(run), x, settings, "mmps", draws=4, label=label)
    torch.testing.assert_close(found.y, torch.from_numpy(arrays["measured"]))
    with pytest.raises(ConfigurationError, match="no label was given"):
        flowdiff.restore(flowdiff.load(run), x, settings, "mmps")
    with pytest.raises(ConfigurationError, match="2 values of label were given for 3 samples"):
        flowdiff.restore(flowdiff.load(run), x, settings, "mmps", label=[0, 1])


@pytest.mark.slow
def test_samples_begin_with_a_picture_from_outside(run, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 20, 3), np.uint8)).save(tmp_path / "a.png")
    command = ["start=image", f"image={tmp_path / 'a.png'}", "strength=0.5", "num_samples=3"]
    succeed("sample", f"run={run}", *command, f"out={tmp_path / 'out'}", cwd=tmp_path)
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (3, 8, 8, 1)
    assert (tmp_path / "out" / "samples.png").is_file()


@pytest.mark.slow
def test_pictures_are_changed_and_joined_from_outside(run, tmp_path):
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 255, (8, 8), np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    changed = ["image=a.png", "through=z", "source_label=3", "out=changed"]
    joined = ["image=[a.png,b.png]", "through=ddim", "source_label=3", "out=joined"]
    for command, count in ((changed, 10), (joined, 9)):
        succeed("sample", f"run={run}", "start=image", *command, cwd=tmp_path)
        assert np.load(tmp_path / command[-1][4:] / "samples.npz")["arr_0"].shape == (count, 8, 8, 1)
    errors = json.loads((tmp_path / "changed" / "reconstruction.json").read_text())
    assert errors["z"] < 1e-4 < errors["ddim"]


MISTAKES = [
    (["measurement=inpaint", "posterior=none"], "nothing says how to draw from the posterior of this measurement"),
    (["posterior=mmps"], "a posterior is that of a measurement, and there is none"),
    (["measurement=inpaint", "posterior=mmps", "measurement.mask={text}"], "cannot be read as a picture"),
    (["measurement=inpaint", "posterior=mmps", "measurement.mask={small}"], "and a sample of this run has 8×8"),
    (["measurement=inpaint", "posterior=mmps", "num_samples=1000"], "is more than the 297 test samples"),
    (["measurement=inpaint", "posterior=mmps", "evaluate=true"], "evaluate=true does not go with measurement=inpaint"),
    (["measurement=inpaint", "posterior=mmps", "guidance=cfg"], "set guidance=none, or posterior=replacement"),
    (["measurement=inpaint", "posterior=hmc", "measurement.sigma_y=0.0"], "set measurement.sigma_y > 0"),
    (["measurement=colourise", "posterior=mmps"], "is for colour images"),
    (["measurement=inpaint", "posterior=mmps", "draws=0"], "draws=0 is not allowed"),
    (["start=image"], "start=image was given with no image"),
    (["image={small}"], "is for start=image"),
    (["start=image", "image={text}"], "cannot be read (it is not a picture of a known format)"),
    (["start=image", "image=nowhere.png"], "image=nowhere.png is not a file"),
    (["start=image", "image={small}", "strength=1.5"], "strength=1.5 is not allowed"),
    (["start=image", "image={small}", "sigma_start=1"], "start=image was given with sigma_start=1"),
    (["start=image", "image={small}", "evaluate=true"], "evaluate=true does not go with start=image"),
    (["through=z"], "through=z is for start=image"),
    (["start=image", "image=[a.png,b.png]"], "through=noise begins with one"),
    (["hint_of={small}"], "is for runs that read hints"),
]


@pytest.mark.slow
def test_mistakes_end_as_one_sentence(run, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(np.eye(3, dtype=np.uint8)).save(tmp_path / "small.png")
    places = {"text": tmp_path / "text.png", "small": tmp_path / "small.png"}
    mistakes = [([f"run={run}", *(a.format(**places) for a in arguments)], words) for arguments, words in MISTAKES]
    before = set(tmp_path.iterdir())
    check_mistakes("sample", mistakes, tmp_path)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_raw_network_and_points_of_the_plane(tmp_path):
    for name, overrides in {
        "raw": [*without_flow(TINY_DIGITS), "network=mlp", "scaling=edm"],
        "toy": [*TINY, "conditioner=none"],
    }.items():
        train(tmp_path / name, *overrides)
        command = ["measurement=inpaint", "posterior=mmps", "num_samples=3", "draws=4"]
        succeed("sample", f"run={tmp_path / name}", *command, f"out={tmp_path / name / 'out'}", cwd=tmp_path)
        assert (tmp_path / name / "out" / "restored.png").is_file()
    refused = [([f"run={tmp_path / 'raw'}", "measurement=inpaint", "posterior=hmc"], "walks on a density")]
    check_mistakes("sample", refused, tmp_path)
