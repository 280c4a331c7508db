"""The laws of activations, schedules, scalings, weightings, sigma samplers and conditioners reject what breaks them."""

import math
from functools import partial

import pytest
import torch
from broken import but, returning
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
    """A right activation."""

    slope_range = (0.0, 1.0)

    def plain(self, x):
        return torch.atan(x)

    def slope(self, x):
        return 1 / (1 + x**2)


class ELU(Activation):
    slope_range = (0.0, 1.0)

    def plain(self, x):
        return F.elu(x)

    def slope(self, x):
        return torch.exp(-F.relu(-x))


WRONG_SLOPE = but(Arctan, slope=lambda self, x: 1 / (1 + x**2) ** 2)
NAN_FAR_OUT = but(Arctan, plain=lambda self, x: torch.atan(x) + 0 * x.exp())
TIGHT = but(Arctan, slope_range=(0.0, 0.5))
WRONG_LOG_SLOPE = returning(Arctan, bijection=lambda y, log_slope: (y, log_slope + 1e-6))
MOVED = returning(Arctan, bijection=lambda y, log_slope: (y + 1e-6, log_slope))
WRONG_INVERSE = returning(Arctan, inverse=lambda x, log_slope: (x + 1e-4, log_slope))
NO_GRADIENT = but(Arctan, inverse=lambda self, y, w, k: Arctan.inverse(self, y, w.detach(), k))
BROKEN_ACTIVATIONS = [
    (activations.slope_is_the_derivative_of_plain, WRONG_SLOPE, "slope is the derivative of plain"),
    (activations.derivatives_are_finite_for_large_x, NAN_FAR_OUT, "finite for"),
    (activations.slope_range_is_tight_and_holds, but(Arctan, slope_range=(0.0, 2.0)), "slope_range is tight"),
    (activations.slope_range_is_tight_and_holds, TIGHT, "slopes are in slope_range"),
    (activations.bijection_slopes_stay_within_the_bounds, TIGHT, "slopes of the bijection"),
    (activations.log_slope_is_exact, WRONG_LOG_SLOPE, "the log-slope is log dy/dx"),
    (activations.zero_strength_is_the_identity, MOVED, "strength 0 is the identity"),
    (activations.round_trip, WRONG_INVERSE, r"inverse\(bijection\(x\)\) = x"),
    (activations.inverse_is_differentiable, NO_GRADIENT, "the inverse is differentiable"),
    (activations.second_derivative_is_continuous, ELU, "act″ is continuous"),
]


class Linear(Schedule):
    """A right schedule but for its settings."""

    def __init__(self, lowest=0.01, scale=1.0):
        super().__init__(0.01, 10.0)
        self.lowest, self.scale = lowest, scale

    def _levels(self, num_steps, sigma_max):
        step = (sigma_max - self.lowest) / max(num_steps - 1, 1)
        return (sigma_max - step * torch.arange(num_steps, dtype=torch.float64)) * self.scale


class OwnCall(Linear):
    """Forgets a lower start, the bottom and the checks."""

    def __call__(self, num_steps, sigma_max=None):
        return torch.cat([self._levels(num_steps, self.sigma_max), torch.zeros(1, dtype=torch.float64)])


def grid_of_five(schedule):
    schedules.grid_decreases_to_zero(schedule, 5)


FLAT = returning(Linear, _levels=lambda levels: levels.amax().expand(len(levels)))


BROKEN_SCHEDULES = [
    (grid_of_five, FLAT, "a grid decreases"),
    (grid_of_five, partial(Linear, scale=0.5), "starts at sigma_max"),
    (grid_of_five, partial(Linear, lowest=0.001), "at least sigma_min"),
    (lambda schedule: schedules.grid_can_start_lower(schedule, 5), OwnCall, "starts at sigma_max"),
    (schedules.start_at_the_bottom_is_one_step, OwnCall, "is one step"),
    (schedules.invalid_steps_and_starts_are_refused, OwnCall, "is refused"),
]


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
    """A right sigma sampler."""

    def __init__(self, stratified=False):
        super().__init__(stratified)

    def quantile(self, u):
        return 0.01 * torch.exp(u * math.log(1000))


def never_stratified(self, n, generator=None, device=None):
    self.stratified = False
    return LogUniform.__call__(self, n, generator, device)


def called_with(change):
    """A LogUniform that takes other arguments than those it is given: change(n, generator, device)."""

    def call(self, n, generator=None, device=None):
        return LogUniform.__call__(self, *change(n, generator, device))

    return but(LogUniform, __call__=call)


class Unbounded(LogUniform):
    """Draws its uniform numbers without a margin at 0 and 1."""

    def __call__(self, n, generator=None, device=None):
        return self.quantile(torch.rand(n, generator=generator)).to(device)

    def quantile(self, u):
        return torch.exp(torch.special.ndtri(u))


