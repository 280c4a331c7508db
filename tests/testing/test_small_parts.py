"""The laws of activations, schedules, scalings, weightings, sigma samplers and conditioners reject what breaks them."""

import math

import pytest
import torch
from torch.nn import functional as F

from flowdiff import registry, testing
from flowdiff.diffusion.scalings import Scaling, Scalings
from flowdiff.diffusion.schedules.base import Schedule
from flowdiff.diffusion.sigma_samplers import SigmaSampler
from flowdiff.diffusion.weightings import Weighting
from flowdiff.models.activations import Activation
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing import activations, conditioners, schedules, sigma_samplers


def rejected(law, part, message):
    with pytest.raises(AssertionError, match=message):
        law(part)


class Arctan(Activation):
    """A right activation, whose subclasses each break one law."""

    slope_range = (0.0, 1.0)

    def plain(self, x):
        return torch.atan(x)

    def slope(self, x):
        return 1 / (1 + x**2)


class WrongSlope(Arctan):
    def slope(self, x):
        return 1 / (1 + x**2) ** 2


class NaNFarOut(Arctan):
    def plain(self, x):
        return torch.atan(x) + 0 * x.exp()


class LooseRange(Arctan):
    slope_range = (0.0, 2.0)


class TightRange(Arctan):
    slope_range = (0.0, 0.5)


class WrongLogSlope(Arctan):
    def bijection(self, x, strength, sharpness):
        y, log_slope = super().bijection(x, strength, sharpness)
        return y, log_slope + 1e-6


class Moved(Arctan):
    def bijection(self, x, strength, sharpness):
        y, log_slope = super().bijection(x, strength, sharpness)
        return y + 1e-6, log_slope


class WrongInverse(Arctan):
    def inverse(self, y, strength, sharpness):
        x, log_slope = super().inverse(y, strength, sharpness)
        return x + 1e-4, log_slope


class InverseWithoutGradient(Arctan):
    def inverse(self, y, strength, sharpness):
        x, log_slope = super().inverse(y, strength.detach(), sharpness)
        return x, log_slope


class ELU(Activation):
    slope_range = (0.0, 1.0)

    def plain(self, x):
        return F.elu(x)

    def slope(self, x):
        return torch.exp(-F.relu(-x))


BROKEN_ACTIVATIONS = [
    (activations.slope_is_the_derivative_of_plain, WrongSlope, "slope is the derivative of plain"),
    (activations.derivatives_are_finite_for_large_x, NaNFarOut, "finite for"),
    (activations.slope_range_is_tight_and_holds, LooseRange, "slope_range is tight"),
    (activations.slope_range_is_tight_and_holds, TightRange, "slopes are in slope_range"),
    (activations.bijection_slopes_stay_within_the_bounds, TightRange, "slopes of the bijection"),
    (activations.log_slope_is_exact, WrongLogSlope, "the log-slope is log dy/dx"),
    (activations.zero_strength_is_the_identity, Moved, "strength 0 is the identity"),
    (activations.round_trip, WrongInverse, r"inverse\(bijection\(x\)\) = x"),
    (activations.inverse_is_differentiable, InverseWithoutGradient, "the inverse is differentiable"),
    (activations.second_derivative_is_continuous, ELU, "act″ is continuous"),
]


@pytest.mark.parametrize(("law", "kind", "message"), BROKEN_ACTIVATIONS)
def test_an_activation_that_breaks_a_law_is_rejected(law, kind, message):
    law(Arctan())
    rejected(law, kind(), message)
    rejected(testing.check_activation, kind(), "is broken")


def test_every_law_of_activations_is_broken_by_one_here():
    assert {law for law, _, _ in BROKEN_ACTIVATIONS} == {*activations.LAWS, activations.second_derivative_is_continuous}


def test_a_right_activation_is_accepted_and_a_kink_is_accepted_if_it_is_declared():
    testing.check_activation(Arctan())
    testing.check_activation(ELU(), smooth=False)


