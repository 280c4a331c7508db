"""The engine: where data, conditioner, first stage, denoiser and loss meet, and are trained.

One step:  z0 ~ encode(data), σ ~ p(σ), z = z0 + σ·noise, then the loss of D(z, σ, c).  Of an autoencoder that is
trained, too, the encoding is left to the loss.  Every random number of a step is drawn from a generator seeded by
(seed, batch index, rank), so that a resumed run repeats what it would have done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flowdiff.data.base import Batch, DataModule
from flowdiff.data.latents import as_seen_by
from flowdiff.data.readers import centred, evenly
from flowdiff.diffusion.losses.base import Loss
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation.denoising import loss_of_test, stratified_sigmas
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import randn_like, step_generator
from flowdiff.training.assembly import assemble
from flowdiff.training.divergence import Found, Sentinel, is_fused, locate, take
from flowdiff.training.optimizers import Optimizer

MEASURE_BATCH = 1024  # samples per chunk when statistics are measured
MEASURE_IMAGES = 256  # training images that the scale of a pretrained decoder's errors is measured on
# First counters of the generators beside the training steps', which count from 0 (the data's shuffling has −1).
MEASURE, VALIDATION = -2, -3


class Drawn(NamedTuple):
    """What a loss is of: clean latents, or the images where these are encoded in the loss, (B, …), σ (B,), its noise
    (B, …), and the condition.
    """

    x0: Tensor
    sigma: Tensor
    noise: Tensor
    cond: Conditioning | None


class Engine(LightningModule):
    """Trains a ConditionedDenoiser by a loss at noise levels from a sigma sampler.

    data is the DataModule it was assembled for, latents the same as the first stage sees it.
    `measure` takes sigma_data and the whitening's statistics from these.
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
        self.latents = as_seen_by(denoiser.first_stage, data)
        self.seed = seed
        self.sentinel = Sentinel()
        self._batch_idx = 0
        self._mean_loss: dict[str, Tensor] = {}
        self._counted = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Engine:
        """The engine that a checked, resolved config describes; ConfigurationError where its parts do not fit."""
        return cls(*assemble(config), config["seed"])

    def __getstate__(self) -> dict[str, Any]:
        # The weight average deep-copies the module: the data stays out of the copy.
        return {**super().__getstate__(), "data": None, "latents": None}

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
        """Measure sigma_data, and the whitening's statistics, on the whole training split; returns sigma_data.

        Behind an autoencoder the data are encoded first, where they are not yet, and the scale of latents is measured.
        All of it is of the latents as they are now and stays: of an autoencoder that is trained it is the size of its
        first latents, which scalings and weightings go by, and the Gaussian that the flow begins as.
        """
        self.latents.prepare_data()
        self.latents.setup()
        first_stage = self.denoiser.first_stage
        if not first_stage.is_identity:
            images = centred(self.data, self.data.train[evenly(len(self.data.train), MEASURE_IMAGES)].x)
            first_stage.fit(self.latents.posteriors(MEASURE_BATCH), images)
        total, count = 0.0, 0
        for z in self._training_latents():
            total += float(z.double().square().sum())
            count += z.numel()
        self.denoiser.sigma_data.fill_((total / count) ** 0.5)
        whitening = getattr(self.denoiser.network, "whitening", None)
        if whitening is not None:
            whitening.fit(self._training_latents())
        return float(self.denoiser.sigma_data)

    def train_dataloader(self) -> DataLoader:
        return self.latents.train_dataloader(*self._place())

    def val_dataloader(self) -> DataLoader:
        return self.latents.test_dataloader(*self._place())

    def draw(self, batch: Batch, batch_idx: int) -> Drawn:
        """A training batch with its noise: the same whenever it is drawn."""
        generator = step_generator(self.seed, batch_idx, self.global_rank, device=self.device)
        seen = self.data if self.denoiser.first_stage.trained else self.latents
        x0 = seen.to_model(batch.x, generator, train=True)
        cond = self.conditioner(batch.label, generator)
        sigma = self.sigma_sampler(len(x0), generator, self.device)
        return Drawn(x0, sigma, self.loss.draw_noise(x0, generator), cond)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._batch_idx = batch_idx
        output = self.loss.at(self.global_step)(self.denoiser.denoiser, *self.draw(batch, batch_idx))
        loss = output.loss.mean()
        self._log_mean({"train_loss": loss, **{f"train_{k}": v.mean() for k, v in output.parts.items()}}, batch_idx)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The test loss on a test batch, whatever the training loss is: noise and σ are the same every time."""
        generator = step_generator(self.seed, VALIDATION, batch_idx, self.global_rank, device=self.device)
        z0 = self.latents.to_model(batch.x, generator)
        sigma = stratified_sigmas(len(z0), 1, batch_idx)[:, 0].to(z0)
        loss = loss_of_test(self.denoiser, z0, sigma, randn_like(z0, generator), self.conditioner(batch.label))
        self.log("val_loss", loss.mean(), batch_size=len(z0), sync_dist=True)

    def on_before_backward(self, loss: Tensor) -> None:
        self.sentinel.hear(loss)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is told to, by a norm that is taken once, for the sentinel's sake as well."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and is_fused(optimizer):
            scaler.unscale_(optimizer)  # Lightning leaves that to a fused optimiser, which comes too late for clipping
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        if scaler is not None:  # it tries scales at which float16 overflows, and keeps such steps from the optimiser
            norm = torch.zeros_like(norm)
        self.sentinel.judge(norm, self.trainer.global_step + 1, self._batch_idx, optimizer if scaler is None else None)

    def account(self, found: Found) -> str:
        """What is not finite in a step, where it comes up first, and at which σ; repeats the step."""
        finite = math.isfinite(found.loss)
        what = f"the norm of the gradient is {found.norm}" if finite else f"the loss is {found.loss}"
        loader = self.trainer.train_dataloader
        for batch_idx in range(max(0, found.batch_idx - self.trainer.accumulate_grad_batches + 1), found.batch_idx + 1):
            batch = self.trainer.strategy.batch_to_device(loader.dataset[loader.sampler.batch(batch_idx)], self.device)
            where = self._first_not_finite(batch, batch_idx)
            if where is not None:
                return f"{what}, first {where}"
        return f"{what}, and was not when {'this process' if self.trainer.world_size > 1 else 'the step'} repeated it"

    def _first_not_finite(self, batch: Batch, batch_idx: int) -> str | None:
        x0, sigma, noise, cond = self.draw(batch, batch_idx)

        def loss_of(rows: Tensor) -> Tensor:
            with self.trainer.precision_plugin.forward_context():
                here = rows.to(sigma.device)
                drawn = x0[here], sigma[here], noise[here], take(cond, rows)
                return self.loss.at(self.global_step)(self.denoiser.denoiser, *drawn).loss.mean()

        trained = self.denoiser if self.denoiser.first_stage.trained else self.denoiser.denoiser
        located = locate(trained, loss_of, len(x0))
        if located is None:
            return None
        where, rows = located
        low, high = (float(end) for end in sigma[rows.to(sigma.device)].aminmax())
        return f"{where}, at σ = {low:.4g}" if low == high else f"{where}, at σ from {low:.4g} to {high:.4g}"

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

    def _place(self) -> tuple[int, int, bool]:
        """Rank, number of processes, and whether batches go to a GPU."""
        return self.global_rank, self.trainer.world_size, self.trainer.strategy.root_device.type == "cuda"

    def _training_latents(self) -> Iterator[Tensor]:
        split = self.latents.train
        generator = step_generator(self.seed, MEASURE)
        for start in range(0, len(split), MEASURE_BATCH):
            yield self.latents.to_model(split[start : start + MEASURE_BATCH].x, generator).to(self.device)
