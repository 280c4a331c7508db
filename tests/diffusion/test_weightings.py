import pytest
import torch

from flowdiff import registry
from flowdiff.testing import check_weighting

SIGMA = torch.tensor([0.002, 0.3, 1.0, 80.0], dtype=torch.float64)
SIGMA_DATA = torch.tensor(0.7, dtype=torch.float64)

# at σ = 2, sigma_data = 3/2; gamma = 5 for min_snr and 4 for soft_min_snr
AT_TWO = {"edm": 25 / 36, "eps": 0.25, "v": 1.25, "unit": 1.0, "min_snr": 0.25, "soft_min_snr": 1 / 4.25}
AT_TWO |= {"sigma": 2.0, "noise_share": 0.8, "flow_matching": 2.25, "uncertainty": 25 / 36}


@pytest.mark.parametrize("name", registry.names("weighting"))
def test_closed_form_values(name):
    weight = registry.create("weighting", name)(torch.full((2,), 2.0, dtype=torch.float64), 1.5)
    torch.testing.assert_close(weight, torch.full((2,), AT_TWO[name], dtype=torch.float64))


def test_those_of_a_likelihood_stay_bounded_at_low_noise():
    """All others but the unit weight undo that the error of D vanishes there: they do not."""
    tiny = torch.tensor([1e-6], dtype=torch.float64)
    built = {name: registry.create("weighting", name) for name in registry.names("weighting")}
    of_likelihood = {name for name, weighting in built.items() if weighting.of_likelihood}
    assert of_likelihood == {name for name, weighting in built.items() if weighting(tiny, SIGMA_DATA) <= 1}
    assert of_likelihood == {"unit", "sigma", "noise_share"}


def test_powers_of_sigma():
    for power in (0.0, 1.0, 2.0):
        torch.testing.assert_close(registry.create("weighting", "sigma", power=power)(SIGMA, SIGMA_DATA), SIGMA**power)
    with pytest.raises(registry.ConfigurationError, match="power"):
        registry.create("weighting", "sigma", power=-1.0)


def test_the_noise_share_is_sigma_at_low_noise_and_one_at_high_noise():
    share = registry.create("weighting", "noise_share")(SIGMA, SIGMA_DATA)
    torch.testing.assert_close(share[0], SIGMA[0] / SIGMA_DATA, rtol=1e-4, atol=0)  # (σ/σ_d)² / 2 = 4e-6
    torch.testing.assert_close(share[-1], torch.ones_like(share[-1]), rtol=1e-4, atol=0)  # (σ_d/σ)² / 2 = 4e-5
    assert (share < 1).all()


@pytest.mark.parametrize("name", registry.names("weighting"))
def test_laws(name):
    check_weighting(registry.create("weighting", name))


@pytest.mark.parametrize("name", ["edm", "eps", "v", "flow_matching"])
def test_is_the_unweighted_loss_of_its_scaling(name):
    """‖D − x0‖² = c_out²‖F − target‖², so the weight c_out⁻² gives the unweighted loss of F."""
    weight = registry.create("weighting", name)(SIGMA, SIGMA_DATA)
    c_out = registry.create("scaling", name)(SIGMA, SIGMA_DATA).c_out
    torch.testing.assert_close(weight * c_out**2, torch.ones_like(SIGMA))


def test_min_snr_caps_the_noise_loss():
    weight = registry.create("weighting", "min_snr", gamma=3.0)(SIGMA, SIGMA_DATA)
    expected = torch.tensor([3.0, 3.0, 1.0, 80.0**-2], dtype=torch.float64)
    torch.testing.assert_close(weight, expected)


def test_soft_min_snr_approaches_min_snr_at_both_ends_and_stays_below():
    hard = registry.create("weighting", "min_snr", gamma=3.0)(SIGMA, SIGMA_DATA)
    soft = registry.create("weighting", "soft_min_snr", gamma=3.0)(SIGMA, SIGMA_DATA)
    assert (soft < hard).all()
    # soft/hard = 1/(1 + γσ²) below the corner and 1/(1 + σ⁻²/γ) above: 1 − 1.2e-5 and 1 − 5.2e-5 here
    torch.testing.assert_close(soft[[0, -1]], hard[[0, -1]], rtol=1e-4, atol=0)


def test_soft_min_snr_equals_k_diffusion_at_gamma_one_over_variance():
    soft = registry.create("weighting", "soft_min_snr", gamma=(SIGMA_DATA**-2).item())(SIGMA, SIGMA_DATA)
    preconditioned = (SIGMA * SIGMA_DATA) ** 2 / (SIGMA**2 + SIGMA_DATA**2) ** 2
    c_out = registry.create("scaling", "edm")(SIGMA, SIGMA_DATA).c_out
    torch.testing.assert_close(soft * c_out**2, preconditioned)


@pytest.mark.parametrize("name", ["min_snr", "soft_min_snr"])
def test_gamma_has_to_be_positive(name):
    with pytest.raises(registry.ConfigurationError, match="gamma"):
        registry.create("weighting", name, gamma=0.0)


def test_the_uncertainty_learns_the_mean_loss_of_every_noise_level():
    """With u = ln of it the weighted loss is 1 everywhere, and no other u has a smaller loss on average."""
    weighting = registry.create("weighting", "uncertainty", base="unit", features=64)
    levels = torch.logspace(-2, 1, 64)
    error = levels.square() / (1 + levels.square())
    optimizer = torch.optim.LBFGS(weighting.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = (weighting(levels, SIGMA_DATA.float()) * error + weighting.offset(levels)).mean()
        value.backward()
        return value

    before = loss().item()
    optimizer.step(loss)
    assert loss().item() == pytest.approx(1 + error.log().mean().item(), abs=1e-3)  # of u = ln error
    assert before == pytest.approx(error.mean().item())  # u = 0 at the start
    torch.testing.assert_close(weighting.offset(levels), error.log(), atol=0.05, rtol=0)


def test_an_uncertainty_does_not_divide_itself():
    with pytest.raises(registry.ConfigurationError, match="names itself"):
        registry.create("weighting", "uncertainty", base="uncertainty")
    with pytest.raises(registry.ConfigurationError, match="did you mean 'unit'"):
        registry.create("weighting", "uncertainty", base="unti")
