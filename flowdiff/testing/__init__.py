"""The laws of components, for the authors of plugins as for the package's own tests.

Each `check_*` holds one component to all laws of its kind and raises an AssertionError that says which law is broken,
by how much and where. Each law is also a function of its own, in the module of its kind. No test framework is needed.

Example:
    from flowdiff.testing import check_flow

    check_flow(MyFlow((2,), embed_dim=16), shape=(2,))
"""

from flowdiff.testing.activations import check_activation
from flowdiff.testing.conditioners import check_conditioner
from flowdiff.testing.flows import check_flow
from flowdiff.testing.networks import check_network
from flowdiff.testing.samplers import check_sampler
from flowdiff.testing.scalings import check_scaling, check_weighting
from flowdiff.testing.schedules import check_schedule
from flowdiff.testing.sigma_samplers import check_sigma_sampler

__all__ = [
    "check_activation",
    "check_conditioner",
    "check_flow",
    "check_network",
    "check_sampler",
    "check_scaling",
    "check_schedule",
    "check_sigma_sampler",
    "check_weighting",
]
