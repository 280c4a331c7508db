"""Small data sets, an extractor that is trained once for all tests of this folder, and models in closed form."""

import pytest
import torch
from gaussian_flow import GaussianFlow, LabelsAsVectors
from given_data import GivenData

from flowdiff.data.base import TensorSplit
from flowdiff.testing.models import ScoreOf, model_of


def split_in_two(x, label, n_train):
    return TensorSplit(x[:n_train], label[:n_train]), TensorSplit(x[n_train:], label[n_train:])


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's 8×8 digits, 1,500 to train and 297 to test, shuffled."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(raw.images).to(torch.uint8).unsqueeze(1)[order]
    return GivenData("digits", *split_in_two(x, torch.from_numpy(raw.target)[order], 1500), 17, 10)


@pytest.fixture(scope="session")
def tiny():
    """3×8×8 images of noise around the mean of their class, quick to train on."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4, (240,), generator=generator)
    noise = torch.randint(0, 40, (240, 3, 8, 8), generator=generator)
    x = (60 * label.reshape(-1, 1, 1, 1) + noise).to(torch.uint8)
    return GivenData("tiny", *split_in_two(x, label, 180), 256, 4)


@pytest.fixture(scope="session")
def cifar():
    """Eight images of one colour plus noise in the shape of CIFAR-10, four of them to test."""
    generator = torch.Generator().manual_seed(4)
    colour = torch.randint(0, 200, (8, 3, 1, 1), generator=generator)
    x = (colour + torch.randint(0, 56, (8, 3, 32, 32), generator=generator)).to(torch.uint8)
    return GivenData("cifar", *split_in_two(x, torch.arange(8) % 2, 4), 256, 2)


@pytest.fixture(scope="session")
def points():
    """2-D points from a correlated Gaussian, without classes."""
    x = torch.randn(900, 2, generator=torch.Generator().manual_seed(2)) @ torch.tensor([[0.5, 0.2], [0.0, 0.3]])
    return GivenData("points", *split_in_two(x, torch.zeros(900, dtype=torch.long), 600), None, None)


@pytest.fixture(scope="session")
def blobs():
    """2-D points from three round bumps, without classes."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.tensor([[-0.7, 0.0], [0.5, 0.6], [0.5, -0.6]])
    x = centres[torch.randint(0, 3, (1600,), generator=generator)] + 0.1 * torch.randn(1600, 2, generator=generator)
    return GivenData("blobs", *split_in_two(x, torch.zeros(1600, dtype=torch.long), 1000), None, None)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits_cnn(digits, cache_dir):
    from flowdiff.evaluation.features.choose import build_extractor

    return build_extractor(digits, cache_dir)


@pytest.fixture
def gaussian():
    """(mean, std, network) → the exact model of N(mean, std²·I), or a model of a variant of its network."""

    def make(mean=0.0, std=0.5, network=GaussianFlow, conditioner=None):
        return model_of(network(mean, std), conditioner=conditioner, sigma_data=std)

    return make


@pytest.fixture
def raw(gaussian):
    """(mean, std) → the exact denoiser of N(mean, std²·I), whose network is not a density."""
    return lambda mean=0.0, std=0.5: gaussian(mean, std, network=lambda mean, std: ScoreOf(GaussianFlow(mean, std)))


@pytest.fixture
def labels_as_vectors():
    return LabelsAsVectors()
