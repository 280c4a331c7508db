"""What a run trains and leaves behind: a denoiser with its condition, its latent space and its way to sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.conditioning import Conditioning
from flowdiff.denoiser import Denoiser
from flowdiff.errors import ConfigurationError
from flowdiff.guidance import Guidance
from flowdiff.registry import build
from flowdiff.samplers.base import Callback, Sampler
from flowdiff.samplers.generate import Progress, generate
from flowdiff.schedules import Schedule


class ConditionedDenoiser(nn.Module):
    """A denoiser with what surrounds it: the conditioner, the first stage, and how its run samples by default.

    Itself a denoiser: called with (x, σ, cond), and with `network`, `score`, `log_prob` of the one inside.
    settings holds the config nodes `sampler`, `schedule`, `guidance` that `sample` falls back on, and `sigma_sampler`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: nn.Module,
        first_stage: nn.Module,
        to_uint8: Callable[[Tensor], Tensor],
        settings: Mapping[str, Mapping[str, Any]],
    ):
        super().__init__()
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.first_stage = first_stage
        self.to_uint8 = to_uint8
        self.settings = settings

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D(x, σ, c) for x (B, …), sigma (B,)."""
        return self.denoiser(x, sigma, cond)

    @property
    def network(self) -> nn.Module:
        """The network behind the scaling."""
        return self.denoiser.network

    @property
    def is_density(self) -> bool:
        """Whether log_prob exists."""
        return self.denoiser.is_density

    @property
    def sigma_data(self) -> Tensor:
        """Root mean square of the training data, a scalar."""
        return self.denoiser.sigma_data

    @property
    def num_classes(self) -> int | None:
        """Number of classes that `label` may name; None for an unconditional model."""
        return self.conditioner.num_classes

    def score(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """s = (D − x)/σ², like x."""
        return self.denoiser.score(x, sigma, cond)

    def log_prob(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """log p_σ(x|c) in nats (B,); NotADensity for a raw network."""
        return self.denoiser.log_prob(x, sigma, cond)

    def cond_of(self, label: Tensor) -> Conditioning | None:
        """The condition of labels (B,)."""
        return self.conditioner(label.to(self.sigma_data.device))

    def sample(
        self,
        n: int,
        *,
        label: int | Sequence[int] | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        schedule: Schedule | None = None,
        guidance: Callable[[ConditionedDenoiser], Guidance] | None = None,
        start: str = "noise",
        sigma_start: float | None = None,
        batch_size: int = 512,
        progress: Progress | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n samples in data space, (n, *shape); sample i of a seed is the same in every batch size.

        label: one class for all, one per sample, or None: every class in turn. sampler, schedule, guidance: the run's
        own unless given.
        """
        sampler = sampler or build("sampler", self.settings["sampler"])
        schedule = schedule or build("schedule", self.settings["schedule"])
        guide = guidance(self) if guidance else self.guided(self.settings["guidance"])
        labels = self.labels(n, label)
        trained = build("sigma_sampler", self.settings["sigma_sampler"])
        sigmas = None
        if start == "noise" and hasattr(trained, "nearest"):  # a model of discrete levels is asked at these only
            grid = schedule(sampler.num_steps)
            sigmas = torch.cat([trained.nearest(grid[:-1]), grid[-1:]])
        was_training = self.training
        self.eval()
        try:
            z = generate(
                guide,
                sampler,
                schedule,
                self.first_stage.latent_shape,
                n=n,
                seed=seed,
                cond_of=None if labels is None else lambda indices: self.cond_of(labels[list(indices)]),
                start=start,
                sigma_start=sigma_start,
                sigmas=sigmas,
                batch_size=batch_size,
                device=self.sigma_data.device,
                progress=progress,
                callback=callback,
            )
            with torch.no_grad():
                return torch.cat([self.first_stage.decode(part) for part in z.split(batch_size)])
        finally:
            self.train(was_training)

    def guided(self, node: Mapping[str, Any]) -> Guidance:
        """This denoiser behind the guidance that a config node describes."""
        if node["name"] != "none" and not self.conditioner.drop:
            raise ConfigurationError(
                f"guidance={node['name']} needs the null condition, and this model was trained without label dropout: "
                "train with conditioner=class and conditioner.drop > 0, or take guidance=none."
            )
        return build("guidance", node, denoiser=self, null=self.conditioner.null)

    def labels(self, n: int, label: int | Sequence[int] | None) -> Tensor | None:
        """The class of each of n samples, (n,), None for an unconditional model; ConfigurationError if out of range."""
        if self.num_classes is None:
            if label is not None:
                raise ConfigurationError(f"class_label={label} was given to an unconditional model: leave it out.")
            return None
        if label is None:
            return torch.arange(n) % self.num_classes
        given = torch.as_tensor(label).expand(n) if isinstance(label, int) else torch.as_tensor(label)
        if len(given) != n or bool(((given < 0) | (given >= self.num_classes)).any()):
            raise ConfigurationError(
                f"class_label={label} is out of range: this model knows the classes 0 … {self.num_classes - 1}."
            )
        return given
