import copy

import pytest
import torch

from flowdiff.data.base import Split
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.features import small_cnn as features
from flowdiff.evaluation.features.choose import build_extractor
from flowdiff.evaluation.features.extractor import extract
from flowdiff.evaluation.features.identity import IdentityFeatures
from flowdiff.evaluation.features.small_cnn import SmallCNN


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(features.TRAINING, "steps", 12)


def test_digits_cnn_is_accurate_and_frozen(digits_cnn):
    assert digits_cnn.name == "digits_cnn"
    assert digits_cnn.accuracy >= 0.95
    assert len(digits_cnn.weight_hash) == 12
    assert not digits_cnn.training
    assert not any(p.requires_grad for p in digits_cnn.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 5, 64)])
def test_cnn_takes_any_image(shape):
    model = SmallCNN("x_cnn", shape, {"class": 7, "place": 3}).eval()
    features = model(torch.randn(2, *shape))
    assert features.shape == (2, model.num_features)
    assert model.class_scores(features).shape == (2, 7)
    assert {name: scores.shape for name, scores in model.scores(torch.randn(2, *shape)).items()} == {
        "class": (2, 7),
        "place": (2, 3),
    }


def test_weights_do_not_depend_on_the_global_state_nor_change_it(tiny, tmp_path, quick):
    first = build_extractor(tiny, tmp_path / "a")
    torch.manual_seed(1234)
    before = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        second = build_extractor(tiny, tmp_path / "b")
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert first.weight_hash == second.weight_hash != "untrained"
    assert not any(p.is_inference() for p in second.parameters())


def test_read_from_the_cache_without_training(tiny, tmp_path, quick, monkeypatch):
    first = build_extractor(tiny, tmp_path)
    monkeypatch.setattr(features, "train_cnn", lambda *_: pytest.fail("trained again"))
    second = build_extractor(tiny, tmp_path)
    assert (second.weight_hash, second.accuracy) == (first.weight_hash, first.accuracy)
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    assert torch.equal(first(x), second(x))


def test_another_cache_file_for_another_name_data_labels_and_training(tiny, tmp_path, quick, monkeypatch):
    named, other, labelled = (copy.deepcopy(tiny) for _ in range(3))
    named.name = "tiny2"
    other.train.x[7, 0, 3, 3] ^= 1
    labelled.train.label[7] = (labelled.train.label[7] + 1) % 4
    for files, data in enumerate((tiny, named, other, labelled, tiny), start=1):
        if files == 5:
            monkeypatch.setitem(features.TRAINING, "seed", 1)
        build_extractor(data, tmp_path)
        assert len(list((tmp_path / "extractors").iterdir())) == files


def test_fingerprint_reads_little_of_a_large_split(points):
    class Large(Split):
        def read(self, indices):
            assert len(indices) <= 1024
            assert (indices[0], indices[-1]) == (0, 10**7 - 1)
            return torch.zeros(len(indices), 2)

    large = Large(torch.zeros(1, dtype=torch.int64).expand(10**7))
    assert large.fingerprint() != points.train.fingerprint()


def test_vectors_are_their_own_features_and_images_without_classes_have_none(points, tiny, tmp_path):
    unlabelled = copy.copy(tiny)
    unlabelled.num_classes = None
    with pytest.raises(ConfigurationError, match=r"set metrics\.frechet=false"):
        build_extractor(unlabelled, tmp_path)
    extractor = build_extractor(points, tmp_path)
    assert isinstance(extractor, IdentityFeatures)
    assert (extractor.name, extractor.num_features, extractor.accuracy) == ("data", 2, None)
    found = torch.cat(list(extract(extractor, points, points.test.x, 32)))
    assert torch.equal(found, points.test.x)


def test_dequantisation_and_overshoot_do_not_show_in_the_features(digits, digits_cnn):
    real = digits.test[torch.arange(20)].x
    midpoints = digits.quantize(digits.to_model(real, torch.Generator().manual_seed(0)))
    dequantised = digits.to_model(real, torch.Generator().manual_seed(1))
    black = midpoints < -0.93
    overshot = torch.where(black, dequantised - 0.5, dequantised)
    wanted = torch.cat(list(extract(digits_cnn, digits, midpoints, 20)))
    assert torch.equal(torch.cat(list(extract(digits_cnn, digits, overshot.double(), 20))), wanted)
    # another batch size only sums in another order
    torch.testing.assert_close(torch.cat(list(extract(digits_cnn, digits, overshot, 7))), wanted, rtol=1e-4, atol=1e-5)
