"""Samplers as k-diffusion and diffusers have them, called the way this project's are: a denoiser, x, a grid.

`CASES` names what there is and what it is to be equal to here. A `Case` gives the grid it walks and, on that grid,
their samples: `sigmas(num_steps)` and `samples(denoiser, x, sigmas)`, x at noise level sigmas[0] in data units.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowdiff import registry

Denoiser = Callable[[Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """One public sampler: its package, its name there, ours with its settings, its grid and how it samples."""

    package: str
    theirs: str
    ours: str
    settings: dict[str, Any]
    sigmas: Callable[[int], Tensor]
    samples: Callable[[Denoiser, Tensor, Tensor], Tensor]

    def __str__(self) -> str:
        return f"{self.package}-{self.theirs}"


@cache
def k_diffusion() -> types.ModuleType | None:
    """k_diffusion.sampling, None where it is not installed.

    The package's own __init__ would import its models and metrics too, and with clip a setuptools that has been gone
    since: an empty package of the same name and place stands in for it.
    """
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        return None
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules.setdefault("k_diffusion", package)
    return importlib.import_module("k_diffusion.sampling")


def _karras(num_steps: int) -> Tensor:
    return registry.create("schedule", "karras")(num_steps)


def _karras_above_zero(num_steps: int) -> Tensor:
    return _karras(num_steps)[:-1]


def _k(function: str, denoiser: Denoiser, x: Tensor, sigmas: Tensor, **settings: Any) -> Tensor:
    return getattr(k_diffusion(), function)(denoiser, x, sigmas, disable=True, **settings)


def _scheduler(name: str, num_steps: int, settings: dict[str, Any]) -> Any:
    """A diffusers scheduler with its grid of `num_steps` steps."""
    import diffusers

    scheduler = getattr(diffusers, name)(1000, **settings)
    scheduler.set_timesteps(num_steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # rounded timesteps may repeat, and then name no unique step
    return scheduler


def _table_grid(name: str, settings: dict[str, Any], num_steps: int) -> Tensor:
    """The levels of a scheduler that counts in steps of its table: DDIM, DDPM."""
    scheduler = _scheduler(name, num_steps, settings)
    sigmas = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()[scheduler.timesteps]
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _sigma_grid(name: str, settings: dict[str, Any], num_steps: int) -> Tensor:
    """The levels of a scheduler that keeps them, each once (diffusers' heun holds them twice)."""
    return torch.unique(_scheduler(name, num_steps, settings).sigmas.double()).flip(0)


def _preserving(name: str, settings: dict[str, Any], denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Schedulers in variance-preserving coordinates, x_VP = x/√(σ²+1)."""
    scheduler = _scheduler(name, len(sigmas) - 1, settings | {"prediction_type": "sample"})
    x_vp = x / (sigmas[0] ** 2 + 1).sqrt()
    random = {"generator": torch.Generator().manual_seed(1)} if name == "DDPMScheduler" else {}
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        denoised = denoiser(x_vp * (sigma**2 + 1).sqrt(), x.new_full((len(x),), float(sigma)))
        x_vp = scheduler.step(denoised.to(x), t, x_vp, **random).prev_sample
    return x_vp * (sigmas[-1] ** 2 + 1).sqrt()


def _exploding(name: str, settings: dict[str, Any], denoiser: Denoiser, x: Tensor, sigmas: Tensor) -> Tensor:
    """Schedulers in variance-exploding coordinates, their network predicting the noise."""
    scheduler = _scheduler(name, len(sigmas) - 1, settings)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)  # for its other purpose, to find the place in the grid
        sigma = scheduler.sigmas[scheduler.step_index].double()
        eps = (x - denoiser(x, x.new_full((len(x),), float(sigma)))) / sigma
        x = scheduler.step(eps.to(x), t, x).prev_sample
    return x


def _k_case(function: str, ours: str, settings: dict[str, Any], grid: Callable = _karras, **theirs: Any) -> Case:
    return Case("k-diffusion", function, ours, settings, grid, partial(_k, function, **theirs))


def _diffusers_case(label: str, name: str, ours: str, settings: dict[str, Any], theirs: dict[str, Any]) -> Case:
    by_table = name in ("DDIMScheduler", "DDPMScheduler")
    grid = _table_grid if by_table else _sigma_grid
    preserving = by_table or name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    walk = _preserving if preserving else _exploding
    return Case("diffusers", label, ours, settings, partial(grid, name, theirs), partial(walk, name, theirs))


def _multistep(order: int) -> dict[str, Any]:
    kind = "midpoint" if order == 2 else "heun"
    return {"solver_order": order, "solver_type": kind, "use_karras_sigmas": True, "final_sigmas_type": "zero"}


NO_NOISE = {"eta": 0.0}
TRAILING = {"clip_sample": False, "timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
# with bh1 theirs is no number at σ' = 0
ENDS = {"bh1": {"final_sigmas_type": "sigma_min"}, "bh2": {"final_sigmas_type": "zero"} | KARRAS}
CASES = [
    _k_case("sample_euler", "euler", {}),
    _k_case("sample_heun", "heun", {}),
    _k_case("sample_dpm_2", "dpm_solver_2", {}),
    _k_case("sample_dpmpp_2s_ancestral", "dpmpp_2s", {}, eta=0.0),
    _k_case("sample_dpmpp_2m", "dpmpp_2m", {}),
    # theirs extrapolates to σ' = 0, where every method here is x' = D
    _k_case("sample_lms", "lms", {}, _karras_above_zero),
    _diffusers_case("DDIM", "DDIMScheduler", "ddim", {}, TRAILING),
    _diffusers_case("DDPM", "DDPMScheduler", "ddpm", {}, TRAILING | {"variance_type": "fixed_small"}),
    _diffusers_case("DPM-Solver 1", "DPMSolverMultistepScheduler", "dpm_solver_1", {}, _multistep(1)),
    _diffusers_case("DPM-Solver 2", "DPMSolverMultistepScheduler", "dpmpp_2m", {}, _multistep(2)),
    _diffusers_case("DPM-Solver 3", "DPMSolverMultistepScheduler", "dpmpp_3m_sde", NO_NOISE, _multistep(3)),
    *(
        _diffusers_case(
            f"UniPC {order} {variant}",
            "UniPCMultistepScheduler",
            "unipc",
            {"order": order, "variant": variant},
            {"solver_order": order, "solver_type": variant} | ENDS[variant],
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    ),
    _diffusers_case("Heun", "HeunDiscreteScheduler", "heun", {}, KARRAS),
    _diffusers_case("Euler", "EulerDiscreteScheduler", "euler", {}, KARRAS),
]


def difference(case: Case, denoiser: Denoiser, noise: Tensor, num_steps: int) -> float:
    """‖ours − theirs‖/‖theirs‖ from the same noise on their grid of `num_steps` steps; noise standard normal."""
    sigmas = case.sigmas(num_steps)
    x = float(sigmas[0]) * noise
    theirs = case.samples(lambda x, sigma, **_: denoiser(x, sigma), x, sigmas.to(x))
    sampler = registry.create("sampler", case.ours, num_steps=num_steps, **case.settings)
    ours = sampler(lambda x, sigma, cond: denoiser(x, sigma), x, sigmas, generator=torch.Generator().manual_seed(1))
    return float((ours - theirs).norm() / theirs.norm())
