"""Training objectives, per sample and per dimension (D = prod(shape)), of x = x0 + σ·noise.

    denoising       w(σ)·‖D(x) − x0‖²/D                        (or ‖·‖₁)
    score_matching  σ²·‖s(x) − (x0 − x)/σ²‖²/D
    nll             −w(σ)·log p_σ(x|c)/D                       nats per dimension at w = 1, first-order only
    hybrid          denoising + λ·nll
    cross_entropy   −log p(c|x, σ)                             nats per sample, for a classifier
    elbo            (−log p(x|ℓ) + β·KL(q(ℓ|x) ‖ N(0, I)))/D   nats per dimension, for an autoencoder; x has no noise

With first_stage.train=true the loss of the latents is the first of two terms:

    LearnedPrior    loss(z) − (log p(x|ℓ) + log p_σmin(z|c) − log q(z|x))/D,   D of the image

Every loss of a density takes a second term, which ties the densities of all σ to one diffusion:

    OneDiffusion    loss + λ·(σR)²/D,   R = ∂_σ log p − σ·(Δ log p + ‖∇ log p‖²),   λ = loss.fokker_planck

Losses that differentiate the score of a flow take that derivative by `gradient`: by double backward, or by one of the
first-order forms of flowdiff/models/nn/directional.py, which need less memory.
"""
