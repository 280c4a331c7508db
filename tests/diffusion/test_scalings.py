import pytest
import torch

from flowdiff import registry
from flowdiff.testing import check_scaling, oracles

SIGMA = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)

# (c_skip, c_out, c_in, c_noise) at σ = 1, sigma_data = 1/2, worked out by hand
AT_ONE = {
    "edm": (0.2, 0.2**0.5, (1 / 1.25) ** 0.5, 0.0),
    "eps": (1.0, -1.0, 0.5**0.5, 1.0),
    "v": (0.5, -(0.5**0.5), 0.5**0.5, 1.0),
    "score": (1.0, 1.0, 1.0, 1.0),
    "flow_matching": (0.5, -0.5, 0.5, 0.5),
}


@pytest.mark.parametrize("name", sorted(AT_ONE))
def test_closed_form_values(name):
    got = registry.create("scaling", name)(torch.ones(3, dtype=torch.float64), 0.5)
    for value, expected in zip(got, AT_ONE[name], strict=True):
        torch.testing.assert_close(value, torch.full((3,), expected, dtype=torch.float64))


@pytest.mark.parametrize("name", registry.names("scaling"))
def test_laws(name):
    check_scaling(registry.create("scaling", name))


def perfect_networks(x, sigma, score):
    """The output F that has the given score under each scaling: σ_d = 1/2, x (B, D), sigma (B,)."""
    s = sigma[:, None]
    noise, x0 = -s * score, x + s**2 * score
    alpha, norm = (1 + s**2) ** -0.5, (s**2 + 0.25) ** 0.5
    return {
        "score": score,
        "eps": noise,
        "v": alpha * noise - s * alpha * x0,
        "flow_matching": noise - x0,
        "edm": 2 * s * (x / norm + norm * score),
    }


@pytest.mark.parametrize("name", sorted(AT_ONE))
def test_all_forms_give_the_same_denoiser_for_the_same_score(name):
    oracle = oracles.two_by_two()
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c_skip, c_out, _, _ = registry.create("scaling", name)(SIGMA, 0.5)
    output = perfect_networks(x, SIGMA, oracle.score(x, SIGMA))[name]
    denoised = c_skip[:, None] * x + c_out[:, None] * output
    # at σ = 80 a D of order 1 is the difference of numbers of order σ² = 6400
    torch.testing.assert_close(denoised, oracle(x, SIGMA), rtol=1e-9, atol=1e-9)


def test_edm_has_unit_variances():
    """Var[c_in·x] = Var[(x0 − c_skip·x)/c_out] = 1, because x0 and the noise are independent."""
    sigma_data = 0.7
    c = registry.create("scaling", "edm")(SIGMA, sigma_data)
    one = torch.ones_like(SIGMA)
    torch.testing.assert_close(c.c_in**2 * (SIGMA**2 + sigma_data**2), one)
    target = (1 - c.c_skip) ** 2 * sigma_data**2 + c.c_skip**2 * SIGMA**2
    # 1 − c_skip cancels six digits at σ = 0.002
    torch.testing.assert_close(target / c.c_out**2, one, rtol=1e-8, atol=0)