class Linear(Schedule):
    """A right schedule but for its settings."""

    def __init__(self, lowest=0.01, scale=1.0):
        super().__init__(0.01, 10.0)
        self.lowest, self.scale = lowest, scale

    def _levels(self, num_steps, sigma_max):
        step = (sigma_max - self.lowest) / max(num_steps - 1, 1)
        return (sigma_max - step * torch.arange(num_steps, dtype=torch.float64)) * self.scale


class Flat(Linear):
    def _levels(self, num_steps, sigma_max):
        return torch.full((num_steps,), sigma_max, dtype=torch.float64)


class OwnCall(Linear):
    """Forgets a lower start, the bottom and the checks."""

    def __call__(self, num_steps, sigma_max=None):
        return torch.cat([self._levels(num_steps, self.sigma_max), torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("law", "schedule", "message"),
    [
        (lambda s: schedules.grid_decreases_to_zero(s, 5), Flat(), "a grid decreases"),
        (lambda s: schedules.grid_decreases_to_zero(s, 5), Linear(scale=0.5), "starts at sigma_max"),
        (lambda s: schedules.grid_decreases_to_zero(s, 5), Linear(lowest=0.001), "at least sigma_min"),
        (lambda s: schedules.grid_can_start_lower(s, 5), OwnCall(), "starts at sigma_max"),
        (schedules.start_at_the_bottom_is_one_step, OwnCall(), "is one step"),
        (schedules.invalid_steps_and_starts_are_refused, OwnCall(), "is refused"),
    ],
)
def test_a_schedule_that_breaks_a_law_is_rejected(law, schedule, message):
    law(Linear())
    rejected(law, schedule, message)
    rejected(testing.check_schedule, schedule, "is broken")


class Given(Scaling, Weighting):
    """The same function of sigma as every coefficient of a scaling, and as a weight."""

    def __init__(self, function, weight=False):
        self.function, self.weight = function, weight

    def __call__(self, sigma, sigma_data):
        value = self.function(sigma)
        return value if self.weight else Scalings(value, value, value, value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda sigma: sigma.mean(), "like sigma"),
        (lambda sigma: sigma.double(), "like sigma"),
        (lambda sigma: 1 / (sigma - 1), "finite"),
        (lambda sigma: 0 * sigma, "c_out ≠ 0|above 0"),
    ],
)
def test_a_scaling_or_a_weighting_that_breaks_a_law_is_rejected(function, message):
    rejected(testing.check_scaling, Given(function), message)
    rejected(testing.check_weighting, Given(function, weight=True), message)


class LogUniform(SigmaSampler):
    """A right sigma sampler, whose subclasses each break one law."""

    def __init__(self, stratified=False):
        super().__init__(stratified)

    def quantile(self, u):
        return 0.01 * torch.exp(u * math.log(1000))


class OtherQuantiles(LogUniform):
    def __call__(self, n, generator=None, device=None):
        return super().__call__(n, generator, device) * 1.1


class GlobalNoise(LogUniform):
    def __call__(self, n, generator=None, device=None):
        return super().__call__(n, None, device)


class OnTheCPU(LogUniform):
    def __call__(self, n, generator=None, device=None):
        return super().__call__(n, generator)


class NeverStratified(LogUniform):
    def __call__(self, n, generator=None, device=None):
        self.stratified = False
        return super().__call__(n, generator, device)


class InOrder(LogUniform):
    def __call__(self, n, generator=None, device=None):
        return super().__call__(n, generator, device).sort().values


class Unbounded(LogUniform):
    """Draws its uniform numbers without a margin at 0 and 1."""

    def __call__(self, n, generator=None, device=None):
        return self.quantile(torch.rand(n, generator=generator)).to(device)

    def quantile(self, u):
        return torch.exp(torch.special.ndtri(u))


