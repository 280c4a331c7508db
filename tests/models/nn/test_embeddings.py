"""Embeddings: they resolve the whole noise range in every scaling, are smooth, and refuse unsuitable input."""

import pytest
import torch

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.embeddings import ConditionEmbedding, NoiseEmbedding

SIGMA = torch.logspace(-2.7, 1.9, 24)  # 0.002 … 80, five per decade
SCALES = pytest.mark.parametrize("c_noise", [0.25 * SIGMA.log(), SIGMA], ids=["log", "sigma"])


@SCALES
def test_noise_levels_are_distinguished(c_noise):
    """A linear map of the embedding can fit ln σ, so different noise levels have different embeddings."""
    torch.manual_seed(0)
    e = NoiseEmbedding(64)(c_noise).detach().double()
    target = SIGMA.log().double()
    design = torch.cat([e, torch.ones(len(e), 1)], dim=1)
    # Ridge regression, so that rounding errors are not used as features.
    gram = design.T @ design + 1e-6 * torch.eye(design.shape[1], dtype=torch.float64)
    fit = design @ torch.linalg.solve(gram, design.T @ target)
    # Neighbours are 0.46 apart in ln σ. The error is largest if c_noise = σ is nearly 0.
    assert (fit - target).abs().max() < 0.46
    assert (fit - target).abs()[SIGMA > 0.1].max() < 0.1


def test_values_stay_moderate_and_are_smooth_in_the_noise_level():
    torch.manual_seed(0)
    e = NoiseEmbedding(32)(torch.tensor([-1e4, -2.0, 0.0, 80.0, 1e4]))
    assert e.abs().max() < 20  # u = asinh(1e4) = 9.9 instead of 1e4
    c_noise = torch.tensor([-1.5, 0.0, 0.7, 40.0], dtype=torch.float64, requires_grad=True)
    embedding = NoiseEmbedding(8).double()
    assert torch.autograd.gradcheck(embedding, c_noise)
    assert torch.autograd.gradgradcheck(embedding, c_noise)


def test_tokens_are_passed_on_unchanged():
    tokens, mask = torch.randn(2, 5, 3), torch.ones(2, 5, dtype=torch.bool)
    out = ConditionEmbedding(8, 4, 3)(torch.zeros(2), Conditioning(torch.randn(2, 4), tokens, mask))
    assert out.tokens is tokens
    assert out.mask is mask
    out = ConditionEmbedding(8, 0, 3)(torch.zeros(2), Conditioning(None, tokens, mask))
    assert out.vector.shape == (2, 8)
    assert out.tokens is tokens


def test_the_vector_depends_on_the_mean_of_the_tokens_that_count():
    torch.manual_seed(0)
    embedding, tokens = ConditionEmbedding(8, 0, 3), torch.randn(3, 4, 3)
    mask = torch.arange(4) < torch.tensor([0, 2, 4])[:, None]

    def e(tokens=None, mask=None):
        return embedding(torch.zeros(3), None if tokens is None else Conditioning(None, tokens, mask)).vector

    mean = torch.stack([torch.zeros(3), tokens[1, :2].mean(0), tokens[2].mean(0)])
    torch.testing.assert_close(e(tokens, mask), e(mean[:, None]))
    torch.testing.assert_close(e(tokens.masked_fill(~mask[..., None], torch.nan), mask), e(tokens, mask))
    assert torch.equal(e(tokens, mask)[0], e()[0])
    assert ((e(-tokens, mask) - e(tokens, mask)).norm(dim=1) > 0.1).tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"width 3 .*token_dim=0"):
        ConditionEmbedding(8, 0)(torch.zeros(3), Conditioning(None, tokens, mask))


@pytest.mark.parametrize(
    ("cond_dim", "cond"),
    [(4, None), (4, Conditioning()), *((width, Conditioning(torch.zeros(2, 5))) for width in (4, 0))],
)
def test_a_vector_of_another_width_is_refused(cond_dim, cond):
    with pytest.raises(ValueError, match=f"cond_dim={cond_dim}"):
        ConditionEmbedding(8, cond_dim)(torch.zeros(2), cond)


@SCALES
def test_noise_level_and_condition_both_change_the_embedding(c_noise):
    """Even at the start, the changes due to σ and to c are of the same order as the embedding itself."""
    torch.manual_seed(0)
    embedding = ConditionEmbedding(64, 64)
    c = torch.randn(len(SIGMA), 64)
    with torch.no_grad():
        along_sigma = embedding(c_noise, Conditioning(c[:1].expand(len(SIGMA), -1))).vector
        along_c = embedding(c_noise[:1].expand(len(SIGMA)), Conditioning(c)).vector
    for e in (along_sigma, along_c):
        assert e.std(0).mean() > 0.2 * e.square().mean().sqrt()
    # The embedding is not a sum of a function of σ and one of c: the mixed difference is not zero.
    embedding, (a, b) = ConditionEmbedding(16, 4), torch.randn(2, 4)
    e = embedding(torch.tensor([-1.0, -1.0, 1.0, 1.0]), Conditioning(torch.stack([a, b, a, b]))).vector
    assert e.shape == (4, 16)
    assert (e[0] - e[1] - e[2] + e[3]).norm() > 0.05 * (e[0] - e[3]).norm()
