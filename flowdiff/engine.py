"""The engine: where data, conditioner, first stage, denoiser and loss meet, and are trained.

One step:  x0 = encode(data), σ ~ p(σ), x = x0 + σ·noise, then the loss of D(x, σ, c).  Every random number of a step is
drawn from a generator seeded by (seed, batch index, rank), so that a resumed run repeats what it would have done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from flowdiff.conditioning import Conditioning
from flowdiff.data.base import Batch, DataModule
from flowdiff.denoiser import Denoiser
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.denoising import edm_loss, stratified_sigmas
from flowdiff.flows.base import Flow
from flowdiff.guidance import Guidance
from flowdiff.losses import Loss
from flowdiff.noise import randn_like, step_generator
from flowdiff.optimizers import Optimizer
from flowdiff.registry import build
from flowdiff.samplers.base import Callback, Sampler
from flowdiff.samplers.generate import Progress, generate
from flowdiff.schedules import Schedule

MEASURE_BATCH = 1024  # samples per chunk when statistics are measured
# First counters of the generators beside the training steps', which count from 0 (the data's shuffling has −1).
MEASURE, VALIDATION = -2, -3


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


class Engine(LightningModule):
    """Trains a ConditionedDenoiser by a loss at noise levels from a sigma sampler.

    data is the DataModule it was assembled for; `measure` takes sigma_data and the whitening's statistics from it.
    """

    def __init__(
        self,
        denoiser: ConditionedDenoiser,
        loss: Loss,
        sigma_sampler: Callable[..., Tensor],
        optimizer: Optimizer,
        data: DataModule,
        seed: int,
    ):
        super().__init__()
        self.denoiser = denoiser
        self.loss = loss
        self.sigma_sampler = sigma_sampler
        self.optimizer = optimizer
        self.data = data
        self.seed = seed
        self._mean_loss: dict[str, Tensor] = {}
        self._counted = 0

    def __getstate__(self) -> dict[str, Any]:
        # The weight average deep-copies the module: the data stays out of the copy.
        return {**super().__getstate__(), "data": None}

    @property
    def conditioner(self) -> nn.Module:
        """Labels → Conditioning."""
        return self.denoiser.conditioner

    @property
    def num_parameters(self) -> int:
        """Trainable numbers."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @torch.no_grad()
    def measure(self) -> float:
        """Measure sigma_data, and the whitening's statistics, on the whole training split; returns sigma_data."""
        self.data.prepare_data()
        self.data.setup()
        total, count = 0.0, 0
        for z in self._training_latents():
            total += float(z.double().square().sum())
            count += z.numel()
        self.denoiser.sigma_data.fill_((total / count) ** 0.5)
        whitening = getattr(self.denoiser.network, "whitening", None)
        if whitening is not None:
            whitening.fit(self._training_latents())
        return float(self.denoiser.sigma_data)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        generator = step_generator(self.seed, batch_idx, self.global_rank, device=self.device)
        x0 = self.data.to_model(batch.x, generator, train=True)
        z0 = self.denoiser.first_stage.encode(x0)
        cond = self.conditioner(batch.label, generator)
        sigma = self.sigma_sampler(len(z0), generator, self.device)
        noise = self.loss.draw_noise(z0, generator)
        output = self.loss(self.denoiser.denoiser, z0, sigma, noise, cond)
        loss = output.loss.mean()
        self._log_mean({"train_loss": loss, **{f"train_{k}": v.mean() for k, v in output.parts.items()}}, batch_idx)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The test loss on a test batch, whatever the training loss is: noise and σ are the same every time."""
        generator = step_generator(self.seed, VALIDATION, batch_idx, self.global_rank, device=self.device)
        z0 = self.denoiser.first_stage.encode(self.data.to_model(batch.x, generator))
        sigma = stratified_sigmas(len(z0), 1, batch_idx)[:, 0].to(z0)
        loss = edm_loss(self.denoiser, z0, sigma, randn_like(z0, generator), self.conditioner(batch.label))
        self.log("val_loss", loss.mean(), batch_size=len(z0), sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer.make([p for p in self.parameters() if p.requires_grad])
        scheduler = self.optimizer.scheduler(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mean_loss"] = {key: float(value) for key, value in self._mean_loss.items()}
        checkpoint["mean_loss_count"] = self._counted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._mean_loss = {k: torch.tensor(v, device=self.device) for k, v in checkpoint["mean_loss"].items()}
        self._counted = checkpoint["mean_loss_count"]

    def _log_mean(self, losses: dict[str, Tensor], batch_idx: int) -> None:
        """Log the mean over the batches since the last time, every trainer.log_every_n_steps optimiser steps."""
        for key, value in losses.items():
            value = value.detach()
            self._mean_loss[key] = self._mean_loss[key] + value if key in self._mean_loss else value
        self._counted += 1
        every = self.trainer.log_every_n_steps * self.trainer.accumulate_grad_batches
        if (batch_idx + 1) % every == 0:
            self.log_dict({k: v / self._counted for k, v in self._mean_loss.items()})
            self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
            self._mean_loss, self._counted = {}, 0

    def _training_latents(self) -> Iterator[Tensor]:
        split = self.data.train
        generator = step_generator(self.seed, MEASURE)
        for start in range(0, len(split), MEASURE_BATCH):
            x = self.data.to_model(split[start : start + MEASURE_BATCH].x, generator)
            yield self.denoiser.first_stage.encode(x.to(self.device))


def assemble(config: Mapping[str, Any]) -> Engine:
    """Build the engine that a checked, resolved config describes; touches no data file.

    Raises ConfigurationError where components do not fit each other or the data's shape.
    """
    data = build("dataset", config["dataset"])
    conditioner = build("conditioner", config["conditioner"], num_classes=data.num_classes)
    first_stage = build("first_stage", config["first_stage"], shape=data.shape)
    shape = first_stage.latent_shape
    parts: dict[str, Any] = {
        "shape": shape,
        "cond_dim": conditioner.dim,
        "token_dim": conditioner.token_dim,
        "num_classes": data.num_classes,
    }
    for group in ("activation", "whitening", "flow"):  # each may be taken by the next, and all by the network
        if group in config:
            parts[group] = build(group, config[group], **parts, embed_dim=config["network"].get("embed_dim"))
    weighting = {"weighting": build("weighting", config["weighting"])} if "weighting" in config else {}
    loss = build("loss", config["loss"], **weighting)
    network = build("network", config["network"], **parts, gradient=loss.gradient)
    if config["accelerator"]["compile"]:
        _compile(network)
    if "flow" in parts and loss.differentiates_score:
        _check_derivatives(parts["flow"], config["flow"]["name"], loss.gradient)
    return Engine(
        ConditionedDenoiser(
            Denoiser(network, build("scaling", config["scaling"])),
            conditioner,
            first_stage,
            data.values.to_uint8,  # not the data's own: the weight average deep-copies what the module holds
            {group: config[group] for group in ("sampler", "schedule", "guidance", "sigma_sampler")},
        ),
        loss,
        build("sigma_sampler", config["sigma_sampler"]),
        build("optimizer", config["optimizer"]),
        data,
        config["seed"],
    )


def _check_derivatives(flow: Flow, name: str, gradient: str) -> None:
    if gradient == "double_backward" and not flow.twice_differentiable:
        raise ConfigurationError(
            f"this loss differentiates the score, and flow={name} can be differentiated only once: take "
            "loss.gradient=directional, loss=nll or another flow."
        )
    if gradient == "forward_mode" and not flow.forward_differentiable:
        raise ConfigurationError(
            f"loss.gradient=forward_mode does not go with flow={name}, whose operations torch cannot differentiate "
            "forward: take loss.gradient=directional."
        )


def _compile(network: nn.Module) -> None:
    if hasattr(network, "log_prob"):
        network.log_prob = torch.compile(network.log_prob)
    else:
        network.compile()
