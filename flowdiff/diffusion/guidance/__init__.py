"""Guidance: a denoiser that wraps a denoiser, so that samplers need not know about it.

A guide moves D_c = D(x, σ, c) away from a reference D_r that knows less,

    D_w = D_r + w·(D_c − D_r),

whose score is ∇ₓ log p(x|c) + (w − 1)·∇ₓ log [p(x|c)/p_r(x)]. At w = 1 it is D_c itself; above 1 it exaggerates what
distinguishes p(x|c) from p_r(x). The guides differ in D_r alone:

    cfg              D(x, σ, ∅)                       the model without its condition
    autoguidance     D_weak(x, σ, c)                  a weaker model
    classifier       D_c − σ²·∇ₓ log p(c|x, σ)        D(x, σ, ∅) by Bayes' rule, from a classifier
    flow_classifier  Σ_k p(k|x, σ)·D(x, σ, k)         the same, from the posterior of the conditional flow itself

Every guide may have limits (flowdiff/diffusion/guidance/limits.py), which are applied in this order:

    rescale            D ← φ·(std D_c/std D)·D + (1 − φ)·D
    dynamic_threshold  D ← clip(D, −s, s)/s,  s = max(1, quantile of |D|)
    interval           guide only for σ in [low, high]; D = D_c elsewhere

A guide may wrap another one: `inner` describes the guidance that gives D_c for autoguidance and classifier, as in

    guidance=autoguidance guidance.run=<weaker run> guidance.inner='{name: cfg, scale: 2}'

cfg and flow_classifier must be innermost, because they ask the model about other conditions than c. Each guide has its
own limits.
"""

from flowdiff.diffusion.guidance.base import Guidance, Guide

__all__ = ["Guidance", "Guide"]
