import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.samplers.generate import generate
from flowdiff.errors import ConfigurationError, NotADensity
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls
from flowdiff.testing.models import ScoreOf, model_of

MIXTURE = oracles.two_by_two()
SAMPLERS = registry.names("sampler")
EULER = registry.create("sampler", "euler", num_steps=6)
KARRAS = registry.create("schedule", "karras")
RAW = model_of(ScoreOf(MIXTURE.network))


def sample(denoiser=MIXTURE, sampler=EULER, schedule=KARRAS, shape=(2,), n=2, seed=0, **settings):
    return generate(denoiser, sampler, schedule, shape, n=n, seed=seed, **settings)


def steps(**settings):
    """(step, σ, x, D) of every step."""
    seen = []
    sample(callback=lambda *step: seen.append(step), **settings)
    return seen


def classes_in_turn(indices):
    return MIXTURE.classes(torch.tensor([i % 4 for i in indices]))


@pytest.mark.parametrize("start", ["noise", "flow"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_size_changes_nothing(name, start):
    settings = {"sampler": registry.create("sampler", name, num_steps=5), "start": start, "cond_of": classes_in_turn}
    settings["sigma_start"] = 2.0 if start == "flow" else None
    whole, thirds, single = (sample(n=7, seed=3, batch_size=size, **settings) for size in (7, 3, 1))
    assert whole.shape == (7, 2)
    assert whole.isfinite().all()
    # float32: sums in another order may differ in the last bit
    torch.testing.assert_close(thirds, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma_start", [None, 0.5, 80.0])
def test_flow_start_gives_the_distribution(sigma_start):
    n = 4000
    sampler = registry.create("sampler", "heun", num_steps=18)
    x = sample(sampler=sampler, n=n, start="flow", sigma_start=sigma_start, batch_size=n).double()
    spread = MIXTURE.covariance.diagonal().sqrt()
    # 5 standard errors; heun's own error at 18 steps is far below them
    assert ((x.mean(0) - MIXTURE.mean).abs() < 5 * spread / n**0.5).all()
    assert ((x.T.cov() - MIXTURE.covariance).abs() < 5 * (2 / n) ** 0.5 * torch.outer(spread, spread)).all()


def test_seed_determines_the_samples():
    first, again, other, more = (sample(n=n, seed=seed) for n, seed in ((4, 0), (4, 0), (4, 1), (6, 0)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(more[:4], first)


def test_images_keep_their_shape():
    images = oracles.Mixture(torch.zeros(1, 3, 4, 4), torch.tensor([0.5]))
    for n in (3, 0):
        assert sample(images, shape=(3, 4, 4), n=n, batch_size=2).shape == (n, 3, 4, 4)


def test_condition_reaches_the_samples():
    x = sample(sampler=registry.create("sampler", "heun"), n=8, cond_of=classes_in_turn)
    k = torch.arange(8) % 4
    distance = (x.double() - MIXTURE.means[k]).norm(dim=1)
    assert (distance < 5 * MIXTURE.stds[k]).all()  # the norm of two normal numbers exceeds 5 with probability 4e-6


def test_where_sampling_starts():
    """At the schedule's largest level, its smallest for one shot of the flow, or the first level of a given grid."""
    seen = steps(n=2000, batch_size=2000)
    index, sigma, x, _ = seen[0]
    assert (index, sigma, len(seen)) == (0, 80.0, 6)
    # 5 standard errors of a standard deviation of 4000 numbers
    assert x.std().item() == pytest.approx(80, rel=5 / 8000**0.5)
    counted = CountCalls(MIXTURE)
    seen = steps(denoiser=counted, sampler=registry.create("sampler", "heun"), n=5, start="flow")
    assert (counted.calls, counted.rows) == (1, 5)
    assert seen[0][:2] == (0, KARRAS.sigma_min)
    seen = steps(schedule=None, sigmas=torch.tensor([3.0, 1.0, 0.0]))
    assert [step[1] for step in seen] == [3.0, 1.0]


def test_another_density_can_give_the_start():
    other = oracles.Mixture(torch.full((1, 2), 5.0), torch.tensor([0.01]))
    seen = steps(n=50, start="flow", start_density=other.network)
    torch.testing.assert_close(seen[0][2], torch.full((50, 2), 5.0), rtol=0, atol=0.06)  # 6 deviations


def test_progress_counts_samples():
    seen = []
    sample(n=5, batch_size=2, progress=lambda *done: seen.append(done))
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "flow", "sigma_start": 81.0}, "at most the schedule's sigma_max=80"),
        ({"start": "flow", "sigma_start": 0.0}, "has to be above 0"),
        ({"start": "noise", "sigma_start": 1.0}, "needs start=flow"),
        ({"start": "flwo"}, "did you mean 'flow'"),
        ({"start": "flow", "sigma_start": 1.0, "sigmas": torch.tensor([1.0, 0.0])}, "both given"),
        ({"schedule": None}, "neither schedule nor sigmas was given"),
        ({"denoiser": RAW, "start": "flow"}, "ScoreOf is not a density: set start=noise"),
    ],
)
def test_invalid_starts_are_refused(settings, message):
    with pytest.raises(NotADensity if "denoiser" in settings else ConfigurationError, match=message):
        sample(**settings)
