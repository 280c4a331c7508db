import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.schedules.tables import SPACINGS, TABLES, ddpm_sigmas
from flowdiff.errors import ConfigurationError


def test_ddpm_takes_every_level_and_no_more():
    schedule = registry.create("schedule", "ddpm", num_levels=20)
    torch.testing.assert_close(schedule(20)[:-1].flip(0), schedule.table, rtol=0, atol=0)
    torch.testing.assert_close(schedule(4)[:-1], schedule.table[[19, 14, 9, 4]], rtol=0, atol=0)
    with pytest.raises(ConfigurationError, match="20 levels"):
        schedule(21)
    start = (schedule.table[2] + schedule.table[3]).item() / 2  # a low start leaves fewer steps
    assert schedule(10, sigma_max=start).tolist() == [start, *schedule.table[[2, 1, 0]].tolist(), 0]


@pytest.mark.parametrize("table", sorted(TABLES))
def test_table_follows_its_formula(table):
    sigmas = ddpm_sigmas(table, 1000)
    assert sigmas.shape == (1000,)
    assert (sigmas.diff() > 0).all()
    alpha_bar = 1 / (1 + sigmas**2)
    if table == "cosine":
        # where β is below its limit of 0.999, ᾱ_t is the cosine itself, divided by its value at t = 0
        t = torch.arange(0, 991, dtype=torch.float64) / 1000
        cosine = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
        torch.testing.assert_close(alpha_bar[:990], cosine[1:] / cosine[0], rtol=1e-9, atol=0)
        assert (1 - alpha_bar[-1] / alpha_bar[-2]).item() == pytest.approx(0.999)
        return
    first, last = {"linear": (1e-4, 0.02), "sqrt_linear": (0.00085, 0.012)}[table]
    betas = torch.cat([1 - alpha_bar[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]])
    root = betas if table == "linear" else betas.sqrt()
    torch.testing.assert_close(betas[[0, -1]], betas.new_tensor([first, last]), rtol=1e-9, atol=0)
    torch.testing.assert_close(root.diff(), root.diff()[0].expand(999), rtol=1e-6, atol=0)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_table_equals_diffusers(table):
    from diffusers import DDPMScheduler

    theirs = {"sqrt_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}.get(table, table)
    ends = {"sqrt_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(table, {})
    alpha_bar = DDPMScheduler(1000, beta_schedule=theirs, **ends).alphas_cumprod
    # diffusers computes the cumulative product of 1000 factors in float32: 1000 roundings of 6e-8
    torch.testing.assert_close((1 + ddpm_sigmas(table, 1000) ** 2) ** -1, alpha_bar.double(), rtol=6e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": "cosine", "beta_end": 0.1}, "beta_end cannot be set"),
        ({"beta_start": 1.0}, "beta_start=1.0"),
        ({"num_levels": 1}, "num_levels=1"),
        ({"table": "linaer"}, "table=linaer"),
    ],
)
def test_betas_can_be_given_and_invalid_tables_are_refused(settings, message):
    for beta, given in ((0.1, {"beta_start": 0.1}), (1e-4, {})):
        assert ddpm_sigmas("linear", 10, beta_end=0.5, **given)[0].item() == pytest.approx((beta / (1 - beta)) ** 0.5)
    with pytest.raises(ConfigurationError, match=message):
        registry.create("schedule", "ddpm", **settings)
    with pytest.raises(ConfigurationError, match=message):
        ddpm_sigmas(**{"table": "linear", "num_levels": 1000} | settings)


@pytest.mark.parametrize("num_steps", [2, 7, 10, 100, 1000])
@pytest.mark.parametrize("spacing", sorted(SPACINGS))
def test_spacing_equals_diffusers(spacing, num_steps):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(1000, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    schedule = registry.create("schedule", "ddpm", spacing=spacing)
    torch.testing.assert_close(schedule(num_steps)[:-1], schedule.table[scheduler.timesteps], rtol=0, atol=0)


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
def test_every_spacing_starts_at_the_given_level(spacing):
    schedule = registry.create("schedule", "ddpm", num_levels=20, spacing=spacing)
    start = (schedule.table[12] + schedule.table[13]).item() / 2
    for num_steps in (1, 2, 5, 13, 20):
        sigmas = schedule(num_steps, sigma_max=start)
        assert sigmas[0].item() == start
        assert len(sigmas) == min(num_steps, 14) + 1
        assert (sigmas.diff() < 0).all()
    assert schedule(1).tolist() == [schedule.sigma_max, 0]
