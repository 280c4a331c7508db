"""Posteriors: draws of a clean sample x0 given a measurement y = A·x0 + σ_y·noise, with a model as the prior.

    p(x0|y) ∝ p(x0)·N(y; A·x0, σ_y²·I)

Most methods steer the denoiser (flowdiff/diffusion/posteriors/steering.py): they put an estimate of E[x0|x, y] in the
place of D = E[x0|x], and every sampler then draws from an estimate of p(x0|y),

    D_y = D + σ²·∇ₓ log p(y|x),    p(y|x) = ∫ N(y; A·x0, σ_y²·I) p(x0|x) dx0.

They differ in what they take for p(x0|x). A network knows its mean, D, and its covariance, σ²·∂D/∂x:

    dps          all of it at D                     a gradient of fixed length
    pigdm        N(D, r²·I), r² from σ alone        exact for white Gaussian data
    mmps         N(D, σ²·∂D/∂x)                     exact for Gaussian data
    replacement  N(D, σ²·I), D taken for constant   no derivative of D
    repaint      the same, with every step repeated

A density has p_σ(x) itself, so p_σ(x)·N(y; A·x, σ_y²·I) is known up to a constant, and Markov chains draw from it
exactly, in the space of the base points z (flowdiff/diffusion/posteriors/chains.py): hmc and mala.
"""

from flowdiff.diffusion.posteriors.base import Drawing, Draws, Posterior

__all__ = ["Drawing", "Draws", "Posterior"]
