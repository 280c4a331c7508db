"""Small data with the contract of the data room, and an extractor trained once for all tests of this folder."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor


class Batch(NamedTuple):
    x: Tensor
    label: Tensor


class Split:
    def __init__(self, x, label):
        self.x, self.label = x, label

    def __len__(self):
        return len(self.x)

    def __getitem__(self, indices):
        return Batch(self.x[indices], self.label[indices])


class FakeData:
    """Images of `levels` grey levels (uint8), or continuous vectors if `levels` is None."""

    def __init__(self, name, train, test, levels, num_classes):
        self.name, self.train, self.test, self.levels, self.num_classes = (
            name,
            train,
            test,
            levels,
            num_classes,
        )
        self.shape = tuple(train.x.shape[1:])

    def to_model(self, x_raw, generator=None, train=False):
        if self.levels is None:
            return x_raw.float()
        u = torch.rand(x_raw.shape, generator=generator)
        return 2 * (x_raw + u) / self.levels - 1

    def quantize(self, x):
        if self.levels is None:
            return x
        k = ((x + 1) / 2 * self.levels).floor().clamp(0, self.levels - 1)
        return 2 * (k + 0.5) / self.levels - 1

    def to_uint8(self, x):
        k = ((x + 1) / 2 * self.levels).floor().clamp(0, self.levels - 1)
        return (k * 255 / (self.levels - 1)).round().to(torch.uint8)


def split_in_two(x, label, n_train):
    return Split(x[:n_train], label[:n_train]), Split(x[n_train:], label[n_train:])


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's 8×8 digits, 1,500 to train and 297 to test, shuffled."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = torch.randperm(len(raw.images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(raw.images).to(torch.uint8).unsqueeze(1)[order]
    return FakeData("digits", *split_in_two(x, torch.from_numpy(raw.target)[order], 1500), 17, 10)


@pytest.fixture(scope="session")
def tiny():
    """3×8×8 images of noise around a class mean: enough to exercise every path, quick to train on."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 4, (240,), generator=generator)
    noise = torch.randint(0, 40, (240, 3, 8, 8), generator=generator)
    x = (60 * label.reshape(-1, 1, 1, 1) + noise).to(torch.uint8)
    return FakeData("tiny", *split_in_two(x, label, 180), 256, 4)


@pytest.fixture(scope="session")
def cifar():
    """Eight images of one colour each and noise, in CIFAR-10's shape, four of them to test."""
    generator = torch.Generator().manual_seed(4)
    colour = torch.randint(0, 200, (8, 3, 1, 1), generator=generator)
    x = (colour + torch.randint(0, 56, (8, 3, 32, 32), generator=generator)).to(torch.uint8)
    return FakeData("cifar", *split_in_two(x, torch.arange(8) % 2, 4), 256, 2)


@pytest.fixture(scope="session")
def points():
    """2-D points from a correlated Gaussian, without classes."""
    x = torch.randn(900, 2, generator=torch.Generator().manual_seed(2)) @ torch.tensor([[0.5, 0.2], [0.0, 0.3]])
    return FakeData("points", *split_in_two(x, torch.zeros(900, dtype=torch.long), 600), None, None)


@pytest.fixture(scope="session")
def blobs():
    """2-D points from three round bumps, without classes."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.tensor([[-0.7, 0.0], [0.5, 0.6], [0.5, -0.6]])
    x = centres[torch.randint(0, 3, (1600,), generator=generator)] + 0.1 * torch.randn(1600, 2, generator=generator)
    return FakeData("blobs", *split_in_two(x, torch.zeros(1600, dtype=torch.long), 1000), None, None)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def digits_cnn(digits, cache_dir):
    from flowdiff.evaluation.features.choose import build_extractor

    return build_extractor(digits, cache_dir)


class GaussianDenoiser(torch.nn.Module):
    """The exact denoiser, density and (linear) flow of x0 ~ N(mean, std²·I) at every noise level, without classes."""

    is_density = True
    num_classes = None

    def __init__(self, mean=0.0, std=0.5):
        super().__init__()
        self.mean, self.std = mean, std
        self.register_buffer("sigma_data", torch.tensor(std))

    def forward(self, x, sigma, cond=None):
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        return self.mean + self.std**2 / (self.std**2 + s**2) * (x - self.mean)

    def log_prob(self, x, sigma, cond=None):
        variance = (self.std**2 + sigma**2).reshape(-1, *[1] * (x.ndim - 1))
        terms = -0.5 * ((x - self.mean) ** 2 / variance + variance.log() + torch.log(torch.tensor(2 * torch.pi)))
        return terms.flatten(1).sum(1)

    @property
    def network(self):
        return self

    def encode(self, x, sigma, cond=None):
        return (x - self.mean) / self._scale(x, sigma)

    def decode(self, z, sigma, cond=None):
        return self.mean + z * self._scale(z, sigma)

    def _scale(self, x, sigma):
        return (self.std**2 + sigma**2).sqrt().reshape(-1, *[1] * (x.ndim - 1))


@pytest.fixture
def gaussian():
    return GaussianDenoiser
