"""Consistency functions of a Gaussian: a teacher of it, a student, and a short training."""

import torch
from torch import nn

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.models.networks.base import Network
from flowdiff.testing import oracles
from flowdiff.testing.models import model_of

S = 0.5  # standard deviation of the data
LEVELS = torch.tensor([0.02, 0.1, 0.5, 2.0, 10.0])


def gaussian(dim=4):
    return model_of(oracles.Gaussian(torch.zeros(dim), S**2 * torch.eye(dim)).network, shape=(dim,), sigma_data=S)


class Net(Network):
    """An MLP of x, ¼ ln σ and the condition's vector, and a linear map of x; any consistency function of the tests."""

    def __init__(self, dim, cond_dim=0, width=64):
        super().__init__()
        self.g = nn.Sequential(nn.Linear(1 + cond_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.scale, self.shift = nn.Linear(width, 1), nn.Linear(width, dim)

    def forward(self, x, c_noise, cond=None):
        known = [c_noise[:, None]] if cond is None else [c_noise[:, None], cond.vector]
        e = self.g(torch.cat(known, 1))
        return self.scale(e) * x + self.shift(e)


def student(dim=4, cond_dim=0):
    torch.manual_seed(0)
    f = Denoiser(Net(dim, cond_dim), registry.create("scaling", "consistency"))
    f.sigma_data.fill_(S)
    return f


def train(f, loss, cond_of=lambda generator: None, means=0.0, count=3000, dim=4, p_mean=-1.1):
    draws = registry.create("sigma_sampler", "edm", p_mean=p_mean, p_std=2.0, stratified=True)
    optimizer = torch.optim.Adam(f.parameters(), 3e-3)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)
    generator = torch.Generator().manual_seed(1)
    for step in range(count):
        cond = cond_of(generator)
        centre = means if cond is None else means[cond.label]
        x0 = centre + S * torch.randn(512, dim, generator=generator)
        value = loss.at(step)(f, x0, draws(512, generator), torch.randn(512, dim, generator=generator), cond).loss
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
        falls.step()
