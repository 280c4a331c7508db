"""`check_network` accepts a right network, and each law of networks and densities rejects one that breaks it."""

import pytest
import torch
from broken import but, returning
from gaussian_flow import GaussianFlow

from flowdiff.models.autoencoder.decoder_laws import GaussianLaw
from flowdiff.models.autoencoder.vae import VAE
from flowdiff.models.networks.base import AutoencoderNetwork, Network, NoisyClassifier
from flowdiff.noise import randn
from flowdiff.testing import check_network
from flowdiff.testing import networks as laws


class Plain(Network):
    """F = Wx + c_noise·b, plus the condition: a right network."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.condition = torch.nn.Linear(3, 2, bias=False)

    def forward(self, x, c_noise, cond=None):
        return self.linear(x) * c_noise[:, None] + (0 if cond is None else self.condition(cond.vector))


class UnusedParameter(Plain):
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(3))


class Normal(GaussianFlow):
    """N(μ, (1 + σ²)·I) with μ a parameter: a right density."""

    def __init__(self):
        super().__init__(std=1.0)
        self.mean = torch.nn.Parameter(torch.tensor([0.3, -0.2]))

    def score(self, x, sigma):
        return super().forward(x, sigma)

    def forward(self, x, sigma, cond=None):
        score = self.score(x, sigma)
        return score if self.training else score.detach()

    def log_prob_and_score(self, x, sigma, cond=None):
        log_prob, score = self.log_prob(x, sigma), self(x, sigma)
        return (log_prob if self.training else log_prob.detach()), score

    def sample(self, sigma, cond=None, generator=None):
        return self.decode(randn((len(sigma), 2), generator, dtype=sigma.dtype), sigma).detach()


class Turned(Normal):
    """Adds (x₂, −x₁), which is not a gradient, to autograd's gradient of log p."""

    def log_prob(self, x, sigma, cond=None):
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda grad: grad + x.flip(1) * torch.tensor([1.0, -1.0]))
        return super().log_prob(x, sigma)


class Classes(NoisyClassifier):
    """Two classes, and with `excess` probabilities that sum to e^excess."""

    def __init__(self, excess=0.0):
        super().__init__()
        self.linear, self.excess = torch.nn.Linear(2, 2), excess

    def class_log_prob(self, x, sigma):
        return (self.linear(x) * sigma[:, None]).log_softmax(1) + self.excess

    def forward(self, x, sigma, cond=None):
        return self.linear(x) * sigma[:, None]


class SharedPrior(AutoencoderNetwork):
    """Samples of the prior that depend on their batch."""

    def __init__(self):
        super().__init__()
        self.autoencoder = VAE((2,), (1,), torch.nn.Linear(2, 2), torch.nn.Linear(1, 2), GaussianLaw())

    def forward(self, x, sigma, cond=None):
        return (self.autoencoder.reconstruct(x) - x) / sigma[:, None] ** 2

    def from_prior(self, n, generator=None):
        return self.autoencoder.decode(randn((n, 1), generator)).cumsum(0)


def made(kind):
    torch.manual_seed(0)
    return kind().double().eval()


