"""The mixture as base: a score flow that starts as a mixture of Gaussians, and stays an exact density when trained."""

import math

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal, score_flow_of

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.mixture_base import MixtureBase
from flowdiff.testing import check_network
from flowdiff.testing.densities import jacobians
from flowdiff.testing.oracles import Gaussian

DIM, CLASSES, EMBED = 6, 3, 16


def classes(n=3000, dim=DIM):
    """Samples (n, dim) of classes with different means and covariances, each in two clusters, and their labels."""
    label = torch.arange(n) % CLASSES
    mixes, z = normal((CLASSES, dim, dim), (n, dim), seed=3)
    cluster = 12.0 * (torch.arange(n) // CLASSES % 2)
    return (torch.einsum("bi,bij->bj", z, mixes[label]) + (2.0 * label + cluster)[:, None]).double(), label


def fitted(components=1, num_classes=CLASSES, whitening="isotropic", batch=64, data=None, **given):
    """A score flow of double precision whose mixture has seen the data."""
    x, label = classes() if data is None else data
    flow = flow_of("realnvp", x.shape[1:], EMBED, hidden=16)
    given = {"num_classes": num_classes, "components": components, **given}
    network = score_flow_of(flow, tuple(x.shape[1:]), whitening, EMBED, **given).double()
    network.fit(x.split(batch))
    network.fit_classes(zip(x.split(batch), label.split(batch), strict=True))
    return network.eval()


def gaussian(x, label, c):
    """The Gaussian that stands for class c when it has one."""
    counts = [int((label == k).sum()) for k in range(CLASSES)]
    own = [torch.cov(x[label == k].T, correction=0) for k in range(CLASSES)]
    of_all = sum(n * covariance for n, covariance in zip(counts, own, strict=True)) / len(x)
    covariance, n = own[c], counts[c]
    for _ in range(2):
        of_class = (n * own[c] + DIM * of_all) / (n + DIM)
        covariance = (n * own[c] + DIM * of_class) / (n + DIM)
    return Gaussian(x[label == c].mean(0), covariance)


@pytest.mark.parametrize("whitening", ["isotropic", "zca"])
def test_untrained_with_one_component_it_is_the_gaussian_of_each_class(whitening):
    x, label = classes()
    network, sigma, noised = fitted(whitening=whitening), torch.full((9,), 0.8).double(), x[:9] + 0.8
    each = torch.stack([gaussian(x, label, c).log_prob(noised, sigma) for c in range(CLASSES)])
    expected = dict(enumerate(each)) | dict.fromkeys((-1, None), each.logsumexp(0) - math.log(CLASSES))
    for c, right in expected.items():
        cond = None if c is None else Conditioning(label=torch.full((9,), c))
        assert torch.allclose(network.log_prob(noised, sigma, cond), right, atol=1e-9)
    score = network(noised, sigma, Conditioning(label=torch.full((9,), 1)))
    assert torch.allclose(score, gaussian(x, label, 1).score(noised, sigma), atol=1e-9)


def test_the_clusters_of_a_class_are_found():
    x, label = classes()
    base = fitted(components=2).base
    found = base.mean.mean(2).sort(1).values
    right = torch.tensor([[2.0 * c, 2.0 * c + 12.0] for c in range(CLASSES)]).double()
    assert (found - right).abs().max() < 0.3  # the error of a mean of 500 samples of deviation about 2.4 is 0.1
    assert (base.weight - 0.5).abs().max() < 0.02
    one, two = (fitted(components=k).log_prob(x, x.new_full((len(x),), 0.5), Conditioning(label=label)) for k in (1, 2))
    assert two.mean() > one.mean() + 1.0  # nats; a class with two clusters is no Gaussian


def test_untrained_the_mixtures_of_all_levels_are_one_diffusion():
    """∂p/∂σ = σ·Δp, the heat equation that noise obeys, is what a flow in front of N(0, I) has to learn."""
    network = fitted(components=2, data=classes(dim=2))
    x = classes(dim=2)[0][:6]

    def density(point, sigma):
        return network.log_prob(point[None], sigma[None]).exp()[0]

    for point in x:
        sigma = torch.tensor(0.7).double()
        in_time = torch.autograd.functional.jacobian(lambda s, p=point: density(p, s), sigma)
        laplacian = torch.autograd.functional.hessian(lambda p, s=sigma: density(p, s), point).trace()
        assert torch.allclose(in_time, sigma * laplacian, rtol=1e-8)


def test_a_mixture_obeys_every_law_of_a_network():
    x, label = classes(dim=2)
    check_network(fitted(components=2, data=(0.2 * x, label), cond_dim=3), (2,), cond_dim=3)


def test_far_from_the_start_it_is_a_density_of_its_own_samples():
    network = perturb(fitted(components=2), gain=0.3)
    x, sigma = classes()[0][:4], torch.tensor([0.002, 0.5, 80.0, 0.5]).double()
    cond = Conditioning(label=torch.tensor([0, 2, 1, -1]))
    z = network.encode(x, sigma, cond)
    assert torch.allclose(network.decode(z, sigma, cond), x, atol=1e-7)  # σ = 0.002 spreads the scales over 1e4
    moved = network.whitening.inverse(z, sigma)[0]
    J = jacobians(lambda v: network.whitening.inverse(network.encode(v, sigma, cond), sigma)[0], x)
    log_base = network.base.log_prob(moved, sigma, cond.label)
    assert torch.allclose(network.log_prob(x, sigma, cond), log_base + torch.linalg.slogdet(J).logabsdet, atol=1e-7)


def test_samples_of_a_class_have_its_mean_and_covariance():
    network, n = fitted(components=2), 4000
    x, label = classes()
    for c in (1, -1):
        own = x if c < 0 else x[label == c]
        sigma = torch.full((n,), 0.5).double()
        drawn = network.sample(sigma, Conditioning(label=torch.full((n,), c)), torch.Generator().manual_seed(0))
        right = torch.cov(own.T, correction=0) + 0.25 * torch.eye(DIM).double()
        scale = right.diagonal().sqrt()
        assert ((drawn.mean(0) - own.mean(0)) / scale).abs().max() < 5 / n**0.5
        assert ((torch.cov(drawn.T) - right) / torch.outer(scale, scale)).abs().max() < 0.1  # 5 × 0.02


def test_the_gate_holds_d_near_that_of_the_mixture():
    x, label = classes()
    network = perturb(fitted(), gain=1.0)
    cond, away = Conditioning(label=torch.ones(9, dtype=torch.int64)), []
    noise = normal((9, DIM), seed=5)[0].double()
    for level in (1e2, 1e3, 1e4):
        sigma = torch.full((9,), level).double()
        noised = x[:9] + level * noise
        wiener = noised + level**2 * gaussian(x, label, 1).score(noised, sigma)
        away.append(float((noised + level**2 * network(noised, sigma, cond) - wiener).norm(dim=1).mean()))
    assert away[0] > 0.1  # the parameters are not those of the start
    assert max(away) < 2 * min(away)  # a bounded multiple of the data's deviation, where ungated it grows with σ


def test_statistics_do_not_depend_on_the_batches():
    for a, b in zip(fitted(2).base.state_dict().values(), fitted(2, batch=7).base.state_dict().values(), strict=True):
        assert torch.allclose(a, b)


def test_classes_of_few_samples_and_of_none_have_a_density():
    x, _ = classes(60)
    label = torch.zeros(60, dtype=torch.int64)
    label[:1] = 1  # a single sample, and class 2 has none
    network = fitted(components=4, data=(x, label))
    assert (network.base.weight > 0).sum(1).tolist() == [2, 1, 1]  # 59 samples are enough for two
    assert network.base.eigenvalues[1:, 0].min() > 0.3 * network.base.eigenvalues[0, 0].min()
    cond = Conditioning(label=torch.tensor([0, 1, 2, -1]))
    sigma = torch.full((4,), 0.5).double()
    assert network.log_prob(x[:4], sigma, cond).isfinite().all()
    assert network(x[:4], sigma, cond).isfinite().all()
    assert network.sample(sigma, cond, torch.Generator().manual_seed(0)).isfinite().all()


def test_many_dimensions_are_refused():
    with pytest.raises(ConfigurationError, match=r"30 matrices of 784×784 numbers.*set network.components=0"):
        MixtureBase((1, 28, 28), 10, 3)


def test_guidance_inside_the_flow_is_not_offered():
    flow = flow_of("realnvp", (DIM,), EMBED)
    assert score_flow_of(flow, (DIM,), embed_dim=EMBED).guidance_orders == ("all",)
    assert fitted().guidance_orders == ()
