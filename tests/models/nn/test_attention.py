"""Self-attention between pixels: equal to the explicit sum, dependent on positions, twice differentiable."""

import torch
from flow_cases import perturb

from flowdiff.models.nn.attention import SelfAttention


def make() -> tuple[SelfAttention, torch.Tensor]:
    torch.manual_seed(0)
    block = perturb(SelfAttention(4, 6, 2).double())
    return block, torch.randn(2, 4, 2, 3, dtype=torch.float64)


def test_it_equals_the_explicit_sum():
    block, h = make()
    expected = []
    for sample in h:
        u = sample.reshape(4, 6).T + block.position
        q, k, v = (part.reshape(6, 2, 2) for part in block.inner(u).chunk(3, dim=1))  # 6 pixels, 2 heads of 2
        weights = torch.einsum("nhd,mhd->hnm", q, k).div(2**0.5).softmax(2)
        update = block.outer(torch.einsum("hnm,mhd->nhd", weights, v).reshape(6, 4))
        expected.append(sample + update.T.reshape(4, 2, 3))
    torch.testing.assert_close(block(h), torch.stack(expected), rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # the fused kernel
        torch.testing.assert_close(block(h), torch.stack(expected), rtol=1e-9, atol=1e-9)


def test_positions_matter():
    """Without positions, attention would map flipped images to flipped outputs."""
    block, h = make()
    assert (block(h.flip(3)) - block(h).flip(3)).abs().max() > 0.01


def test_derivatives():
    block, h = make()
    assert torch.autograd.gradcheck(block, h.requires_grad_())
    assert torch.autograd.gradgradcheck(block, h, fast_mode=True)
