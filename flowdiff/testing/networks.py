"""The laws of a network, and those of a network that is a density.

`check_network` tries all of them on a copy of a network. The single laws take a network in float64 and in eval mode,
x (B, …), noise levels (B,) > 0 and the condition of B samples or None, for example those of `noised`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff import noise
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import AutoencoderNetwork, Density, FlowDensity, Network, NoisyClassifier
from flowdiff.shapes import append_dims
from flowdiff.testing import densities
from flowdiff.testing.compare import require, require_close, require_like
from flowdiff.testing.inputs import perturb, repeated, samples


def check_network(
    network: Network,
    shape: tuple[int, ...],
    *,
    cond_dim: int = 0,
    token_dim: int = 0,
    gain: float = 0.5,
    inverse_error: float = 0.0,
) -> None:
    """Hold a network, with random parameters, to every law of a network.

    The output is shaped like x and depends on the noise level and the condition; eval mode is deterministic; samples of
    a batch are independent; no_grad changes nothing; every parameter learns. A density is also held to the laws of
    densities: score = gradient of log p by finite differences, ∂s/∂x symmetric, exact gradients of score losses,
    samples that follow the density and belong to their generators, ∫p = 1 (for shape (2,)), and for a FlowDensity
    decode inverts encode.

    Args:
        network: the network, which is not changed.
        shape: shape of one sample.
        cond_dim: width of the condition's vector for which the network was built, 0 without one.
        token_dim: width of the condition's tokens for which it was built, 0 without tokens.
        gain: size of the random numbers that are added to the parameters, relative to 1/√fan_in.
        inverse_error: largest |decode(encode(x)) − x| beyond rounding, relative to the largest |x|.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    network = perturb(copy.deepcopy(network).double().eval(), gain)
    x, sigma, cond = noised(4, shape, cond_dim, token_dim)
    output_is_like_x(network, x, sigma, cond)
    eval_mode_is_deterministic(network, x, sigma, cond)
    depends_on_the_noise_level(network, x, sigma, cond)
    if cond is not None:
        depends_on_the_condition(network, x, sigma, cond)
    samples_of_a_batch_are_independent(network, x, sigma, cond)
    works_without_gradients(network, x, sigma, cond)
    every_parameter_learns(network, x, sigma, cond)
    if isinstance(network, NoisyClassifier):
        class_probabilities_sum_to_one(network, x, sigma)
    if isinstance(network, AutoencoderNetwork):
        prior_samples_depend_only_on_their_generators(network)
    if isinstance(network, Density):
        _check_density(network, x, sigma, cond)
    if isinstance(network, FlowDensity):
        decode_inverts_encode(network, x, sigma, cond, tolerance=1e-6 + inverse_error)


