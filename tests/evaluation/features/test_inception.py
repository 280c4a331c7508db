"""Inception features with random weights, from the file to the metrics, against torch-fidelity's numbers."""

import hashlib

import pytest
import torch
from torch.utils.data import Subset

from flowdiff import config, registry
from flowdiff.errors import ConfigurationError, DataError

N = 4  # images of each set: a tenth of a second each


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    patch = pytest.MonkeyPatch()
    with torch.random.fork_rng(devices=[]), patch.context() as context:
        torch.manual_seed(0)
        context.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        context.setattr(torch, "load", lambda *_, **__: {})
        network = FeatureExtractorInceptionV3("random", ["2048"], "none")
    # PyTorch's weights halve the signal in each of some twenty layers; these keep its size, as a trained network does.
    state = {name: w * 6**0.5 if w.ndim == 4 else w for name, w in network.state_dict().items()}
    torch.save(state, path)
    return path


@pytest.fixture
def metrics_of(tmp_path):
    def make(data, weights, option="inception", **overrides):
        given = {"inception_weights": str(weights), "cache_dir": str(tmp_path), **overrides}
        return registry.create("metrics", config.defaults("metrics", option), data=data, **given)

    return make


def test_metrics_equal_those_of_torch_fidelity(weights, cifar, metrics_of, caplog):
    import torch_fidelity
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    generator = torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    # a single part: the score of one image is always 1
    compare = {"kernel_distance": {"subsets": 1, "subset_size": N}, "inception_score": {"splits": 1}}
    metrics = metrics_of(cifar, weights, compare=compare)
    assert torch.equal(torch.get_rng_state(), before)
    samples = 2 * torch.rand(N, 3, 1, 1, generator=generator) - 1 + 0.4 * torch.randn(N, 3, 32, 32, generator=generator)
    assert samples.abs().max() > 1  # some pixels are out of range
    cudnn = set()  # the network runs with cuDNN, but not in TF32
    now = torch.backends.cudnn
    metrics.extractor.network.register_forward_pre_hook(lambda *_: cudnn.add((now.enabled, now.allow_tf32)))
    found = {name: metrics._measure(name, metrics._samples(samples)) for name in ("kernel_distance", "inception_score")}
    found |= {"frechet": metrics.frechet(samples)}
    assert cudnn == {(True, False)}
    assert "covariance of 2048 features is singular below 2049" in caplog.text
    assert metrics.extractor.weight_hash == hashlib.sha256(weights.read_bytes()).hexdigest()[:12]

    uint8 = ((samples + 1) * 128).floor().clamp(0, 255).to(torch.uint8)
    extractor = torch_fidelity.utils.create_feature_extractor(
        "inception-v3-compat", ["2048", "logits_unbiased"], cuda=False, feature_extractor_weights_path=str(weights)
    )
    theirs = [
        torch_fidelity.utils.get_featuresdict_from_dataset(Subset(x, range(N)), extractor, N, False, True, False)
        for x in (uint8, cifar.train.x)
    ]
    features = [f["2048"] for f in theirs]
    kid = torch_fidelity.metric_kid.kid_features_to_metric(*features, kid_subsets=1, kid_subset_size=N)
    isc = torch_fidelity.metric_isc.isc_features_to_metric(theirs[0]["logits_unbiased"], splits=1)
    # float32 features: batches of another size sum in another order
    assert found["kernel_distance"]["kid"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-4, abs=0)
    assert found["inception_score"]["is"] - 1 == pytest.approx(isc["inception_score_mean"] - 1, rel=1e-3, abs=0)
    # Eigenvalues of a 2048 × 2048 matrix are slow; the distance is the same in the span of the images.
    basis = torch.linalg.qr(torch.cat(features).double().T)[0]
    statistics = [fid_features_to_statistics(f.double() @ basis) for f in features]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert found["frechet"]["fid"] == pytest.approx(fid, rel=1e-6, abs=0)


def test_missing_or_other_weights_and_vectors_are_refused(cifar, points, metrics_of, tmp_path):
    with pytest.raises(
        ConfigurationError, match=r"metrics\.inception_weights=.*none\.pth does not exist: save https://"
    ):
        metrics_of(cifar, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(DataError, match=r"text\.pth does not hold the weights of torch-fidelity's Inception network"):
        _ = metrics_of(cifar, tmp_path / "text.pth").extractor
    with pytest.raises(ConfigurationError, match=r"images of 1 or 3 channels, and dataset=points .* metrics=vectors"):
        metrics_of(points, tmp_path / "text.pth", "default")
