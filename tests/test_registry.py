"""The registry: every YAML fits its constructor in both directions, and wrong settings end as sentences."""

import importlib
import inspect
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import PositiveInt

from flowdiff import config, registry
from flowdiff.errors import ConfigurationError

OPTIONS = [(group, name) for group in registry.GROUP_MODULES for name in config.options(group)]


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_yaml_and_constructor_hold_the_same_keys(group, name):
    node = config.defaults(group, name)
    component = registry.resolve(group, node["name"])
    assert set(node) - {"name"} == set(registry.hyperparameters(component))
    registry.check(group, node)  # and the values have the annotated types and ranges


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_no_hyperparameter_has_a_default_in_python(group, name):
    component = registry.resolve(group, config.defaults(group, name)["name"])
    assert all(p.default is inspect.Parameter.empty for p in registry.hyperparameters(component).values())


@pytest.mark.parametrize("group", registry.GROUP_MODULES)
def test_every_registered_name_has_a_yaml(group):
    named = {config.defaults(group, option)["name"] for option in config.options(group)}
    assert set(registry.names(group)) == named


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_component_says_what_it_is(group, name):
    component = registry.resolve(group, config.defaults(group, name)["name"])
    assert component.__doc__
    assert len(component.__doc__.strip()) > 10


@pytest.mark.parametrize(
    ("group", "settings", "sentence"),
    [
        ("flow", {"name": "reelnvp"}, "flow=reelnvp is unknown: did you mean 'realnvp'?"),
        ("schedule", {"name": "karras", "sigma_mn": 1.0}, "schedule.sigma_mn is not a setting of schedule=karras"),
        ("activation", {"name": "softplus"}, "activation.beta is missing"),
        ("activation", {"name": "softplus", "beta": "much"}, "activation.beta=much is not allowed: input should be"),
        ("activation", {"name": "softplus", "beta": 0.0}, "should be greater than 0"),
        ("activation", {"name": "softplus", "beta": True}, "activation.beta=True is not allowed"),
        ("activation", {"name": "tanh", "beta": 1.0}, "activation.beta is not a setting"),
    ],
)
def test_wrong_settings_end_as_sentences(group, settings, sentence):
    with pytest.raises(ConfigurationError) as error:
        registry.check(group, settings)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_build_hands_in_only_what_the_component_takes():
    activation = registry.create("activation", "softplus", shape=(3,), beta=2.0)
    assert activation.beta == 2.0


def test_register_refuses_a_taken_name():
    with pytest.raises(ConfigurationError, match="already registered"):

        @registry.register("activation", registry.names("activation")[0])
        class Another:
            """Not the one that has the name."""


def test_register_refuses_an_unknown_group():
    with pytest.raises(ConfigurationError, match="is not a config group"):
        registry.register("flows", "x")


PLUGIN = """
from pydantic import PositiveFloat
import torch
from flowdiff.models.activations import Activation
from flowdiff.registry import register


@register("activation", "arcsinh_{n}")
class Arcsinh(Activation):
    \"\"\"act(x) = asinh(kx)/k, slope in (0, 1].\"\"\"

    slope_range = (0.0, 1.0)

    def __init__(self, *, k: PositiveFloat = 1.0{more}):
        self.k = k

    def plain(self, x):
        return torch.asinh(self.k * x) / self.k

    def slope(self, x):
        return (1 + (self.k * x) ** 2).rsqrt()
"""


def test_plugin_becomes_an_option_with_its_defaults(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(n="one", more=""))
    composed = config.compose([f"plugins=[{path}]", "activation=arcsinh_one", "activation.k=2.0"])
    config.check(composed)
    assert OmegaConf.to_container(composed.activation) == {"name": "arcsinh_one", "k": 2.0}
    assert registry.create("activation", "arcsinh_one").k == 1.0


def test_plugin_without_defaults_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(n="two", more=", strength: PositiveFloat"))
    with pytest.raises(ConfigurationError, match="no default for strength"):
        config.compose([f"plugins=[{path}]"])


