"""The engine: trains a model by a loss.

One step: z0 ~ encode(data), σ ~ p(σ), z = z0 + σ·noise, then the loss of D(z, σ, c). If the autoencoder is trained too,
the loss does the encoding. Every random number of a step comes from a generator seeded by (seed, batch index, rank), so
that a resumed run repeats what it would have done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader

from flowdiff.data.base import Batch
from flowdiff.data.latents import Latents, latent_data
from flowdiff.data.readers import evenly
from flowdiff.errors import DataError
from flowdiff.evaluation.denoising import loss_of_test, stratified_sigmas
from flowdiff.models.adapters.deltas import draw
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.base import AutoencoderStage
from flowdiff.noise import randn_like, step_generator
from flowdiff.training.assembly import ModelParts, assemble
from flowdiff.training.divergence import Found, Sentinel, is_fused, locate, take

MEASURE_BATCH = 1024  # samples per chunk when statistics are measured
MEASURE_IMAGES = 256  # training images on which the error scale of a pretrained decoder is measured
# First counters of further generators. Training steps count from 0; the shuffling of the data has −1.
MEASURE, VALIDATION, ADAPTER = -2, -3, -4


class LossInputs(NamedTuple):
    """Inputs of the loss.

    x0 (B, …) is clean latents or, if the autoencoder is trained along, images; sigma is (B,).
    """

    x0: Tensor
    sigma: Tensor
    noise: Tensor
    cond: Conditioning | None


class Engine(LightningModule):
    """Trains the model of a run by its loss, at noise levels from its sigma sampler.

    `data` is the run's DataModule; `latents` is the same data in the space of the model. `measure` measures sigma_data
    and the network's statistics on them.

    Args:
        parts: the model and what trains it.
        seed: seed of every random number in training.
    """

    def __init__(self, parts: ModelParts, seed: int):
        super().__init__()
        self.denoiser = parts.denoiser
        self.loss = parts.loss
        self.learned = parts.loss.learned
        self.sigma_sampler = parts.sigma_sampler
        self.optimizer = parts.optimizer
        self.data = parts.data
        self.adapter = parts.adapter
        self.base = parts.base
        self.latents = latent_data(parts.denoiser.first_stage, parts.data)
        self.seed = seed
        self.sentinel = Sentinel()
        self._batch_idx = 0
        self._mean_loss: dict[str, Tensor] = {}
        self._counted = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Engine:
        """The engine of a checked, resolved config; ConfigurationError where its parts do not fit."""
        return cls(assemble(config), config["seed"])

    def __getstate__(self) -> dict[str, Any]:
        # The weight average deep-copies the module: the copy does not need the data.
        return {**super().__getstate__(), "data": None, "latents": None}

    @property
    def conditioner(self) -> Conditioner:
        """Labels → Conditioning."""
        return self.denoiser.conditioner

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters of the model."""
        return sum(p.numel() for p in self.denoiser.parameters() if p.requires_grad)

    @torch.no_grad()
    def measure(self) -> float:
        """Measure sigma_data, the range of the data and the network's statistics on the whole training split.

        Behind an autoencoder the data are encoded first if they are not yet, and the scale of the latents is measured.
        Everything is measured once, on the latents as they are now. If the autoencoder is trained along, its later
        latents have other statistics: sigma_data and the Gaussian that the flow starts as stay those of the first ones.
        Their range stays unknown, because D must not be kept in a range that the latents have left.

        What the base of an adapter has measured stays: it is a part of the frozen model.

        Returns:
            sigma_data.
        """
        self.latents.prepare_data()
        self.latents.setup()
        captions = self.latents.train.captions
        if captions is not None:
            if self.base is None:
                self.conditioner.fit(captions.texts, captions.classes(self.latents.train.label))
            of_test = self.latents.test.captions
            self.conditioner.precompute([*captions.texts, *(() if of_test is None else of_test.texts)])
        elif self.conditioner.reads_text:
            raise DataError(
                f"the conditioner reads captions, and {self.latents.name} has none: write them into metadata.csv "
                "beside the pictures, or set conditioner=class or none."
            )
        self._keep_hints()
        if self.base is not None:
            return float(self.denoiser.sigma_data)
        first_stage = self.denoiser.first_stage
        if isinstance(self.latents, Latents) and isinstance(first_stage, AutoencoderStage):
            images = self.data.centre(self.data.train[evenly(len(self.data.train), MEASURE_IMAGES)].x)
            first_stage.fit(self.latents.posteriors(MEASURE_BATCH), images)
        total, count = 0.0, 0
        self.denoiser.data_range.clear()
        for z, _ in self._training_latents():
            total += float(z.double().square().sum())
            count += z.numel()
            if not first_stage.trained:
                self.denoiser.data_range.extend(z)
        self._check_scale((total / count) ** 0.5)
        self.denoiser.sigma_data.fill_((total / count) ** 0.5)
        self.denoiser.network.fit(z for z, _ in self._training_latents())
        self.denoiser.network.fit_classes(self._training_latents())
        return float(self.denoiser.sigma_data)

    def train_dataloader(self) -> DataLoader:
        return self.latents.train_dataloader(*self._place())

    def val_dataloader(self) -> DataLoader:
        return self.latents.test_dataloader(*self._place())

    def loss_inputs(self, batch: Batch, batch_idx: int) -> LossInputs:
        """A training batch with its noise; the same for the same batch index."""
        generator = step_generator(self.seed, batch_idx, self.global_rank, device=self.device)
        source = self.data if self.denoiser.first_stage.trained else self.latents
        x0 = source.to_model(batch.x, generator, train=True)
        cond = self.conditioner(self.conditioner.given(batch, generator), generator)
        if self.denoiser.hinting is not None:  # of x0, which may be mirrored
            cond = self.denoiser.with_hint(cond, self.denoiser.hinting.of(x0))
        sigma = self.sigma_sampler(len(x0), generator, self.device)
        return LossInputs(x0, sigma, self.loss.draw_noise(x0, generator), cond)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._batch_idx = batch_idx
        if self.base is not None:
            draw(self.denoiser, step_generator(self.seed, ADAPTER, batch_idx, device=self.device))
        output = self.loss.at(self.global_step)(self.denoiser.denoiser, *self.loss_inputs(batch, batch_idx))
        loss = output.loss.mean()
        self._log_mean({"train_loss": loss, **{f"train_{k}": v.mean() for k, v in output.parts.items()}}, batch_idx)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The test loss on a test batch; it is independent of the training loss, and noise and σ never change."""
        generator = step_generator(self.seed, VALIDATION, batch_idx, self.global_rank, device=self.device)
        z0 = self.latents.to_model(batch.x, generator)
        sigma = stratified_sigmas(len(z0), 1, batch_idx)[:, 0].to(z0)
        loss = loss_of_test(self.denoiser, z0, sigma, randn_like(z0, generator), self.denoiser.cond_of_batch(batch))
        self.log("val_loss", loss.mean(), batch_size=len(z0), sync_dist=True)

    def on_before_backward(self, loss: Tensor) -> None:
        self.sentinel.add_loss(loss)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as the trainer's arguments say; the norm is computed once, also for the sentinel."""
        plugin = self.trainer.precision_plugin
        scaler = plugin.scaler if isinstance(plugin, MixedPrecision) else None
        if scaler is not None and is_fused(optimizer):
            scaler.unscale_(optimizer)  # Lightning leaves unscaling to a fused optimiser, after clipping
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if gradient_clip_val and gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        if scaler is not None:  # it tries scales at which float16 overflows, and skips such steps itself
            norm = torch.zeros_like(norm)
        self.sentinel.check_step(
            norm, self.trainer.global_step + 1, self._batch_idx, optimizer if scaler is None else None
        )

    def account(self, found: Found) -> str:
        """Repeat a bad step to say what is not finite, in which layer it appears first, and at which σ."""
        finite = math.isfinite(found.loss)
        what = f"the norm of the gradient is {found.norm}" if finite else f"the loss is {found.loss}"
        loader = self.trainer.train_dataloader
        assert loader is not None  # a step of it has just been done
        for batch_idx in range(max(0, found.batch_idx - self.trainer.accumulate_grad_batches + 1), found.batch_idx + 1):
            batch = self.trainer.strategy.batch_to_device(loader.dataset[loader.sampler.batch(batch_idx)], self.device)
            where = self._first_not_finite(batch, batch_idx)
            if where is not None:
                return f"{what}, first {where}"
        return (
            f"{what}; it was finite when {'this process' if self.trainer.world_size > 1 else 'the step'} was repeated"
        )

    def _first_not_finite(self, batch: Batch, batch_idx: int) -> str | None:
        x0, sigma, noise, cond = self.loss_inputs(batch, batch_idx)

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

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer.make([p for p in self.parameters() if p.requires_grad])
        scheduler = self.optimizer.scheduler(optimizer, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mean_loss"] = {key: float(value) for key, value in self._mean_loss.items()}
        checkpoint["mean_loss_count"] = self._counted
        if self.base is not None:
            checkpoint["adapter_base"] = asdict(self.base)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._mean_loss = {k: torch.tensor(v, device=self.device) for k, v in checkpoint["mean_loss"].items()}
        self._counted = checkpoint["mean_loss_count"]

    def _log_mean(self, losses: dict[str, Tensor], batch_idx: int) -> None:
        """Every trainer.log_every_n_steps optimiser steps, log the mean over the batches since the last time."""
        for key, value in losses.items():
            value = value.detach()
            self._mean_loss[key] = self._mean_loss[key] + value if key in self._mean_loss else value
        self._counted += 1
        every = log_interval(self.trainer) * self.trainer.accumulate_grad_batches
        if (batch_idx + 1) % every == 0:
            self.log_dict({k: v / self._counted for k, v in self._mean_loss.items()})
            self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
            self._mean_loss, self._counted = {}, 0

    def _place(self) -> tuple[int, int, bool]:
        """Rank, number of processes, and whether batches go to a GPU."""
        return self.global_rank, self.trainer.world_size, self.trainer.strategy.root_device.type == "cuda"

    def _check_scale(self, sigma_data: float) -> None:
        """Raise DataError if σ_data² or its reciprocal, by which losses and scalings weight, is not finite."""
        name, square = self.latents.name, torch.tensor(sigma_data).square()
        if sigma_data == 0:
            raise DataError(
                f"every value of the training split of {name} is 0, so sigma_data is 0 and there is nothing to learn:"
                " give data that vary."
            )
        if not bool(square.isfinite() & square.reciprocal().isfinite()):
            raise DataError(
                f"sigma_data of the training split of {name} is {sigma_data:.3g}, which is too extreme for float32:"
                " rescale the data to about 1."
            )

    def _keep_hints(self) -> None:
        """Keep the hints of test samples as examples to draw samples for."""
        hinting = self.denoiser.hinting
        if hinting is not None:
            test = self.latents.test
            batch = test[evenly(len(test), hinting.number_of_examples())]
            hinting.fit(batch.x, batch.label, [texts[0] for texts in batch.captions or ()])

    def _training_latents(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The training split as the model sees it, in order, with its labels."""
        split = self.latents.train
        generator = step_generator(self.seed, MEASURE)
        for start in range(0, len(split), MEASURE_BATCH):
            batch = split[start : start + MEASURE_BATCH]
            yield self.latents.to_model(batch.x, generator).to(self.device), batch.label.to(self.device)


def log_interval(trainer: Trainer) -> int:
    """Optimiser steps between two lines of the logger."""
    return trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it from outside the class