IGNORES_NOISE = but(Plain, forward=lambda self, x, c, cond=None: Plain.forward(self, x, torch.ones_like(c), cond))
IGNORES_CONDITION = but(Plain, forward=lambda self, x, c_noise, cond=None: Plain.forward(self, x, c_noise))
OTHER_WITHOUT_GRADIENTS = returning(Plain, forward=lambda F: F * (1 if torch.is_grad_enabled() else 2))
DROPS_IN_EVAL = returning(Plain, forward=lambda F: torch.nn.functional.dropout(F, 0.5))
BATCH_NORMALISED = returning(Plain, forward=lambda F: F - F.mean(0))
OF_NETWORKS = [
    (laws.output_is_like_x, returning(Plain, forward=lambda F: F[:, :1]), "the output is like x"),
    (laws.depends_on_the_noise_level, IGNORES_NOISE, "depends on the noise level"),
    (laws.depends_on_the_condition, IGNORES_CONDITION, "depends on the condition"),
    (laws.samples_of_a_batch_are_independent, BATCH_NORMALISED, "does not depend on its batch"),
    (laws.eval_mode_is_deterministic, DROPS_IN_EVAL, "deterministic"),
    (laws.works_without_gradients, OTHER_WITHOUT_GRADIENTS, "no_grad changes nothing"),
    (laws.every_parameter_learns, UnusedParameter, "parameter unused learns"),
]
HALF_GRADIENT = returning(Normal, score=lambda score: 0.5 * score + 0.5 * score.detach())  # in μ
OTHER_DENSITY = returning(Normal, log_prob_and_score=lambda log_prob, score: (log_prob + 1e-6, score))
NO_GRAPH = returning(Normal, score=lambda score: score.detach())
OF_DENSITIES = [
    (laws.score_is_gradient, returning(Normal, score=lambda score: 1.001 * score), "score = ∇ₓ log p"),
    (laws.score_jacobian_is_symmetric, Turned, "∂s/∂x"),
    (laws.score_has_a_graph_only_in_training, NO_GRAPH, "has none in train mode"),
    (laws.score_loss_gradient_is_exact, HALF_GRADIENT, "gradient of a score loss"),
    (laws.log_prob_and_score_agree, OTHER_DENSITY, "log_prob agree"),
    (laws.decode_inverts_encode, returning(Normal, encode=lambda z: z + 1e-3), r"decode\(encode\(x\)\) = x"),
]
LARGER_DENSITY = returning(Normal, log_prob=lambda log_prob: log_prob + 0.01)
SHARED_NOISE = returning(Normal, sample=lambda x: x.cumsum(0))


OF_ALL = [*((Plain, 3, *row) for row in OF_NETWORKS), *((Normal, 0, *row) for row in OF_DENSITIES)]


@pytest.mark.parametrize(("right", "cond_dim", "law", "kind", "message"), OF_ALL)
def test_a_network_that_breaks_a_law_is_rejected(right, cond_dim, law, kind, message):
    given = laws.noised(4, (2,), cond_dim=cond_dim)
    law(made(right), *given)
    with pytest.raises(AssertionError, match=message):
        law(made(kind), *given)
    with pytest.raises(AssertionError, match=message if right is Plain else "is broken"):
        check_network(kind(), (2,), cond_dim=cond_dim)


@pytest.mark.parametrize(
    ("law", "kind", "message"),
    [
        (laws.density_integrates_to_one, LARGER_DENSITY, "∫p = 1"),
        (laws.samples_follow_the_density, returning(Normal, sample=lambda x: x + 0.1), r"E\[s\] = 0"),
        (laws.samples_follow_the_density, returning(Normal, sample=lambda x: 1.2 * x), "instead of -2"),
    ],
)
def test_a_density_with_other_samples_is_rejected(law, kind, message):
    law(made(Normal))
    with pytest.raises(AssertionError, match=message):
        law(made(kind))
    with pytest.raises(AssertionError, match="is broken"):
        check_network(kind(), (2,))


def test_samples_that_depend_on_their_batch_are_rejected():
    _, sigma, _ = laws.noised(3, (2,))
    laws.samples_depend_only_on_their_generators(made(Normal), sigma, None, (2,))
    with pytest.raises(AssertionError, match="depends only on its generator"):
        laws.samples_depend_only_on_their_generators(made(SHARED_NOISE), sigma, None, (2,))
    with pytest.raises(AssertionError, match="depends only on its generator"):
        check_network(SharedPrior(), (2,))


def test_probabilities_that_do_not_sum_to_one_are_rejected():
    check_network(Classes(), (2,))
    with pytest.raises(AssertionError, match="Σ_c p"):
        check_network(Classes(0.1), (2,))


def test_check_network_accepts_right_networks():
    check_network(Plain(), (2,), cond_dim=3)
    check_network(Normal(), (2,))
