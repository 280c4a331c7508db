"""The first-order parameter gradient of a score loss equals the gradient by double backward."""

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal, score_flow_of

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.models.conditioning import Conditioning

EMBED, COND = 16, 5
SHAPE = (1, 4, 4)
FLOWS = ["linear_activation", "realnvp", "tarflow"]
LOSSES = ["denoising", "score_matching", "hybrid"]


def denoiser(flow, gradient, dtype):
    made = flow_of(flow, SHAPE, EMBED, act="softplus", hidden=16, deep_layers=1)
    network = score_flow_of(made, SHAPE, embed_dim=EMBED, cond_dim=COND, gradient=gradient)
    # With a larger gain tarflow's density has such high derivatives that the O(h²) error is 5 % (gain 0.3, float32).
    far = perturb(network, gain=0.1 if flow == "tarflow" else 0.3)
    return Denoiser(far, registry.create("scaling", "score")).to(dtype).train()


def gradients(flow, loss, gradient, dtype):
    """The loss, and its gradient in all parameters and in the condition as one vector."""
    model = denoiser(flow, gradient, dtype)
    (x0, noise), normal_sigma, vector = (t.to(dtype) for t in normal((2, 32, *SHAPE), (32,), (32, COND)))
    sigma, vector = torch.exp(1.2 * normal_sigma - 1.2), vector.requires_grad_()
    objective = registry.create("loss", loss, weighting=registry.create("weighting", "edm"))
    output = objective(model, 0.5 * x0, sigma, noise, Conditioning(vector)).loss
    wanted = [*model.parameters(), vector]
    found = torch.autograd.grad(output.mean(), wanted, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]
    return output.detach(), torch.cat([g.flatten() for g in parts])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("flow", FLOWS)
# The error is rounding over the step plus O(h²). In float32, h = 0.02·σ, rounding decides: tarflow has 1e-4 to 3e-4,
# depending on how the processor adds, and O(h²) is 3e-5. In float64 it is the same with h = 1e-4·σ.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-4), (torch.float64, 1e-6)])
def test_central_difference(flow, loss, dtype, tolerance):
    value, exact = gradients(flow, loss, "double_backward", dtype)
    same, found = gradients(flow, loss, "directional", dtype)
    assert torch.allclose(value, same)
    assert (found - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("flow", ["linear_activation", "realnvp"])
def test_forward_mode_is_exact(flow):
    _, exact = gradients(flow, "denoising", "double_backward", torch.float64)
    _, found = gradients(flow, "denoising", "forward_mode", torch.float64)
    assert (found - exact).norm() < 1e-12 * exact.norm()


def test_samples_that_the_loss_ignores_add_no_gradient():
    """v = 0 for some samples: the direction v/‖v‖ must not become NaN."""
    model = denoiser("realnvp", "directional", torch.float64)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    sigma, cond = torch.full((3,), 0.5, dtype=torch.float64), torch.zeros(3, COND, dtype=torch.float64)
    score = model.score(x, sigma, Conditioning(cond))
    mask = torch.tensor([1.0, 0.0, 0.0])[:, None, None, None]
    found = torch.autograd.grad((score * mask).sum(), model.network.embedding.mix.weight)[0]
    alone = model.score(x[:1], sigma[:1], Conditioning(cond[:1]))
    expected = torch.autograd.grad(alone.sum(), model.network.embedding.mix.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_the_gradient_with_a_base_of_classes_uses_the_labels():
    x, noise = normal((2, 9, 6), seed=4)[0].double().unbind(0)
    label = torch.arange(9) % 3
    flow = flow_of("realnvp", (6,), EMBED)
    network = score_flow_of(flow, (6,), embed_dim=EMBED, num_classes=3, components=2).double()
    network.fit([x + label[:, None]])
    network.fit_classes([(x + label[:, None], label)])
    network, found = perturb(network, gain=0.3).train(), []
    for network.gradient in ("double_backward", "forward_mode"):
        score = network(noise, torch.full((9,), 0.5, dtype=torch.float64), Conditioning(label=label))
        grads = torch.autograd.grad(score.square().sum(), list(network.parameters()), allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads if g is not None]))
    assert (found[1] - found[0]).norm() < 1e-12 * found[0].norm()