def _check_density(density: Density, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    score_is_gradient(density, x, sigma, cond)
    log_prob_and_score_agree(density, x, sigma, cond)
    samples_depend_only_on_their_generators(density, sigma, cond, x.shape[1:])
    if density.twice_differentiable:
        score_jacobian_is_symmetric(density, x, sigma, cond)
        score_has_a_graph_only_in_training(density, x, sigma, cond)
        score_loss_gradient_is_exact(density, x, sigma, cond)
    samples_follow_the_density(density, cond)
    if x.shape[1:] == (2,):
        density_integrates_to_one(density, cond)


def noised(
    n: int, shape: tuple[int, ...], cond_dim: int = 0, token_dim: int = 0
) -> tuple[Tensor, Tensor, Conditioning | None]:
    """n noised samples x (n, *shape), their noise levels (n,) from 0.1 to 10, and a condition of the given widths."""
    generator = torch.Generator().manual_seed(1)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    sigma = torch.logspace(-1, 1, n, dtype=torch.float64)
    x = samples(n, shape, scale=0.5) + append_dims(sigma, 1 + len(shape)) * randn(n, *shape)
    if not cond_dim and not token_dim:
        return x, sigma, None
    vector = randn(n, cond_dim) if cond_dim else None
    if not token_dim:
        return x, sigma, Conditioning(vector)
    return x, sigma, Conditioning(vector, randn(n, 3, token_dim), torch.arange(3) <= (torch.arange(n) % 3)[:, None])


def output_is_like_x(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """F has the shape and the type of x."""
    require_like(network(x, sigma, cond), x, "the output is like x")


def depends_on_the_noise_level(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """Another noise level changes F by more than rounding."""
    F, other = network(x, sigma, cond).detach(), network(x, 2 * sigma, cond).detach()
    changed = float((F - other).abs().max())
    require(changed > 1e-6 * float(F.abs().max()), "F depends on the noise level", f"2σ changes it by {changed:.2g}")


def depends_on_the_condition(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning) -> None:
    """Another condition changes F by more than rounding."""
    F, other = network(x, sigma, cond).detach(), network(x, sigma, cond[torch.arange(len(x)).flip(0)]).detach()
    changed = float((F - other).abs().max())
    detail = f"the conditions of other samples change it by {changed:.2g}"
    require(changed > 1e-6 * float(F.abs().max()), "F depends on the condition", detail)


def samples_of_a_batch_are_independent(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """F of a sample alone is F of it in a batch."""
    together = network(x, sigma, cond).detach()
    for i in range(len(x)):
        alone = network(x[i : i + 1], sigma[i : i + 1], _repeated(cond, i, 1))
        law = "F of a sample does not depend on its batch"
        require_close(together[i : i + 1], alone, law, rtol=1e-9, atol=1e-9 * float(together[i].abs().max()))


def eval_mode_is_deterministic(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """In eval mode two calls give the same F."""
    require_close(network(x, sigma, cond), network(x, sigma, cond), "eval mode is deterministic")


def works_without_gradients(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """Under no_grad F is the same, has no graph, and no gradient is left in a parameter."""
    law = "no_grad changes nothing but the graph"
    expected = network(x, sigma, cond)
    with torch.no_grad():
        silent = network(x, sigma, cond)
    require(not silent.requires_grad, law, "F has a graph under no_grad")
    require_close(silent, expected, law, rtol=1e-12, atol=1e-12)
    left = [name for name, p in network.named_parameters() if p.grad is not None]
    require(not left, law, f"calling the network leaves a gradient in {', '.join(left)}")


def every_parameter_learns(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """The loss of the network's kind has a finite gradient, not 0, in every parameter; DDP hangs on one without."""
    network = copy.deepcopy(network)
    _loss(network, x, sigma, cond).backward()
    for name, p in network.named_parameters():
        law = f"parameter {name} learns"
        require(p.grad is not None, law, "the loss has no gradient in it")
        assert p.grad is not None
        largest = float(p.grad.abs().max())
        require(0 < largest < torch.inf, law, f"the largest entry of its gradient is {largest}")


def _loss(network: Network, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
    """The likelihood where there is one, else a sum over F."""
    if isinstance(network, Density):
        return -network.log_prob(x, sigma, cond).sum()
    if isinstance(network, NoisyClassifier):
        return -network.class_log_prob(x, sigma)[:, 0].sum()
    if isinstance(network, AutoencoderNetwork):
        noise_of_latents = torch.ones((len(x), *network.autoencoder.latent_shape), dtype=x.dtype)
        return -network.autoencoder.elbo(x.tanh(), noise_of_latents).bound.sum()
    return network(x, sigma, cond).square().sum()


def class_probabilities_sum_to_one(classifier: NoisyClassifier, x: Tensor, sigma: Tensor) -> None:
    """Σ_c p(c|x, σ) = 1."""
    total = classifier.class_log_prob(x, sigma).exp().sum(1)
    require_close(total, torch.ones_like(total), "Σ_c p(c|x, σ) = 1", atol=1e-9)


def score_is_gradient(density: Density, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """The network's output is ∇ₓ log p, by central differences of log_prob."""
    score = density(x, sigma, cond)
    densities.score_is_gradient(lambda v: density.log_prob(v, sigma, cond), score, x, step=1e-5 * sigma)


def score_jacobian_is_symmetric(density: Density, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """∂s/∂x is symmetric, because it is the Hessian of log p."""
    densities.score_jacobian_is_symmetric(lambda v: density.log_prob(v, sigma, cond), x)


def log_prob_and_score_agree(density: Density, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """`log_prob_and_score` gives what `log_prob` and the network itself give; in eval mode none has a graph."""
    log_prob, score = density.log_prob_and_score(x, sigma, cond)
    alone = density(x, sigma, cond)
    require(not (log_prob.requires_grad or score.requires_grad or alone.requires_grad), _GRAPH, "it has one in eval")
    require_close(score, alone, "the scores of log_prob_and_score and forward agree", rtol=1e-12, atol=1e-12)
    law = "log_prob_and_score and log_prob agree"
    require_close(log_prob, density.log_prob(x, sigma, cond), law, rtol=1e-12, atol=1e-12)


_GRAPH = "the score has a graph in training only"


def score_has_a_graph_only_in_training(density: Density, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """In train mode the score is the same as in eval mode, with a graph, and without one under no_grad."""
    density = _trained_once(density, x, sigma, cond)
    expected = density.eval()(x, sigma, cond)
    density.train()
    with torch.no_grad():
        silent = density(x, sigma, cond)
    training = density(x, sigma, cond)
    require(not silent.requires_grad, _GRAPH, "it has one under no_grad")
    require(training.requires_grad, _GRAPH, "it has none in train mode")
    for score in (silent, training):
        require_close(score, expected, "the score is the same in train mode", rtol=1e-12, atol=1e-12)


def _trained_once(density: Density, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Density:
    """A copy in train mode that has seen a batch: some layers initialise themselves from the first one."""
    density = copy.deepcopy(density).train()
    density(x, sigma, cond)
    return density


def score_loss_gradient_is_exact(density: Density, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> None:
    """The gradient of a score loss gives its derivative along a random direction in parameter space."""
    density = _trained_once(density, x, sigma, cond)

    def loss() -> Tensor:
        # Scaled by σ, like every score loss; otherwise the smallest σ would dominate the sum.
        return (append_dims(sigma, x.ndim) * density(x, sigma, cond)).square().sum()

    loss().backward()
    law = "the gradient of a score loss is its derivative"
    parameters = dict(density.named_parameters())
    bad = [name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()]
    require(not bad, law, f"there is no finite gradient in {', '.join(bad)}")
    generator = torch.Generator().manual_seed(2)
    slope, h, ends = 0.0, 1e-6, []
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters.values()]
    for p, d in zip(parameters.values(), v, strict=True):
        assert p.grad is not None
        slope += float((p.grad * d).sum())
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters.values(), v, strict=True):
                p.add_(sign * h * d)
            ends.append(float(loss()))
            for p, d in zip(parameters.values(), v, strict=True):
                p.sub_(sign * h * d)
    right = (ends[0] - ends[1]) / (2 * h)
    require(abs(slope - right) <= 1e-4 * abs(right), law, f"it is {slope:.8g} instead of {right:.8g} along a direction")


def density_integrates_to_one(density: Density, cond: Conditioning | None = None) -> None:
    """∫p = 1 in the plane, at σ = 0.5 and the condition of the first sample."""
    sigma = torch.full((20_000,), 0.5, dtype=torch.float64)
    draws = density.sample(sigma, _repeated(cond, 0, len(sigma)), torch.Generator().manual_seed(3))

    def log_prob(grid: Tensor) -> Tensor:
        return density.log_prob(grid, sigma[:1].expand(len(grid)), _repeated(cond, 0, len(grid)))

    # The box omits about one sample in 20,000.
    densities.density_integrates_to_one(log_prob, draws, points=256, tolerance=5e-4)


def samples_follow_the_density(density: Density, cond: Conditioning | None = None) -> None:
    """4,000 samples, or 100,000, at σ = 0.5 and the condition of the first sample obey Stein's identity."""
    for n in (4000, 100_000):
        sigma, repeated_cond = torch.full((n,), 0.5, dtype=torch.float64), _repeated(cond, 0, n)
        x = density.sample(sigma, repeated_cond, torch.Generator().manual_seed(4))
        score = density(x, sigma, repeated_cond).flatten(1)
        if densities.tells_a_wrong_scale(score, x.flatten(1)):
            break
    densities.samples_follow_the_density(score, x.flatten(1))


def samples_depend_only_on_their_generators(
    density: Density, sigma: Tensor, cond: Conditioning | None, shape: tuple[int, ...]
) -> None:
    """With one generator per sample, sample i is the same in every batch; it has the shape of one sample."""

    def draw(rows: list[int]) -> Tensor:
        index = torch.tensor(rows)
        return density.sample(sigma[index], None if cond is None else cond[index], noise.generators(7, rows))

    _depends_only_on_generators(draw, shape, tolerance=1e-8)


def prior_samples_depend_only_on_their_generators(network: AutoencoderNetwork) -> None:
    """With one generator per sample, sample i of the prior is the same in every batch."""
    network = copy.deepcopy(network).float()

    def draw(rows: list[int]) -> Tensor:
        with torch.no_grad():
            return network.from_prior(len(rows), noise.generators(7, rows))

    _depends_only_on_generators(draw, network.autoencoder.shape, tolerance=1e-5)


def _depends_only_on_generators(draw: Callable[[list[int]], Tensor], shape: tuple[int, ...], tolerance: float) -> None:
    """The samples of the given numbers, each with its own generator."""
    together = draw([0, 1, 2])
    law = "a sample depends only on its generator"
    require(together.shape == (3, *shape), law, f"3 samples have the shape {tuple(together.shape)}")
    require(not together.requires_grad, law, "samples have a graph")
    for i in range(3):
        require_close(draw([i]), together[i : i + 1], law, rtol=tolerance, atol=tolerance)


def decode_inverts_encode(
    density: FlowDensity, x: Tensor, sigma: Tensor, cond: Conditioning | None, tolerance: float = 1e-6
) -> None:
    """|decode(encode(x)) − x| is at most the tolerance times the largest |x|."""
    back = density.decode(density.encode(x, sigma, cond), sigma, cond)
    require_close(back, x, "decode(encode(x)) = x", atol=tolerance * float(x.abs().max()))


def _repeated(cond: Conditioning | None, i: int, n: int) -> Conditioning | None:
    return None if cond is None else repeated(cond, i, n)
