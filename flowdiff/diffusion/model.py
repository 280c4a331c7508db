"""What a run trains and leaves behind: a denoiser with its condition, its latent space and its way to sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.guidance import Guidance
from flowdiff.diffusion.samplers.base import Callback, Sampler
from flowdiff.diffusion.samplers.generate import Progress, generate
from flowdiff.diffusion.schedules import Schedule
from flowdiff.diffusion.sigma_samplers import SigmaSampler
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators
from flowdiff.registry import create, completed

ROUNDING = 1e-5  # of the ends of a range that was computed in float32
MEASURED = 2**31 - 1  # seed of the trajectories that a schedule is measured on; samples have smaller ones as a rule


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
        self.levels_file: Path | None = None  # of the run folder, for what schedule=optimal measures on these weights
        self.evaluations = 0  # samples the network has been asked about by the methods below, each time anew

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D(x, σ, c) for x (B, …), sigma (B,)."""
        self.evaluations += len(x)
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
    def is_autoencoder(self) -> bool:
        """Whether the network is an autoencoder, which denoises nothing and has a prior to sample from."""
        return hasattr(self.network, "reconstruct")

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

    def log_prob_and_denoised(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p_σ(x|c) in nats (B,) and D like x, from one evaluation; NotADensity for a raw network."""
        self.evaluations += len(x)
        return self.denoiser.log_prob_and_denoised(x, sigma, cond)

    def class_log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(c|x, σ) of every class, (B, C) nats, of network=classifier."""
        self.evaluations += len(x)
        return self.network.class_log_prob(x, sigma)

    def cond_of(self, label: Tensor) -> Conditioning | None:
        """The condition of labels (B,)."""
        return self.conditioner(label.to(self.sigma_data.device))

    @torch.no_grad()
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
        indices: range | None = None,
        progress: Progress | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """n samples in data space, (n, *shape); sample i of a seed is the same in every batch size.

        An autoencoder has a prior to draw from, and nothing of sampler, schedule, guidance, start and callback.
        label: one class for all, one per sample, or None: every class in turn. sampler, schedule, guidance: the run's
        own unless given. indices: which of the samples 0 … n − 1 to draw, None for all of them.
        Raises ConfigurationError for what does not fit the model, among it a sigma_start that it was not trained at.
        """
        if self.is_autoencoder:
            return self._from_prior(range(n) if indices is None else indices, seed, batch_size, progress)
        sampler = sampler or create("sampler", self.settings["sampler"])
        schedule = schedule or create("schedule", self.settings["schedule"])
        guide = guidance(self) if guidance else self.guided(self.settings["guidance"])
        labels = self.labels(n, label)
        if sigma_start is not None:
            check_trained_at(sigma_start, create("sigma_sampler", self.settings["sigma_sampler"]))
        was_training = self.training
        self.eval()
        try:
            if hasattr(schedule, "fitted"):  # to a model, as `optimal` is
                schedule = schedule.fitted(self._walk, self.levels_file)
            sigmas = self._known(schedule(sampler.num_steps)) if start == "noise" else None
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
                indices=indices,
                device=self.sigma_data.device,
                progress=progress,
                callback=callback,
            )
            return self.first_stage.decode(z)
        finally:
            self.train(was_training)

    @torch.no_grad()
    def _from_prior(self, indices: range, seed: int, batch_size: int, progress: Progress | None) -> Tensor:
        """Samples of an autoencoder's prior, (len(indices), *shape)."""
        batches = []
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]
            z = self.network.from_prior(len(batch), generators(seed, batch))
            batches.append(self.first_stage.decode(z))
            self.evaluations += len(batch)
            if progress is not None:
                progress(first + len(batch), len(indices))
        return torch.cat(batches)

    def _known(self, grid: Tensor) -> Tensor:
        """A grid as this model can be asked: one of discrete levels at these only, rounded in ln σ."""
        trained = create("sigma_sampler", self.settings["sigma_sampler"])
        return torch.cat([trained.nearest(grid[:-1]), grid[-1:]]) if hasattr(trained, "nearest") else grid

    def _walk(self, sigmas: Tensor, n: int, callback: Callback) -> Tensor:
        """Trajectories for a schedule to measure: in latent space, unguided, of every class in turn."""
        labels = self.labels(n, None)
        return generate(
            self.denoiser,  # whose calls are not counted as those of samples
            create("sampler", "dpmpp_2m"),
            None,
            self.first_stage.latent_shape,
            n=n,
            seed=MEASURED,
            cond_of=None if labels is None else lambda indices: self.cond_of(labels[list(indices)]),
            sigmas=self._known(sigmas),
            batch_size=n,
            device=self.sigma_data.device,
            callback=callback,
        )

    def guided(self, node: Mapping[str, Any]) -> Guidance:
        """This denoiser behind the guidance that a config node describes; ConfigurationError where they do not fit."""

        def load(run: str) -> ConditionedDenoiser:
            from flowdiff import api  # upwards: reading a run takes all that makes one

            guide = api.load(run, self.sigma_data.device)
            ours, theirs = self.first_stage, guide.first_stage
            if ours.latent_shape == theirs.latent_shape and not ours.shares_space(theirs):
                raise ConfigurationError(
                    f"guidance.run={run} lives in the latents of another autoencoder than the model to be guided: give "
                    "a run behind the same one."
                )
            return guide

        every = None if self.num_classes is None else torch.arange(self.num_classes)
        return create(
            "guidance",
            node,
            denoiser=self,
            null=self.conditioner.null if self.conditioner.drop else None,
            classes=None if every is None else lambda: self.cond_of(every),
            num_classes=self.num_classes,
            shape=self.first_stage.latent_shape,
            load=load,
            guided=lambda inner: self.guided(_whole(inner)),
        )

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


def _whole(inner: Mapping[str, Any]) -> dict[str, Any]:
    """The node of a guidance of which only some settings were given; ConfigurationError if it does not say which."""
    if "name" not in inner:
        raise ConfigurationError(
            f"guidance.inner={dict(inner)} does not say which guidance: give it a name, e.g. {{name: cfg, scale: 2}}."
        )
    return completed("guidance", inner)


def check_trained_at(sigma: float, trained: SigmaSampler) -> None:
    """Raise ConfigurationError for a noise level that this law of training noise levels never gives in float32."""
    margin = torch.finfo(torch.float32).eps / 2
    low, high = trained.quantile(torch.tensor([margin, 1 - margin])).tolist()
    if not low * (1 - ROUNDING) <= sigma <= high * (1 + ROUNDING):
        raise ConfigurationError(
            f"a start at sigma={sigma:g} is not allowed: this model was trained at {low:.3g} … {high:.3g} and knows "
            "nothing of other noise levels; take a sigma_start among these."
        )
