"""Scores of draws on distributions whose scores are known."""

import pytest
import torch

from flowdiff.evaluation.restoration import scores


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_crps_of_standard_normal_draws():
    """CRPS(N(0, 1), t) = t(2Φ(t) − 1) + 2φ(t) − 1/√π; 0.01 is 4 standard errors of 20,000 scores of 5 draws."""
    n = 20000
    for t in (0.0, 1.5):
        law, at = torch.distributions.Normal(0.0, 1.0), torch.tensor(t, dtype=torch.float64)
        expected = t * (2 * law.cdf(at) - 1) + 2 * law.log_prob(at).exp() - torch.pi**-0.5
        found = scores.crps(normal(n, 5, 1), at.expand(n, 1))
        assert found.shape == (n,)
        assert float(found.mean()) == pytest.approx(float(expected), abs=0.02)


def test_crps_of_one_certain_answer_is_its_error():
    x, t = torch.full((1, 4, 2), 0.5), torch.tensor([[0.0, 1.5]])
    torch.testing.assert_close(scores.crps(x, t), torch.tensor([0.75]))


@pytest.mark.parametrize(
    ("count", "level", "nominal"), [(19, 0.9, 0.9), (19, 0.5, 0.5), (8, 0.9, 7 / 9), (1, 0.5, 0.0)]
)
def test_coverage_is_nominal_where_the_truth_is_one_more_draw(count, level, nominal):
    found = scores.coverage(normal(4000, count, 2), normal(4000, 2, seed=1), level)
    assert found.nominal == pytest.approx(nominal)
    assert found.found == pytest.approx(nominal, abs=0.03)  # 5 standard errors of 8,000 numbers
    narrow = scores.coverage(0.5 * normal(4000, count, 2), normal(4000, 2, seed=1), level)
    assert narrow.found < nominal or count == 1


def test_psnr_and_ssim():
    t = normal(3, 1, 16, 16).clamp(-1, 1)
    noise = 0.1 * normal(3, 1, 16, 16, seed=1)
    square = (noise**2).flatten(1).mean(1)
    assert scores.psnr(t + noise, t) == pytest.approx(float((10 * (4 / square).log10()).mean()))
    assert scores.ssim(t, t) == pytest.approx(1.0)
    assert 0 < scores.ssim(t + noise, t) < 1
    assert scores.ssim(t[..., :5, :5], t[..., :5, :5]) is None
