"""Adapters: what is trained of a model that is already trained.

The base is the model of another run and stays as it is. An adapter gives weights of it a change,

    W = W₀ + ΔW,    ΔW = 0 at the start,

that every reader of the weight sees, because it is a parametrisation of torch: both directions of a flow, a mask that
is multiplied to the weight, a trace that is computed from it. Then all that holds of the architecture for any weights,
such as ∫p = 1, holds of the adapted model.
"""

from flowdiff.models.adapters.base import Adapter

__all__ = ["Adapter"]