OTHER_QUANTILES = returning(LogUniform, __call__=lambda sigma: 1.1 * sigma)
GLOBAL_NOISE = called_with(lambda n, generator, device: (n, None, device))
ON_THE_CPU = called_with(lambda n, generator, device: (n, generator))
NEVER_STRATIFIED = but(LogUniform, __call__=never_stratified)
IN_ORDER = returning(LogUniform, __call__=lambda sigma: sigma.sort().values)
BROKEN_SIGMA_SAMPLERS = [
    (sigma_samplers.draws_follow_the_quantiles, OTHER_QUANTILES, "draws follow quantile"),
    (sigma_samplers.generator_determines_the_draws, GLOBAL_NOISE, "the generator determines"),
    (sigma_samplers.draws_are_on_the_given_device, ON_THE_CPU, "given device"),
    (sigma_samplers.stratified_batches_vary_less, NEVER_STRATIFIED, "vary less"),
    (sigma_samplers.stratified_covers_every_stratum_in_random_order, NEVER_STRATIFIED, "cover every stratum"),
    (sigma_samplers.stratified_covers_every_stratum_in_random_order, IN_ORDER, "in random order"),
    (sigma_samplers.extreme_uniforms_stay_finite, Unbounded, "finite and above 0"),
]


class Numbers(Conditioner):
    """Label k as the vector (k, 1), the null condition as (0, 0): a right conditioner."""

    dim, num_classes, drop = 2, 3, 0.25

    def condition(self, label):
        return Conditioning(torch.stack([label.float(), torch.ones(len(label))], 1))

    def null(self, n):
        return Conditioning(torch.zeros(n, 2))


class DropsInEval(Numbers):
    def forward(self, label, generator=None):
        training, self.training = self.training, True
        found = super().forward(label, generator)
        self.training = training
        return found


NEVER_DROPS = but(Numbers, forward=lambda self, label, generator=None: self.condition(label))
NULL_IS_CLASS_ZERO = but(Numbers, null=lambda self, n: self.condition(torch.zeros(n)))
DROPS_TO_NOISE = returning(Numbers, forward=lambda found: Conditioning(found.vector.where(found.vector != 0, -1.0)))
LOOKS_AROUND = returning(Numbers, condition=lambda found: Conditioning(found.vector - found.vector.mean(0)))

BROKEN_CONDITIONERS = [
    (conditioners.conditions_have_the_declared_widths, but(Numbers, dim=3), "declared widths"),
    (conditioners.null_differs_from_every_class, NULL_IS_CLASS_ZERO, "the condition of class 0"),
    (conditioners.dropout_replaces_labels_by_the_null_condition, NEVER_DROPS, "a fraction `drop`"),
    (conditioners.dropout_replaces_labels_by_the_null_condition, DropsInEval, "in eval mode"),
    (conditioners.dropout_replaces_labels_by_the_null_condition, DROPS_TO_NOISE, "neither of the two"),
    (conditioners.a_label_dropped_for_sure_is_the_null_condition, DROPS_TO_NOISE, "has the null condition"),
    (conditioners.padding_changes_nothing, LOOKS_AROUND, "does not depend on the samples beside it"),
]


PARTS = [
    (testing.check_activation, Arctan, BROKEN_ACTIVATIONS),
    (testing.check_schedule, Linear, BROKEN_SCHEDULES),
    (testing.check_sigma_sampler, LogUniform, BROKEN_SIGMA_SAMPLERS),
    (testing.check_conditioner, Numbers, BROKEN_CONDITIONERS),
]


@pytest.mark.parametrize(
    ("check", "right", "law", "kind", "message"),
    [(check, right, *row) for check, right, table in PARTS for row in table],
)
def test_a_part_that_breaks_a_law_is_rejected(check, right, law, kind, message):
    law(right())
    rejected(law, kind(), message)
    rejected(check, kind(), "is broken")


@pytest.mark.parametrize(
    ("laws", "table"),
    [
        ({*activations.LAWS, activations.second_derivative_is_continuous}, BROKEN_ACTIVATIONS),
        ({*sigma_samplers.LAWS}, BROKEN_SIGMA_SAMPLERS),
        ({*conditioners.LAWS}, BROKEN_CONDITIONERS),
    ],
    ids=["activations", "sigma samplers", "conditioners"],
)
def test_every_law_is_broken_by_a_part_here(laws, table):
    assert {law for law, _, _ in table} == laws


def test_a_right_activation_is_accepted_and_a_kink_is_accepted_if_it_is_declared():
    testing.check_activation(Arctan())
    testing.check_activation(ELU(), smooth=False)


def test_right_parts_are_accepted():
    testing.check_schedule(Linear())
    testing.check_scaling(registry.create("scaling", "edm"))
    testing.check_weighting(registry.create("weighting", "edm"))
    testing.check_sigma_sampler(LogUniform())
    testing.check_conditioner(Numbers())
