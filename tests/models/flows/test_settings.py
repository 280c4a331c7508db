"""What the settings of single flows choose: the form for images, the size of the nets, and what is refused."""

import pytest
from small_models import flow_of

from flowdiff.errors import ConfigurationError
from flowdiff.models.nn.attention import SelfAttention
from flowdiff.models.nn.conv import ResidualConv

# Settings of narrow flows.
NARROW = {
    "glow": {"hidden": 8, "n_flows": 2},
    "hybrid": {"hidden": 8, "n_flows": 2, "features": 4},
    "mixture_logistic": {"hidden": 8, "n_flows": 2, "heads": 2},
    "patchwise": {"hidden": 16, "n_flows": 2},
    "spline": {"hidden": 8, "n_flows": 2},
    "tarflow": {"hidden": 8, "heads": 2, "n_flows": 2, "n_layers": 1, "deep_layers": 2, "patch": 2},
}
FORMS = [
    *(("realnvp", shape, "auto", "vector") for shape in [(64,), (1, 8, 8), (1, 16, 16), (3, 17, 16)]),
    ("realnvp", (1, 20, 16), "auto", "image"),
]
for name in ("spline", "mixture_logistic"):
    FORMS += [(name, shape, "auto", "vector") for shape in [(1, 8, 8), (1, 17, 17)]]
    FORMS += [(name, (1, 18, 18), "auto", "image"), (name, (1, 4, 4), "image", "image")]


@pytest.mark.parametrize(("name", "shape", "form", "expected"), FORMS, ids=str)
def test_large_images_with_even_sides_use_the_image_form(name, shape, form, expected):
    """form=auto: a sample with at most 256 dimensions, or whose sides cannot be halved, is treated as a vector."""
    flow = flow_of(name, shape, **{**NARROW.get(name, {"n_flows": 1}), "form": form})
    nets = [module for module in flow.modules() if isinstance(module, ResidualConv)]
    assert bool(nets) == (expected == "image")
    if name == "mixture_logistic":
        assert all(any(isinstance(module, SelfAttention) for module in net.modules()) for net in nets)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        *(("glow", key, value) for key, value in (("n_flows", 4), ("depth", 2), ("levels", 2))),
        *(("hybrid", key, value) for key, value in (("hidden", 16), ("features", 5))),
        *(("hybrid", key, 3) for key in ("n_flows", "depth", "levels", "cnn_depth")),
    ],
)
def test_every_setting_changes_the_size(name, setting, value):
    start = {**NARROW[name], "depth": 1, "levels": 1, **({"cnn_depth": 1} if name == "hybrid" else {})}
    small, large = (flow_of(name, (1, 8, 8), **{**start, **more}) for more in ({}, {setting: value}))
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())


VECTORS_AND_ODD_SIDES = [(1,), (64,), (1, 7, 7), (1, 8, 7)]
NO_SPLIT = [((1,), "auto"), ((1, 3, 5), "image"), ((6,), "image")]
STEPS = r"flow\.steps=.* flow\.atol=.*either steps or both tolerances.*null\."


@pytest.mark.parametrize(
    ("name", "shape", "settings", "sentence"),
    [
        *(("glow", shape, {}, r"flow=glow .*take flow=") for shape in VECTORS_AND_ODD_SIDES),
        *(("hybrid", shape, {}, r"flow=hybrid .*take flow=") for shape in VECTORS_AND_ODD_SIDES),
        ("hybrid", (1, 28, 28), {"levels": 3}, r"flow=hybrid with 3 levels .*28×28 allows flow\.levels=1 or 2"),
        ("realnvp", (1,), {}, r"shape \(1,\).*flow=linear_activation"),
        ("realnvp", (1, 7, 8), {"form": "image"}, r"flow=realnvp with 1 level .*multiples of 2\^1 = 2"),
        ("spline", (6,), {"bins": 8, "min_bin": 0.2}, r"flow\.bins=8 .* flow\.min_bin=0\.2 .* min_bin < 0\.125"),
        *(
            (name, shape, {"form": form}, rf"flow={name} .*(shape|side).*take ")
            for name in ("spline", "mixture_logistic")
            for shape, form in NO_SPLIT
        ),
        ("mixture_logistic", (6,), {"heads": 3}, r"flow\.hidden=8 and flow\.heads=3.*multiple of 3"),
        ("tarflow", (1, 28, 28), {"patch": 3}, r"flow\.patch=3 .*images of 28×28.*take one of 1, 2, 4, 7, 14\."),
        ("tarflow", (3, 4, 6), {"patch": 4}, r"flow\.patch=4 does not cut images of 4×6.*take one of 1, 2\."),
        ("tarflow", (6,), {"patch": 4}, r"vectors of 6 dimensions.*take one of 1, 2, 3\."),
        ("tarflow", (2,), {"patch": 2}, r"take one of 1\."),
        ("tarflow", (1,), {"patch": None}, r"shape \(1,\).*take flow=linear_activation"),
        ("tarflow", (1, 4, 6), {"heads": 3}, r"flow\.hidden=8.*flow\.heads=3.*multiple of 3"),
        *(
            ("patchwise", (2, 4, 6), {"patch": n}, rf"flow\.patch={n} .* sides .* 4×6: take one of 1, 2,")
            for n in (3, 5, 8)
        ),
        *(("patchwise", shape, {}, r"not images .*take flow=realnvp or flow=tarflow") for shape in [(5,), (64,)]),
        ("patchwise", (2, 4, 6), {"heads": 3}, r"flow\.hidden=16 .* flow\.heads=3: take a multiple of 3"),
        ("ffjord", (4,), {"steps": None}, STEPS),
        ("ffjord", (4,), {"rtol": 1e-3}, STEPS),
        ("ffjord", (4,), {"rtol": 1e-3, "atol": 1e-3}, STEPS),
        ("ffjord", (4,), {"steps": None, "rtol": 1e-3}, STEPS),
        (
            *("ffjord", (4,), {"backprop": "adjoint", "checkpoint": True}),
            r"flow\.checkpoint=true does not work with flow\.backprop=adjoint",
        ),
        (
            "linear_activation",
            (16_381,),
            {"linear": "kronecker"},
            r"take flow.linear=householder flow.reflections=64\.$",
        ),
        (
            *("linear_activation", (1, 3, 3), {"linear": "rotation", "reflections": 4}),
            r"flow\.linear=rotation does not use reflections, but flow\.reflections=4",
        ),
        *(
            ("linear_activation", (1, 3, 3), {"linear": "householder", "reflections": n}, sentence)
            for n, sentence in (
                (12, "more than the 10 that give every rotation of 9 dimensions"),
                (3, r"flow\.reflections=3 is not allowed: input should be a multiple"),
                (0, r"flow\.reflections=0 is not allowed"),
            )
        ),
        ("linear_activation", (1, 3, 3), {"linear": "dense"}, r"flow\.linear=dense is not allowed"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_in_one_sentence(name, shape, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence) as error:
        flow_of(name, shape, **{**NARROW.get(name, {}), **settings})
    assert "\n" not in str(error.value)


def test_a_patchwise_flow_without_context_has_no_heads_and_n_flows_is_the_number_of_layers():
    flow_of("patchwise", (2, 4, 6), hidden=16, heads=3, context="none")
    one, two = (flow_of("linear_activation", (4,), act="softplus", n_flows=n) for n in (1, 2))
    more = sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters())
    assert more == 4 * 4 + (4 + 1) * 16  # one rotation and one steering layer more
