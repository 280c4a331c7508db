"""Cached latents equal freshly encoded ones, and are encoded again when anything that they depend on changes."""

import pickle

import pytest
import torch
from given_data import GivenData
from small_models import small_vae

from flowdiff import registry
from flowdiff.data.base import TensorSplit
from flowdiff.data.latents import CachedLatents, latent_data
from flowdiff.data.pixels import Pixels
from flowdiff.errors import ConfigurationError, DataError
from flowdiff.models.first_stage.base import AutoencoderStage


class Images(GivenData):
    """40 + 12 random images (1, 8, 8) of 256 levels."""

    def __init__(self, flip=False, seed=0):
        x = torch.randint(0, 256, (52, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        label = torch.arange(52) % 3
        super().__init__("images", TensorSplit(x[:40], label[:40]), TensorSplit(x[40:], label[40:]), 256, 3)
        self.values = Pixels(256, True, flip)


def stage(folder, seed=0, **settings):
    given = {"scale": "none", "chunk_size": 16, "precision": "float32", "cache_dir": str(folder), **settings}
    return AutoencoderStage(small_vae(seed=seed).autoencoder, **given)


def encoded(first_stage, data=None):
    data = CachedLatents(data or Images(), first_stage)
    data.prepare_data()
    data.setup()
    return data


def test_cached_moments_equal_encoded_ones(tmp_path):
    first_stage = stage(tmp_path)
    data = encoded(first_stage)
    batch = data.train[torch.tensor([3, 17, 39])]
    x = data.data.quantize(data.data.to_model(data.data.train[torch.tensor([3, 17, 39])].x))
    fresh = torch.stack(first_stage.posterior(x), 1)
    # Batches of other sizes sum in another order.
    torch.testing.assert_close(batch.x[:, 0], fresh, atol=1e-5, rtol=1e-5)
    assert batch.label.tolist() == [0, 2, 0]
    assert len(data.test) == 12
    z = torch.randn(2, 5)
    assert data.quantize(z) is z
    with pytest.raises(ConfigurationError, match="decode them first"):
        data.to_uint8(z)  # latents are not pictures
    identity = registry.create("first_stage", "identity", shape=(1, 8, 8))
    assert latent_data(identity, data.data) is data.data


def test_training_draws_from_the_posterior_by_its_generator(tmp_path):
    data = encoded(stage(tmp_path))
    raw = data.train[:20].x

    def draw(seed):
        return data.to_model(raw, torch.Generator().manual_seed(seed), train=True)

    assert torch.equal(draw(0), draw(0))
    many = torch.stack([draw(seed) for seed in range(400)])
    mean, log_variance = raw[:, 0].unbind(1)
    sd = (0.5 * log_variance).exp()
    assert bool(((many.mean(0) - mean).abs() < 5 * sd / 20).all())  # 100 means, 5 standard errors
    torch.testing.assert_close(many.std(0) / sd, torch.ones_like(sd), atol=0.2, rtol=0)  # 5.6 of 1/√800


def test_mirrored_images_have_their_own_latents(tmp_path):
    first_stage = stage(tmp_path)
    data = encoded(first_stage, Images(flip=True))
    raw = data.train[:16].x
    assert raw.shape == (16, 2, 2, 5)
    x = data.data.quantize(data.data.to_model(data.data.train[:16].x))
    torch.testing.assert_close(raw[:, 1, 0], first_stage.posterior(x.flip(-1)).mean, atol=1e-5, rtol=1e-5)
    still = raw.clone()
    still[:, :, 1] = -30  # almost no noise, so that the two views can be told apart
    z = data.to_model(still, torch.Generator().manual_seed(0), train=True)
    mirrored = (z - still[:, 1, 0]).abs().amax(1) < (z - still[:, 0, 0]).abs().amax(1)
    assert 0 < int(mirrored.sum()) < 16
    z = data.to_model(still, torch.Generator().manual_seed(0))
    torch.testing.assert_close(z, still[:, 0, 0], atol=1e-5, rtol=0)


def count(monkeypatch, stop_after=None):
    """Sizes of the chunks encoded from now on; raises KeyboardInterrupt after `stop_after` chunks."""
    seen = []
    through = AutoencoderStage.posterior

    def posterior(self, x):
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(len(x))
        return through(self, x)

    monkeypatch.setattr(AutoencoderStage, "posterior", posterior)
    return seen


def test_interrupted_encoding_continues_where_it_stopped(tmp_path, monkeypatch):
    whole = encoded(stage(tmp_path / "whole")).train[:].x
    count(monkeypatch, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        encoded(stage(tmp_path))
    (partial,) = tmp_path.glob("*.partial")
    assert partial.stat().st_size == 32 * 2 * 5 * 4
    with partial.open("ab") as file:
        file.write(b"half a sample")
    monkeypatch.undo()
    seen = count(monkeypatch)
    data = encoded(stage(tmp_path))
    assert seen == [8, 12]  # the rest of 40, and the test split
    assert not list(tmp_path.glob("*.partial"))
    torch.testing.assert_close(data.train[:].x, whole, atol=1e-5, rtol=1e-5)
    seen.clear()
    encoded(stage(tmp_path))
    assert seen == []  # everything is cached


@pytest.mark.parametrize(
    ("settings", "images", "encodes"),
    [
        ({"seed": 1}, {}, True),
        ({"precision": "bfloat16"}, {}, True),
        ({}, {"seed": 1}, True),
        ({}, {"flip": True}, True),
        ({"chunk_size": 3, "scale": "channel"}, {}, False),
    ],
    ids=str,
)
def test_only_a_change_of_the_latents_makes_another_cache(settings, images, encodes, tmp_path, monkeypatch):
    encoded(stage(tmp_path))
    seen = count(monkeypatch)
    encoded(stage(tmp_path, **settings), Images(**images))
    assert sum(seen) >= 52 if encodes else seen == []


def test_each_worker_maps_the_file_itself(tmp_path):
    split = encoded(stage(tmp_path)).train
    before = split[:4].x
    sent = pickle.dumps(split)
    assert len(sent) < 3000  # the latents, 1,600 bytes, are not part of it
    assert b"moments" not in sent
    assert torch.equal(pickle.loads(sent)[:4].x, before)


def test_a_broken_or_unwritable_cache_is_an_error_that_names_it(tmp_path):
    data = encoded(stage(tmp_path))
    with data.train.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"bytes where 1,600 are expected: delete it"):
        encoded(stage(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"first_stage\.cache_dir: .*file/in cannot be written \(Not a dir"):
        encoded(stage(tmp_path / "file" / "in"))


@pytest.mark.parametrize("flip", [False, True])
def test_fresh_latents_equal_cached_ones_before_training(tmp_path, flip):
    kept = encoded(stage(tmp_path), Images(flip=flip))
    data = Images(flip=flip)
    fresh = latent_data(stage(tmp_path / "nothing", train=True), data)
    fresh.prepare_data()
    fresh.setup()
    raw = fresh.train[:20].x
    z = fresh.to_model(raw, torch.Generator().manual_seed(0), train=True)
    generator = torch.Generator().manual_seed(0)
    x = data.to_model(raw, generator, train=True)
    assert torch.equal(z, fresh.first_stage.encode(x, generator))  # dequantised for training
    one, other = (d.to_model(d.train[:20].x, torch.Generator().manual_seed(3)) for d in (kept, fresh))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for moments in zip(*(map(torch.cat, zip(*d.posteriors(16), strict=True)) for d in (kept, fresh)), strict=True):
        one, other = (m.sort(0).values for m in moments)  # mirrored images come in another order
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert not (tmp_path / "nothing").exists()