BROKEN_SIGMA_SAMPLERS = [
    (sigma_samplers.draws_follow_the_quantiles, OtherQuantiles, "draws follow quantile"),
    (sigma_samplers.generator_determines_the_draws, GlobalNoise, "the generator determines"),
    (sigma_samplers.draws_are_on_the_given_device, OnTheCPU, "given device"),
    (sigma_samplers.stratified_batches_vary_less, NeverStratified, "vary less"),
    (sigma_samplers.stratified_covers_every_stratum_in_random_order, NeverStratified, "cover every stratum"),
    (sigma_samplers.stratified_covers_every_stratum_in_random_order, InOrder, "in random order"),
    (sigma_samplers.extreme_uniforms_stay_finite, Unbounded, "finite and above 0"),
]


@pytest.mark.parametrize(("law", "kind", "message"), BROKEN_SIGMA_SAMPLERS)
def test_a_sigma_sampler_that_breaks_a_law_is_rejected(law, kind, message):
    law(LogUniform())
    rejected(law, kind(), message)
    rejected(testing.check_sigma_sampler, kind(), "is broken")


def test_every_law_of_sigma_samplers_is_broken_by_one_here():
    assert {law for law, _, _ in BROKEN_SIGMA_SAMPLERS} == {*sigma_samplers.LAWS}


class Numbers(Conditioner):
    """Label k as the vector (k, 1), the null condition as (0, 0): a right conditioner."""

    dim, num_classes, drop = 2, 3, 0.25

    def condition(self, label):
        return Conditioning(torch.stack([label.float(), torch.ones(len(label))], 1))

    def null(self, n):
        return Conditioning(torch.zeros(n, 2))


class WrongWidth(Numbers):
    dim = 3


class NullIsClassZero(Numbers):
    def null(self, n):
        return self.condition(torch.zeros(n))


class NeverDrops(Numbers):
    def forward(self, label, generator=None):
        return self.condition(label)


class DropsInEval(Numbers):
    def forward(self, label, generator=None):
        training, self.training = self.training, True
        found = super().forward(label, generator)
        self.training = training
        return found


class DropsToNoise(Numbers):
    def forward(self, label, generator=None):
        found = super().forward(label, generator)
        return Conditioning(torch.where(found.vector == 0, -1.0, found.vector))


class LooksAround(Numbers):
    def condition(self, label):
        return Conditioning(torch.stack([label.float() - label.float().mean(), torch.ones(len(label))], 1))


BROKEN_CONDITIONERS = [
    (conditioners.conditions_have_the_declared_widths, WrongWidth, "declared widths"),
    (conditioners.null_differs_from_every_class, NullIsClassZero, "the condition of class 0"),
    (conditioners.dropout_replaces_labels_by_the_null_condition, NeverDrops, "a fraction `drop`"),
    (conditioners.dropout_replaces_labels_by_the_null_condition, DropsInEval, "in eval mode"),
    (conditioners.dropout_replaces_labels_by_the_null_condition, DropsToNoise, "neither of the two"),
    (conditioners.a_label_dropped_for_sure_is_the_null_condition, DropsToNoise, "has the null condition"),
    (conditioners.padding_changes_nothing, LooksAround, "does not depend on the samples beside it"),
]


@pytest.mark.parametrize(("law", "kind", "message"), BROKEN_CONDITIONERS)
def test_a_conditioner_that_breaks_a_law_is_rejected(law, kind, message):
    law(Numbers())
    rejected(law, kind(), message)
    rejected(testing.check_conditioner, kind(), "is broken")


def test_every_law_of_conditioners_is_broken_by_one_here():
    assert {law for law, _, _ in BROKEN_CONDITIONERS} == {*conditioners.LAWS}


def test_right_parts_are_accepted():
    testing.check_schedule(Linear())
    testing.check_scaling(registry.create("scaling", "edm"))
    testing.check_weighting(registry.create("weighting", "edm"))
    testing.check_sigma_sampler(LogUniform())
    testing.check_conditioner(Numbers())
