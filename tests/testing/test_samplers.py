"""Each law of samplers rejects a sampler that breaks it; their right counterpart is tested in diffusion/samplers."""

from itertools import pairwise

import pytest

from flowdiff.diffusion.samplers.base import Sampler, euler_step
from flowdiff.noise import randn_like
from flowdiff.testing import check_sampler
from flowdiff.testing import samplers as laws


class Euler(Sampler):
    """A right sampler, whose subclasses each break one law."""

    def __init__(self):
        super().__init__(num_steps=10)

    def step(self, denoise, x, at):
        denoised = denoise(x, at.sigma)
        return self.update(x, denoised, at), denoised

    def update(self, x, denoised, at):
        return euler_step(x, denoised, at.sigma, at.sigma_next)


class Short(Euler):
    """Stops before D."""

    def update(self, x, denoised, at):
        return euler_step(x, denoised, at.sigma, at.sigma_next) + 0.01 * x


class Rounds(Euler):
    """The textbook form of Euler's step, which rounds D at the scale of x."""

    def update(self, x, denoised, at):
        return x + (at.sigma_next - at.sigma) * (x - denoised) / at.sigma


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


class WritesToX(Euler):
    def update(self, x, denoised, at):
        return x.copy_(super().update(x, denoised, at))


class ReportsOtherD(Euler):
    def step(self, denoise, x, at):
        x, denoised = super().step(denoise, x, at)
        return x, 2 * denoised


class MixesTheBatch(Euler):
    def update(self, x, denoised, at):
        return super().update(x, denoised, at) + at.sigma_next * (x - x.mean(0))


class Biased(Euler):
    """Adds noise that the step does not take into account."""

    def update(self, x, denoised, at):
        return super().update(x, denoised, at) + 0.3 * at.sigma_next * randn_like(x, at.generator)


BROKEN = [
    (laws.one_step_is_the_denoiser, Short, "one step to σ = 0 gives D"),
    (laws.last_step_is_the_denoiser, Rounds, "gives D in float32"),
    (laws.denoiser_is_called_for_the_batch_and_never_at_zero, AsksAtZero, "one level above 0 each"),
    (laws.steps_of_no_length_change_nothing, CountsSteps, "repeated levels"),
    (laws.noise_free_x_is_unchanged, CountsSteps, "x at σ = 0 stays"),
    (laws.increasing_grids_are_refused, CountsSteps, "no ConfigurationError"),
    (laws.invalid_levels_are_refused, CountsSteps, "no ConfigurationError"),
    (laws.callback_sees_every_step, ReportsOtherD, "the last with the D"),
    (laws.x_of_the_caller_is_unchanged, WritesToX, "the caller's x"),
    (laws.a_sample_with_its_own_generator_does_not_depend_on_its_batch, MixesTheBatch, "does not depend on its batch"),
    (laws.fine_grid_gives_the_distribution, Biased, "covariance of a Gaussian"),
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
