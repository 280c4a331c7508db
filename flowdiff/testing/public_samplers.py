"""The samplers of k-diffusion and diffusers behind one interface, to compare this package's samplers with them.

Each entry of `CASES` names a public sampler and the sampler here that must give the same samples. k-diffusion is
optional: pip install torchsde && pip install --no-deps k-diffusion
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

DenoiserFunction = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) → D, in data units
BY_TABLE = ("DDIMScheduler", "DDPMScheduler")  # these count in steps of a table of levels


class Case(NamedTuple):
    """One public sampler and its equal here.

    Attributes:
        package: k-diffusion or diffusers.
        theirs: the sampler's name in that package.
        ours: the registered name of the sampler here.
        settings: hyperparameters of the sampler here that differ from its YAML.
        sigmas: number of steps → the noise levels that the public sampler uses.
        samples: (denoiser, x, sigmas) → its samples; x is at noise level sigmas[0], in data units.
    """

    package: str
    theirs: str
    ours: str
    settings: dict[str, Any]
    sigmas: Callable[[int], Tensor]
    samples: Callable[[DenoiserFunction, Tensor, Tensor], Tensor]

    def __str__(self) -> str:
        return f"{self.package}-{self.theirs}"


@cache
def k_diffusion() -> types.ModuleType | None:
    """The module k_diffusion.sampling, or None if the package is not installed.

    The package's own __init__ also imports its models, its metrics and clip, which needs a part of setuptools that no
    longer exists. An empty package with the same name and path takes its place.
    """
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        return None
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules.setdefault("k_diffusion", package)
    return importlib.import_module("k_diffusion.sampling")


def _karras(num_steps: int) -> Tensor:
    return registry.create("schedule", "karras")(num_steps)


def _karras_above_zero(num_steps: int) -> Tensor:
    return _karras(num_steps)[:-1]


def _k(function: str, denoiser: DenoiserFunction, x: Tensor, sigmas: Tensor, **settings: Any) -> Tensor:
    return getattr(k_diffusion(), function)(denoiser, x, sigmas, disable=True, **settings)


def _scheduler(name: str, num_steps: int, settings: dict[str, Any]) -> Any:
    """A diffusers scheduler that is set to `num_steps` steps."""
    import diffusers

    scheduler = getattr(diffusers, name)(1000, **settings)
    scheduler.set_timesteps(num_steps)
    if name not in BY_TABLE:
        scheduler.set_begin_index(0)  # it cannot find its step by a rounded timestep, which may repeat
    return scheduler


def _table_grid(name: str, settings: dict[str, Any], num_steps: int) -> Tensor:
    """The levels of a scheduler in BY_TABLE."""
    scheduler = _scheduler(name, num_steps, settings)
    sigmas = (1 / scheduler.alphas_cumprod.double() - 1).sqrt()[scheduler.timesteps]
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _sigma_grid(name: str, settings: dict[str, Any], num_steps: int) -> Tensor:
    """The levels that a scheduler stores, each once: diffusers' Heun stores them twice."""
    return torch.unique(_scheduler(name, num_steps, settings).sigmas.double()).flip(0)


def _preserving(name: str, settings: dict[str, Any], denoiser: DenoiserFunction, x: Tensor, sigmas: Tensor) -> Tensor:
    """Samples of a scheduler in variance-preserving coordinates, x_VP = x/√(σ²+1)."""
    scheduler = _scheduler(name, len(sigmas) - 1, settings | {"prediction_type": "sample"})
    x_vp = x / (sigmas[0] ** 2 + 1).sqrt()
    random = {"generator": torch.Generator().manual_seed(1)} if name == "DDPMScheduler" else {}
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        denoised = denoiser(x_vp * (sigma**2 + 1).sqrt(), x.new_full((len(x),), float(sigma)))
        x_vp = scheduler.step(denoised.to(x), t, x_vp, **random).prev_sample
    return x_vp * (sigmas[-1] ** 2 + 1).sqrt()


def _exploding(name: str, settings: dict[str, Any], denoiser: DenoiserFunction, x: Tensor, sigmas: Tensor) -> Tensor:
    """Samples of a scheduler in variance-exploding coordinates, whose network predicts the noise."""
    scheduler = _scheduler(name, len(sigmas) - 1, settings)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)  # this sets step_index
        sigma = scheduler.sigmas[scheduler.step_index].double()
        eps = (x - denoiser(x, x.new_full((len(x),), float(sigma)))) / sigma
        x = scheduler.step(eps.to(x), t, x).prev_sample
    return x


def _k_case(function: str, ours: str, settings: dict[str, Any], grid: Callable = _karras, **theirs: Any) -> Case:
    return Case("k-diffusion", function, ours, settings, grid, partial(_k, function, **theirs))


def _diffusers_case(label: str, name: str, ours: str, settings: dict[str, Any], theirs: dict[str, Any]) -> Case:
    grid = _table_grid if name in BY_TABLE else _sigma_grid
    preserving = name in BY_TABLE or name in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
    walk = _preserving if preserving else _exploding
    return Case("diffusers", label, ours, settings, partial(grid, name, theirs), partial(walk, name, theirs))


def _multistep(order: int) -> dict[str, Any]:
    kind = "midpoint" if order == 2 else "heun"
    return {"solver_order": order, "solver_type": kind, "use_karras_sigmas": True, "final_sigmas_type": "zero"}


NO_NOISE = {"eta": 0.0}
TRAILING = {"clip_sample": False, "timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
# at σ' = 0 theirs is NaN with bh1
ENDS: dict[str, dict[str, Any]] = {
    "bh1": {"final_sigmas_type": "sigma_min"},
    "bh2": {"final_sigmas_type": "zero"} | KARRAS,
}
CASES = [
    _k_case("sample_euler", "euler", {}),
    _k_case("sample_heun", "heun", {}),
    _k_case("sample_dpm_2", "dpm_solver_2", {}),
    _k_case("sample_dpmpp_2s_ancestral", "dpmpp_2s", {}, eta=0.0),
    _k_case("sample_dpmpp_2m", "dpmpp_2m", {}),
    # theirs extrapolates to σ' = 0, where every method here sets x' = D
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


def difference(case: Case, denoiser: DenoiserFunction, noise: Tensor, num_steps: int) -> float:
    """‖ours − theirs‖/‖theirs‖ from the same standard normal noise, on the public sampler's noise levels."""
    sigmas = case.sigmas(num_steps)
    x = float(sigmas[0]) * noise
    theirs = case.samples(lambda x, sigma, **_: denoiser(x, sigma), x, sigmas.to(x))
    sampler = registry.create("sampler", case.ours, num_steps=num_steps, **case.settings)
    ours = sampler(lambda x, sigma, cond: denoiser(x, sigma), x, sigmas, generator=torch.Generator().manual_seed(1))
    return float((ours - theirs).norm() / theirs.norm())
