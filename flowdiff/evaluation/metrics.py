"""What a trained model is worth: denoising loss, quality of its samples, likelihood, health of its score, speed.

Samples are compared with the *training* split by the comparisons that `compare` names, in features that suit the data
or in Inception's. Each number has a floor: the same number for the test split, real samples that the model has not
seen. All of them are biased by the number of samples n, which is reported with them.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.data.attributes import AttributedData
from flowdiff.data.base import DataModule
from flowdiff.data.encoded import in_model_space
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.digests import digest
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.denoising import denoising_loss
from flowdiff.evaluation.densities.autoencoding import latent_statistics
from flowdiff.evaluation.densities.densities import Choice, Densities, OdeSettings
from flowdiff.evaluation.features.choose import build_extractor, check_extractable, has_features
from flowdiff.evaluation.features.extractor import Extractor
from flowdiff.evaluation.features.samples import Generated, Real, Samples
from flowdiff.evaluation.features.small_cnn import SmallCNN, trained_cnn
from flowdiff.evaluation.health.measure import HealthSettings, measure
from flowdiff.evaluation.obedience import obedience
from flowdiff.evaluation.prompts import prompt_accuracy
from flowdiff.evaluation.retrieval import retrieval
from flowdiff.registry import check, hyperparameters, register, resolve
from flowdiff.runs.files import can_write
from flowdiff.runs.health import Health
from flowdiff.runs.undefined import NOT_FINITE, Undefined

log = logging.getLogger(__name__)

FRECHET = "frechet"


@register("metrics", "default")
class Metrics:
    """The numbers of a run's table, {metric name: number}.

    Args:
        data: the data set.
        every_n_steps: training steps between two evaluations during training, ≥ 1.
        num_samples: samples of the final comparison, ≥ 2.
        periodic_num_samples: samples of the Fréchet distance during training, ≥ 2.
        repeats: sampling seeds that the final comparison is averaged over, ≥ 1.
        sigmas_per_sample: noise levels per test sample in the test loss, ≥ 1.
        sigma_eval: noise level of the likelihood, > 0, in data units; auto: the smallest level of the schedule.
        sigma_sweep: further noise levels of the likelihood and of classify, each > 0.
        batch_size: samples per batch of an evaluation, ≥ 1.
        cache_dir: folder of trained extractors and of features of real data.
        frechet: whether samples are drawn and compared, by the Fréchet distance and by `compare`; auto: if the data
            have features of their own (`has_features`), or inception_weights are given.
        compare: further comparisons, {registered name: settings}.
        inception_weights: file of Inception weights, to compare in its features; None: features that suit the data.
        likelihood: whether to measure the exact likelihood of densities.
        ode: likelihood by the probability-flow ODE: measure, rtol, atol and probes, see OdeSettings.
        classify: accuracy of the exact posterior of classes or captions: on all test samples, a part of them (auto), or
            not at all.
        outliers: AUROC of the test split's density against foreign data: all samples, a part (auto), or not at all.
        interpolate: likelihood on the way between test samples: 100 pairs, 20 pairs (auto), or not at all.
        health: health of the score: denoising, levels, samples, eigenvalue, trajectories and fokker_planck, see
            HealthSettings.

    `auto` measures only what the model and the data allow; `true` for something else is an error of `check`.

    Raises:
        ConfigurationError: a comparison or a feature extractor does not suit the data.
    """

    def __init__(
        self,
        data: DataModule,
        *,
        every_n_steps: PositiveInt,
        num_samples: Annotated[int, Field(ge=2)],
        periodic_num_samples: Annotated[int, Field(ge=2)],
        repeats: PositiveInt,
        sigmas_per_sample: PositiveInt,
        sigma_eval: Literal["auto"] | PositiveFloat,
        sigma_sweep: list[PositiveFloat],
        batch_size: PositiveInt,
        cache_dir: str,
        frechet: Choice,
        compare: dict[str, dict[str, Any] | None],
        inception_weights: str | None,
        likelihood: bool,
        ode: OdeSettings,
        classify: Choice,
        outliers: Choice,
        interpolate: Choice,
        health: HealthSettings,
    ) -> None:
        self.data = data
        self.every_n_steps = every_n_steps
        self.num_samples = num_samples
        self.periodic_num_samples = periodic_num_samples
        self.repeats = repeats
        self.sigmas_per_sample = sigmas_per_sample
        self.sigma_eval = sigma_eval
        self.batch_size = batch_size
        self.cache_dir = Path(cache_dir).expanduser()
        self.inception_weights = None if inception_weights is None else Path(inception_weights).expanduser()
        fits = self.inception_weights is not None or has_features(data)
        self.with_frechet = fits if frechet == "auto" else frechet
        self.lacks_features = frechet == "auto" and not fits
        self.health_settings = health
        self.comparisons = comparisons({FRECHET: {}, **compare} if self.with_frechet else {}, data)
        if self.with_frechet:
            check_extractable(data, self.inception_weights)
        self._densities = Densities(
            data,
            sigma_sweep=sigma_sweep,
            batch_size=batch_size,
            likelihood=likelihood,
            ode=ode,
            classify=classify,
            outliers=outliers,
            interpolate=interpolate,
        )

    def check(self, denoiser: ConditionedDenoiser) -> None:
        """Raise ConfigurationError if a setting is true that this model or these data do not allow."""
        if self.with_frechet and not denoiser.can_sample:
            raise ConfigurationError(
                "metrics.frechet=true draws samples, and network=clip cannot be sampled: set metrics.frechet=false."
            )
        for name, comparison in self.comparisons.items():
            if comparison.reads_prompts and not denoiser.conditioner.reads_text:
                raise ConfigurationError(
                    f"metrics.compare.{name} compares samples with their prompts, and this model reads none: "
                    "remove it, or set conditioner=text or clip."
                )
        self._densities.check(denoiser)

    def tell_what_is_left_out(self) -> None:
        """Say in the log that samples are not compared, if `auto` leaves that out."""
        if self.lacks_features:
            log.info(
                "samples are not compared: %s has no class labels to train a feature extractor by; metrics=inception "
                "compares them in Inception's features",
                self.data.name,
            )

    def check_cache(self) -> None:
        """Raise ConfigurationError if something must be kept in cache_dir and cannot; reads the data.

        A folder that cannot be written will do if it already holds all that is needed.
        """
        if self.with_frechet and not can_write(self.cache_dir):
            for split in (self.train, self.test):
                split.features()
            for name in self.comparisons:
                self.floor(name)
            if isinstance(self.data, AttributedData):
                self.judge(self.data)

    def wants(self, key: str, denoiser: ConditionedDenoiser) -> bool:
        """Whether to measure `ode.measure`, `classify`, `outliers` or `interpolate` for this model."""
        return self._densities.wants(key, denoiser)

    def sigma_of(self, denoiser: ConditionedDenoiser) -> float:
        """The noise level of the likelihood: sigma_eval, or the smallest level that the model samples at."""
        return denoiser.sampling.schedule.sigma_min if isinstance(self.sigma_eval, str) else self.sigma_eval

    @cached_property
    def extractor(self) -> Extractor:
        """The feature extractor: trained on first use if necessary, and kept in cache_dir."""
        return build_extractor(self.data, self.cache_dir, self.inception_weights)

    def judge(self, data: AttributedData) -> SmallCNN:
        """The classifier of the data's attributes: the extractor itself, unless that is Inception."""
        return self.extractor if isinstance(self.extractor, SmallCNN) else trained_cnn(data, self.cache_dir)

    @cached_property
    def train(self) -> Real:
        """The training split with its features."""
        return Real(self.data, "train", self.extractor, self.batch_size, self.cache_dir)

    @cached_property
    def test(self) -> Real:
        """The test split with its features."""
        return Real(self.data, "test", self.extractor, self.batch_size, self.cache_dir)

    def frechet(self, samples: Tensor) -> dict[str, float]:
        """{"fd_<extractor>" or "fid": distance of samples (N, …) in model space from the training split}."""
        return self._measure(FRECHET, self._samples(samples))

    def floor(self, name: str) -> dict[str, float]:
        """The numbers of a comparison for the test split; kept in cache_dir."""
        if min(self.test.n, self.train.n) < 2:  # it is quick, and may have no number but a reason, which is not kept
            return self._measure(name, self.test)
        settings = {key: getattr(self.comparisons[name], key) for key in hyperparameters(type(self.comparisons[name]))}

        def measure() -> dict[str, float]:
            return {key: float(value) for key, value in self._measure(name, self.test).items()}  # plain, to be kept

        about = self.comparisons[name].about()
        if self.comparisons[name].reads_prompts:
            about = [*about, digest(self.test.prompts())]
        return self.test.kept("floors", measure, self.train.key, name, settings, *about)

    def evaluate(
        self, denoiser: ConditionedDenoiser, sample_fn: Callable[[int, int], Tensor], seed: int
    ) -> dict[str, float]:
        """All numbers of the final table. The denoiser is in eval mode meanwhile.

        Args:
            denoiser: the model.
            sample_fn: (n, seed) → n samples in model space.
            seed: every random number follows from it.

        Returns:
            test_loss and test_loss_se; if frechet, what `quality` and `prompted` return; of a model that reads hints
            what `obedience` returns; what `densities` returns; of a model of images and captions what `retrieval`
            returns.
        """
        results: dict[str, float] = {}
        with _evaluating(denoiser):
            results["test_loss"], results["test_loss_se"] = denoising_loss(
                denoiser, self.data, seed=seed, batch_size=self.batch_size, num_levels=self.sigmas_per_sample
            )
            if self.with_frechet:
                results |= self.quality(sample_fn, seed, denoiser.prompts(self.num_samples))
                results |= self.prompted(denoiser, seed)
            results |= obedience(denoiser, self.periodic_num_samples, seed, batch_size=self.batch_size)
            results |= self.densities(denoiser, seed)
            results |= retrieval(denoiser, self.data)
        return results

    @torch.no_grad()
    def autoencoding(self, denoiser: ConditionedDenoiser) -> dict[str, float]:
        """The numbers of the model's autoencoder: the network itself or the first stage; {} if there is none.

        reconstruction_mse, kl, active_units, latent_dims; if frechet, reconstruction_fd_<extractor>: the distance of
        the test split's reconstructions, which samples of latents can hardly beat.
        """
        autoencoder = denoiser.autoencoder
        if autoencoder is None:
            return {}
        numbers, reconstructions = latent_statistics(autoencoder, self.data, self.batch_size)
        if self.with_frechet:
            numbers |= {f"reconstruction_{name}": value for name, value in self.frechet(reconstructions).items()}
        return numbers

    def quality(
        self, sample_fn: Callable[[int, int], Tensor], seed: int, prompts: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The part of the table that needs only samples: sample_fn(n, seed) returns n of them in model space.

        prompts: what each of num_samples samples is drawn for; None without prompts.

        Returns:
            Each number of the comparisons (the mean over repeats, and <name>_sd if there are several), its
            <name>_floor, and <name>_n if the comparison uses fewer samples than there are; num_samples; num_test, the
            n of the floors; extractor_accuracy if the extractor is a classifier; samples_per_second.
        """
        measured: list[dict[str, float]] = []
        seconds = 0.0
        for repeat in range(self.repeats):
            start = time.perf_counter()
            x = sample_fn(self.num_samples, seed + repeat).cpu()  # .cpu() waits until a GPU has finished
            seconds += time.perf_counter() - start
            samples = self._samples(x, prompts)
            measured.append({k: v for name in self.comparisons for k, v in self._measure(name, samples).items()})
        results: dict[str, float] = {}
        for name, comparison in self.comparisons.items():
            for key, floor in self.floor(name).items():
                values = [numbers[key] for numbers in measured]
                undefined = next((value for value in values if isinstance(value, Undefined)), None)
                results[key] = statistics.fmean(values) if undefined is None else undefined
                if self.repeats > 1:
                    # By torch, because statistics.stdev raises for NaN.
                    spread = torch.tensor(values, dtype=torch.float64).std().item()
                    results[f"{key}_sd"] = spread if undefined is None else undefined
                results[f"{key}_floor"] = floor
                if comparison.num_samples is not None and comparison.num_samples < max(self.num_samples, self.test.n):
                    results[f"{key}_n"] = comparison.num_samples
        results["num_samples"] = self.num_samples
        results["num_test"] = len(self.data.test)
        if self.extractor.accuracy is not None:
            results["extractor_accuracy"] = self.extractor.accuracy
        results["samples_per_second"] = self.repeats * self.num_samples / seconds
        return results

    def prompted(self, denoiser: ConditionedDenoiser, seed: int, **options: Any) -> dict[str, float]:
        """prompts_<part>, the share of samples that show what their prompts ask for; {} without text and attributes.

        Args:
            denoiser: the model.
            seed: seed of prompts and samples.
            **options: arguments of `ConditionedDenoiser.sample`.
        """
        reads = denoiser.conditioner.reads_text and denoiser.conditioner.alone  # the prompts have no classes
        if not reads or not isinstance(self.data, AttributedData):
            return {}

        def draw(prompts: list[str]) -> Tensor:
            asked = {"batch_size": self.batch_size, **options, "prompt": prompts, "label": None}
            return denoiser.sample(len(prompts), seed=seed, **asked)

        return prompt_accuracy(draw, self.data, self.judge(self.data), seed)

    def densities(self, denoiser: ConditionedDenoiser, seed: int) -> dict[str, float]:
        """The part of the table that needs no samples. For a raw network only `ode.measure` adds something to it.

        likelihood: bpd, bpd_se of images, nats_per_dim, nats_per_dim_se of continuous data, by the exact density; the
        same with _sigma_<σ> for each σ of sigma_sweep;
        ode: bpd_ode, bpd_ode_se or nats_per_dim_ode, nats_per_dim_ode_se;
        classify: class_accuracy, class_accuracy_se, class_ece (calibration error), num_classified, of a density or a
        classifier; the accuracy with _sigma_<σ> for each σ of sigma_sweep; of a density of captions caption_… instead,
        and num_captions, the number of test samples among whose captions each finds its own;
        outliers: auroc_permuted, and auroc_<name> for each other data set of the same shape on disk;
        interpolate: interpolation_<bpd or nats_per_dim>, its _se, and interpolation_straight in the same unit.

        For a density of latents all these are in nats per dimension of z and named latent_…; likelihood adds bpd_bound
        and its _se, a bound on the images. For a model with an autoencoder come the numbers of `autoencoding`.
        """
        return self._densities(denoiser, self.sigma_of(denoiser), seed) | self.autoencoding(denoiser)

    def health(self, denoiser: ConditionedDenoiser) -> Health:
        """The error of D, the eigenvalues of ∂D/∂x and the Fokker–Planck residual at each noise level.

        Empty for a network without D, a classifier or an autoencoder. The denoiser is in eval mode meanwhile.
        """
        with _evaluating(denoiser):
            return measure(denoiser, in_model_space(denoiser, self.data), self.health_settings, self.batch_size)

    def _samples(self, x: Tensor, prompts: Sequence[str] | None = None) -> Generated:
        return Generated(x, self.extractor, self.data, self.batch_size, prompts)

    def _measure(self, name: str, samples: Samples) -> dict[str, float]:
        """The numbers of one comparison, all Undefined for the samples of a diverged model."""
        if isinstance(samples, Generated) and not samples.finite:
            return dict.fromkeys(self.floor(name), Undefined(NOT_FINITE))
        return self.comparisons[name](samples, self.train, self.test)


def comparisons(lines: Mapping[str, Mapping[str, Any] | None], data: DataModule) -> dict[str, Comparison]:
    """The comparisons that the lines {name: settings} describe; ConfigurationError if one does not suit the data."""
    found: dict[str, Comparison] = {}
    for name, settings in lines.items():
        comparison = resolve("comparison", name)
        where = f"metrics.compare.{name}"
        found[name] = comparison(**check("comparison", {**(settings or {}), "name": name}, where))
        found[name].check(data)
    return found


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and afterwards every submodule back in the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
