"""Guidance: denoisers that wrap a denoiser, so that samplers never know of it.

A guide leads D_c = D(x, σ, c) away from a reference D_r that knows less,

    D_w = D_r + w·(D_c − D_r),

whose score is ∇ₓ log p(x|c) + (w − 1)·∇ₓ log [p(x|c)/p_r(x)]: D_c itself at w = 1, above it what sets p(x|c) apart is
exaggerated. The guides differ in D_r alone:

    cfg              D(x, σ, ∅)                       the model without its condition
    autoguidance     D_weak(x, σ, c)                  a weaker model
    classifier       D_c − σ²·∇ₓ log p(c|x, σ)        D(x, σ, ∅) by Bayes' rule, from a classifier
    flow_classifier  Σ_k p(k|x, σ)·D(x, σ, k)         the same, from the posterior of the conditional flow itself

Every guide may be kept in bounds, in this order, which is the only one (flowdiff/diffusion/guidance/limits.py):

    rescale            D ← φ·(std D_c/std D)·D + (1 − φ)·D
    dynamic_threshold  D ← clip(D, −s, s)/s,  s = max(1, quantile of |D|)
    interval           all of this for σ in [low, high] only; D = D_c elsewhere

Guides stand around guides: what `inner` describes is D_c for autoguidance and classifier, as in

    guidance=autoguidance guidance.run=<weaker run> guidance.inner='{name: cfg, scale: 2}'

cfg and flow_classifier are innermost, as they ask the model about other conditions than c. Each has its own bounds.
"""

from flowdiff.diffusion.guidance.base import Guidance, Guide

__all__ = ["Guidance", "Guide"]
