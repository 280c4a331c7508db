import oracles
import pytest
import torch

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.samplers.generate import CountCalls, generate

MIXTURE = oracles.two_by_two()
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMA = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
COND = MIXTURE.classes(torch.tensor([0, 1, 2, 2]))


def cfg(denoiser, scale, null=MIXTURE.null):
    return registry.build("guidance", "cfg", denoiser=denoiser, null=null, scale=scale)


@pytest.mark.parametrize("name", registry.names("guidance"))
def test_keeps_the_network_and_the_call(name):
    guided = registry.build("guidance", name, denoiser=MIXTURE, null=MIXTURE.null)
    assert guided.network is MIXTURE
    assert guided(X, SIGMA, COND).shape == X.shape


def test_none_is_the_denoiser():
    guided = registry.build("guidance", "none", denoiser=MIXTURE)
    assert torch.equal(guided(X, SIGMA, COND), MIXTURE(X, SIGMA, COND))
    assert torch.equal(guided(X, SIGMA), MIXTURE(X, SIGMA))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_cfg_is_the_line_through_both_denoisers(scale):
    free, bound = MIXTURE(X, SIGMA), MIXTURE(X, SIGMA, COND)
    torch.testing.assert_close(cfg(MIXTURE, scale)(X, SIGMA, COND), free + scale * (bound - free))


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 8), (1.0, 4), (2.0, 8)])
def test_one_call_a_step_and_half_the_batch_at_scale_one(scale, rows):
    counted = CountCalls(MIXTURE)
    sampler = registry.build("sampler", "euler", num_steps=5)
    schedule = registry.build("schedule", "karras")
    generate(cfg(counted, scale), sampler, schedule, (2,), n=4, seed=0, cond_of=lambda indices: COND)
    assert (counted.calls, counted.rows) == (5, 5 * rows)


def test_guidance_pulls_towards_the_class():
    """At scale 3 samples of component 3 lie nearer to its side than at scale 1: fewer stray to the others' midlines."""
    sampler, schedule = registry.build("sampler", "heun"), registry.build("schedule", "karras")

    def log_posterior(scale):
        x = generate(
            cfg(MIXTURE, scale), sampler, schedule, (2,), n=200, seed=0, batch_size=200,
            cond_of=lambda indices: MIXTURE.classes(torch.full((len(indices),), 2)),
        )  # fmt: skip
        sigma = torch.full((200,), 0.1)
        third = MIXTURE.classes(torch.full((200,), 2))
        return (MIXTURE.log_prob(x, sigma, third) - MIXTURE.log_prob(x, sigma)).mean()

    assert log_posterior(3.0) > log_posterior(1.0)


def test_guidance_without_a_condition_is_refused():
    with pytest.raises(ConfigurationError, match="no condition to guide towards"):
        cfg(MIXTURE, 1.0)(X, SIGMA)
    with pytest.raises(ConfigurationError, match="no unconditional one"):
        cfg(MIXTURE, 2.0, null=lambda n: None)(X, SIGMA, COND)


def test_negative_scale_is_refused():
    with pytest.raises(ConfigurationError, match=r"guidance\.scale=-1"):
        cfg(MIXTURE, -1.0)
