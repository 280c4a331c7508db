"""Each law of samplers rejects a sampler that breaks it; their right counterpart is tested in diffusion/samplers."""

from itertools import pairwise

import pytest
from broken import but, returning

from flowdiff.diffusion.samplers.base import Sampler, euler_step
from flowdiff.noise import randn_like
from flowdiff.testing import check_sampler
from flowdiff.testing import samplers as laws


class Euler(Sampler):
    """A right sampler."""

    def __init__(self):
        super().__init__(num_steps=10)

    def step(self, denoise, x, at):
        denoised = denoise(x, at.sigma)
        return self.update(x, denoised, at), denoised

    def update(self, x, denoised, at):
        return euler_step(x, denoised, at.sigma, at.sigma_next)


class AsksAtZero(Euler):
    def step(self, denoise, x, at):
        denoise(x, at.sigma_next)
        return super().step(denoise, x, at)


class CountsSteps(Sampler):
    """Does not go through Sampler.__call__: repeated levels are steps with noise, and every grid is taken."""

    def __init__(self):
        super().__init__(num_steps=10)

    def step(self, denoise, x, at):
        raise NotImplementedError

    def __call__(self, denoiser, x, sigmas, cond=None, generator=None, callback=None):
        for sigma, after in pairwise(sigmas):
            denoised = denoiser(x, x.new_full((len(x),), max(sigma, 1e-3)), cond)
            x = denoised + 0.1 * randn_like(x, generator) * after
        return x + 1e-3


def changed(change):
    """An Euler whose step changes the x that it is given and its next x: change(x, next_x, at)."""
    return but(Euler, update=lambda self, x, denoised, at: change(x, Euler.update(self, x, denoised, at), at))


# the textbook form of Euler's step, which rounds D at the scale of x
ROUNDS = but(Euler, update=lambda self, x, D, at: x + (at.sigma_next - at.sigma) * (x - D) / at.sigma)
OTHER_D = returning(Euler, step=lambda x, denoised: (x, 2 * denoised))
MIXES_BATCH = changed(lambda x, after, at: after + at.sigma_next * (x - x.mean(0)))
# adds noise that the step does not take into account
BIASED = changed(lambda x, after, at: after + 0.3 * at.sigma_next * randn_like(x, at.generator))
BROKEN = [
    (laws.one_step_is_the_denoiser, changed(lambda x, after, at: after + 0.01 * x), "one step to σ = 0 gives D"),
    (laws.last_step_is_the_denoiser, ROUNDS, "gives D in float32"),
    (laws.denoiser_is_called_for_the_batch_and_never_at_zero, AsksAtZero, "one level above 0 each"),
    (laws.steps_of_no_length_change_nothing, CountsSteps, "repeated levels"),
    (laws.noise_free_x_is_unchanged, CountsSteps, "x at σ = 0 stays"),
    (laws.increasing_grids_are_refused, CountsSteps, "no ConfigurationError"),
    (laws.invalid_levels_are_refused, CountsSteps, "no ConfigurationError"),
    (laws.callback_sees_every_step, OTHER_D, "the last with the D"),
    (laws.x_of_the_caller_is_unchanged, changed(lambda x, after, at: x.copy_(after)), "the caller's x"),
    (
        laws.a_sample_with_its_own_generator_does_not_depend_on_its_batch,
        MIXES_BATCH,
        "does not depend on its batch",
    ),
    (laws.fine_grid_gives_the_distribution, BIASED, "covariance of a Gaussian"),
]


def test_a_right_sampler_is_accepted():
    check_sampler(Euler(), order=1)


@pytest.mark.parametrize(("law", "kind", "message"), BROKEN)
def test_a_sampler_that_breaks_a_law_is_rejected(law, kind, message):
    with pytest.raises(AssertionError, match=message):
        law(kind())
    with pytest.raises(AssertionError, match="is broken"):
        check_sampler(kind())


def test_every_law_is_broken_by_a_sampler_here():
    assert {law for law, _, _ in BROKEN} == {*laws.LAWS}


def test_another_order_is_rejected():
    with pytest.raises(AssertionError, match=r"the order of convergence is 2.*measured as"):
        check_sampler(Euler(), order=2)
