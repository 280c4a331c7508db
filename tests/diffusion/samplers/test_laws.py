"""Laws that every registered sampler obeys, on distributions whose denoiser is exact."""

import pytest

from flowdiff import registry
from flowdiff.testing import samplers as laws


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", registry.names("sampler"))
def test_law(name, law):
    law(registry.create("sampler", name))


# The module of dpmpp_3m_sde explains its order. lms of higher order is left out: its first step, Euler's, has an error
# of order 2.
ORDERS = [
    ("euler", {}, 1),
    ("ddim", {}, 1),
    ("dpm_solver_1", {}, 1),
    ("ancestral", {"eta": 0.0}, 1),
    ("heun", {}, 2),
    ("dpm_solver_2", {}, 2),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2),
    ("dpmpp_3m_sde", {"eta": 0.0}, 2),
    ("lms", {"order": 2}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2}, 3),
    ("unipc", {"order": 2, "variant": "bh1"}, 3),
]


@pytest.mark.parametrize(("name", "settings", "order"), ORDERS)
def test_order_of_convergence(name, settings, order):
    laws.has_order(registry.create("sampler", name, **settings), order)
