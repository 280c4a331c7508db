"""A density whose flow is known, and a conditioner that remembers its labels."""

import math

import torch

from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import FlowDensity


class GaussianFlow(FlowDensity):
    """The density of x0 ~ N(mean, std²·I) at every noise level, with its (linear) flow."""

    def __init__(self, mean=0.0, std=0.5):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, c_noise, cond=None):
        return (self.mean - x) / self._scale(x, c_noise) ** 2

    def log_prob(self, x, sigma, cond=None):
        variance = self._scale(x, sigma) ** 2
        terms = -0.5 * ((x - self.mean) ** 2 / variance + variance.log() + math.log(2 * math.pi))
        return terms.flatten(1).sum(1)

    def log_prob_and_score(self, x, sigma, cond=None):
        return self.log_prob(x, sigma, cond), self(x, sigma, cond)

    def sample(self, sigma, cond=None, generator=None):
        raise NotImplementedError("no test samples from it")

    def encode(self, x, sigma, cond=None):
        return (x - self.mean) / self._scale(x, sigma)

    def decode(self, z, sigma, cond=None):
        return self.mean + z * self._scale(z, sigma)

    def _scale(self, x, sigma):
        return (self.std**2 + sigma**2).sqrt().reshape(-1, *[1] * (x.ndim - 1))


class LabelsAsVectors(Conditioner):
    """The label itself as the condition; it remembers all labels in `seen`."""

    dim = 1

    def __init__(self, num_classes=4):
        super().__init__()
        self.num_classes, self.seen = num_classes, []

    def condition(self, label):
        self.seen.append(label)
        return Conditioning(label.float()[:, None])

    def null(self, n):
        return Conditioning(torch.zeros(n, 1))