def test_plugin_that_is_missing_or_broken_is_a_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="is not a file"):
        config.compose([f"plugins=[{tmp_path / 'none.py'}]"])
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_that_name")
    with pytest.raises(ConfigurationError, match="could not be imported: ModuleNotFoundError"):
        config.compose([f"plugins=[{path}]"])


def test_settings_of_a_base_class_need_no_repetition():
    """`**settings` of a constructor stands for them, with their types."""

    class Base:
        def __init__(self, shape: tuple[int, ...], *, depth: PositiveInt, width: PositiveInt):
            self.base = shape, depth, width

    class Variant(Base):
        def __init__(self, embed_dim: int, *, width: float, extra: str, **settings: Any):
            super().__init__((2,), width=1, **settings)

    class Further(Variant):
        pass

    for component in (Variant, Further):
        found = {key: p.annotation for key, p in registry.hyperparameters(component).items()}
        assert found == {"width": float, "extra": str, "depth": PositiveInt}  # the nearest class decides
        assert registry.runtime_parameters(component) == ["embed_dim"]
    assert set(registry.hyperparameters(Base)) == {"depth", "width"}


def test_annotations_carry_ranges():
    # The contract of every room rests on pydantic reading `PositiveInt` strictly.
    @registry.register("activation", "needs_an_integer")
    class Needs:
        """A component with one integer hyperparameter."""

        def __init__(self, *, n: PositiveInt):
            self.n = n

    try:
        assert registry.create("activation", {"name": "needs_an_integer", "n": 3}).n == 3
        for wrong in (0, 2.5, "3", True, None):
            with pytest.raises(ConfigurationError):
                registry.create("activation", {"name": "needs_an_integer", "n": wrong})
    finally:
        registry._components["activation"].pop("needs_an_integer")


FLOW_PLUGIN = """
import torch
from pydantic import PositiveInt
from torch import nn
from flowdiff.models.flows.base import Flow
from flowdiff.registry import register


@register("flow", "diagonal")
class Diagonal(Flow):
    \"\"\"z = e^s·x on vectors, n_flows times.\"\"\"

    def __init__(self, shape, embed_dim, activation, *, n_flows: PositiveInt = 2):
        super().__init__()
        self.s = nn.Parameter(torch.zeros(n_flows, *shape))

    def forward(self, x, cond):
        return x * self.s.sum(0).exp(), self.s.sum().expand(len(x))

    def inverse(self, z, cond):
        return z * (-self.s.sum(0)).exp(), -self.s.sum().expand(len(z))
"""


def test_a_flow_plugin_brings_what_a_flow_needs_and_builds(tmp_path):
    from flowdiff.training.engine import Engine

    (tmp_path / "mine.py").write_text(FLOW_PLUGIN)
    composed = config.compose([f"plugins=[{tmp_path / 'mine.py'}]", "flow=diagonal", "flow.n_flows=3"])
    config.check(composed)
    assert composed.activation.name == "swish"
    assert composed.whitening.name == "isotropic"
    engine = Engine.of(config.resolved(composed))
    assert engine.denoiser.network.flow.s.shape == (3, 1, 8, 8)
    with pytest.raises(ConfigurationError, match=r"flow\.n_flows=0 is not allowed"):
        config.check(config.compose([f"plugins=[{tmp_path / 'mine.py'}]", "flow=diagonal", "flow.n_flows=0"]))


def test_a_plugin_may_also_be_imported_by_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "shear.py").write_text(
        "from flowdiff.models.activations import Activation\nfrom flowdiff.registry import register\n\n\n"
        '@register("activation", "shear")\nclass Shear(Activation):\n    def __init__(self): ...\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("shear")
    assert registry.import_plugin(tmp_path / "shear.py") == {"activation": ["shear"]}
    (tmp_path / "other.py").write_text((tmp_path / "shear.py").read_text())
    with pytest.raises(ConfigurationError, match="activation 'shear' is already registered by"):
        registry.import_plugin(tmp_path / "other.py")
