import pytest
import torch
from torch import nn

from flowdiff import registry
from flowdiff.diffusion.samplers.generate import generate
from flowdiff.errors import ConfigurationError, NotADensity
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls

MIXTURE = oracles.two_by_two()
SAMPLERS = registry.names("sampler")
EULER = registry.create("sampler", "euler", num_steps=6)
KARRAS = registry.create("schedule", "karras")


def classes_in_turn(indices):
    return MIXTURE.classes(torch.tensor([i % 4 for i in indices]))


@pytest.mark.parametrize("start", ["noise", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_size_changes_nothing(name, start):
    sampler = registry.create("sampler", name, num_steps=5)
    sigma_start = 2.0 if start == "flow" else None
    settings = {"n": 7, "seed": 3, "cond_of": classes_in_turn, "start": start, "sigma_start": sigma_start}
    whole, thirds, single = (
        generate(MIXTURE, sampler, KARRAS, (2,), batch_size=size, **settings) for size in (7, 3, 1)
    )
    assert whole.shape == (7, 2)
    assert whole.isfinite().all()
    # float32: sums in another order may differ in the last bit
    torch.testing.assert_close(thirds, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-6)


def test_seed_determines_the_samples():
    first, again, other = (generate(MIXTURE, EULER, KARRAS, (2,), n=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    more = generate(MIXTURE, EULER, KARRAS, (2,), n=6, seed=0)
    torch.testing.assert_close(more[:4], first)


def test_start_from_noise_is_at_the_largest_level():
    seen = []
    generate(MIXTURE, EULER, KARRAS, (2,), n=2000, seed=0, batch_size=2000, callback=lambda *step: seen.append(step))
    index, sigma, x, _ = seen[0]
    assert (index, sigma, len(seen)) == (0, 80.0, 6)
    # 5 standard errors of a standard deviation of 4000 numbers
    assert x.std().item() == pytest.approx(80, rel=5 / 8000**0.5)


def test_images_keep_their_shape():
    images = oracles.Mixture(torch.zeros(1, 3, 4, 4), torch.tensor([0.5]))
    assert generate(images, EULER, KARRAS, (3, 4, 4), n=3, seed=0, batch_size=2).shape == (3, 3, 4, 4)
    assert generate(images, EULER, KARRAS, (3, 4, 4), n=0, seed=0).shape == (0, 3, 4, 4)


def test_one_shot_flow_sampling_is_one_denoising_step():
    counted, seen = CountCalls(MIXTURE), []
    sampler = registry.create("sampler", "heun")
    generate(counted, sampler, KARRAS, (2,), n=5, seed=0, start="flow", callback=lambda *step: seen.append(step))
    assert (counted.calls, counted.rows) == (1, 5)
    assert seen[0][:2] == (0, KARRAS.sigma_min)


@pytest.mark.parametrize("sigma_start", [None, 0.5, 80.0])
def test_flow_start_gives_the_distribution(sigma_start):
    n = 4000
    sampler = registry.create("sampler", "heun", num_steps=18)
    x = generate(
        MIXTURE, sampler, KARRAS, (2,), n=n, seed=0, start="flow", sigma_start=sigma_start, batch_size=n
    ).double()
    spread = MIXTURE.covariance.diagonal().sqrt()
    # 5 standard errors; heun's own error at 18 steps is far below them
    assert ((x.mean(0) - MIXTURE.mean).abs() < 5 * spread / n**0.5).all()
    assert ((x.T.cov() - MIXTURE.covariance).abs() < 5 * (2 / n) ** 0.5 * torch.outer(spread, spread)).all()


def test_another_density_can_give_the_start():
    other = oracles.Mixture(torch.full((1, 2), 5.0), torch.tensor([0.01]))
    seen = []
    generate(
        MIXTURE, EULER, KARRAS, (2,), n=50, seed=0, start="flow", start_density=other.network,
        callback=lambda *step: seen.append(step),
    )  # fmt: skip
    torch.testing.assert_close(seen[0][2], torch.full((50, 2), 5.0), rtol=0, atol=0.06)  # 6 deviations


def test_given_grid_replaces_the_schedule():
    seen = []
    generate(
        MIXTURE, EULER, None, (2,), n=2, seed=0, sigmas=torch.tensor([3.0, 1.0, 0.0]),
        callback=lambda *step: seen.append(step),
    )  # fmt: skip
    assert [step[1] for step in seen] == [3.0, 1.0]


def test_condition_reaches_the_samples():
    x = generate(MIXTURE, registry.create("sampler", "heun"), KARRAS, (2,), n=8, seed=0, cond_of=classes_in_turn)
    k = torch.arange(8) % 4
    distance = (x.double() - MIXTURE.means[k]).norm(dim=1)
    assert (distance < 5 * MIXTURE.stds[k]).all()  # the norm of two normal numbers exceeds 5 with probability 4e-6


def test_progress_counts_samples():
    seen = []
    generate(MIXTURE, EULER, KARRAS, (2,), n=5, seed=0, batch_size=2, progress=lambda *done: seen.append(done))
    assert seen == [(2, 5), (4, 5), (5, 5)]


class RawNetwork(nn.Module):
    def forward(self, x, c_noise, cond=None):
        return x


class RawDenoiser:
    network = RawNetwork()

    def __call__(self, x, sigma, cond=None):
        return x


def test_a_raw_network_cannot_give_the_start():
    with pytest.raises(NotADensity, match="RawNetwork is not a density: set start=noise"):
        generate(RawDenoiser(), EULER, KARRAS, (2,), n=2, seed=0, start="flow")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "flow", "sigma_start": 81.0}, "at most the schedule's sigma_max=80"),
        ({"start": "flow", "sigma_start": 0.0}, "has to be above 0"),
        ({"start": "noise", "sigma_start": 1.0}, "needs start=flow"),
        ({"start": "flwo"}, "did you mean 'flow'"),
        ({"start": "flow", "sigma_start": 1.0, "sigmas": torch.tensor([1.0, 0.0])}, "both given"),
    ],
)
def test_invalid_starts_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        generate(MIXTURE, EULER, KARRAS, (2,), n=2, seed=0, **settings)


def test_a_grid_is_needed():
    with pytest.raises(ConfigurationError, match="neither schedule nor sigmas was given"):
        generate(MIXTURE, EULER, None, (2,), n=2, seed=0)
