"""What a trained model is worth: denoising loss, what its samples are worth, its likelihood, sampling speed.

Samples are compared with the *training* split by the metrics that `compare` names, in features that suit the data or
those of Inception. Beside each stands its floor, the same number for the test split, real samples that the model has
not seen; all are biased by their own n, which is reported with them.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.denoising import denoising_loss
from flowdiff.evaluation.densities.autoencoding import latent_statistics
from flowdiff.evaluation.densities.densities import Densities, OdeSettings
from flowdiff.evaluation.features.choose import build_extractor, check_extractable
from flowdiff.evaluation.features.extractor import Extractor
from flowdiff.evaluation.features.samples import Generated, Real, Samples
from flowdiff.registry import check, hyperparameters, register, resolve

FRECHET = "frechet"


@register("metrics", "default")
class Metrics:
    """The numbers of a run's table, as {metric name: number}.

    every_n_steps, periodic_num_samples: how often, and on how many samples, the caller looks in while training.
    num_samples, repeats: samples of the final comparison, and over how many sampling seeds it is averaged.
    sigmas_per_sample: noise levels per test sample in the test loss.  sigma_eval: σ of the likelihood, null for the
    schedule's smallest; sigma_sweep: further ones.  cache_dir: where extractors and facts of real data are kept.
    frechet: whether samples are drawn and compared, by the Fréchet distance and each metric of compare, {name of a
    metric: its settings}.  inception_weights: compare in Inception's features, by this file, instead of those that suit
    the data.  ode, ode_rtol, ode_atol, ode_probes: likelihood by the probability-flow ODE, of any denoiser, its
    tolerances and random vectors, null for the exact trace.
    classify, outliers, interpolate: true for all test samples (100 pairs); null for as many as are cheap, where the
    model and the data allow it at all; false for none.
    Raises ConfigurationError where what is to be compared does not suit the data.
    """

    def __init__(
        self,
        data: Any,
        *,
        every_n_steps: PositiveInt,
        num_samples: Annotated[int, Field(ge=2)],
        periodic_num_samples: Annotated[int, Field(ge=2)],
        repeats: PositiveInt,
        sigmas_per_sample: PositiveInt,
        sigma_eval: PositiveFloat | None,
        sigma_sweep: list[PositiveFloat],
        batch_size: PositiveInt,
        cache_dir: str,
        frechet: bool,
        compare: dict[str, dict[str, Any] | None],
        inception_weights: str | None,
        likelihood: bool,
        ode: bool,
        ode_rtol: PositiveFloat,
        ode_atol: NonNegativeFloat,
        ode_probes: PositiveInt | None,
        classify: bool | None,
        outliers: bool | None,
        interpolate: bool | None,
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
        self.with_frechet = frechet
        self.inception_weights = None if inception_weights is None else Path(inception_weights).expanduser()
        self.comparisons = comparisons({FRECHET: {}, **compare} if frechet else {}, data)
        if frechet:
            check_extractable(data, self.inception_weights)
        self._densities = Densities(
            data,
            sigma_sweep=sigma_sweep,
            batch_size=batch_size,
            likelihood=likelihood,
            ode=OdeSettings(ode, ode_rtol, ode_atol, ode_probes),
            classify=classify,
            outliers=outliers,
            interpolate=interpolate,
        )

    def check(self, denoiser: ConditionedDenoiser) -> None:
        """Raise ConfigurationError where something is asked for that this model or these data cannot give."""
        self._densities.check(denoiser)

    def wants(self, key: str, denoiser: ConditionedDenoiser) -> bool:
        """Whether `ode`, `classify`, `outliers` or `interpolate` is to be done with this model."""
        return self._densities.wants(key, denoiser)

    def sigma_of(self, denoiser: ConditionedDenoiser) -> float:
        """The noise level of the likelihood: sigma_eval, or the smallest level that the model samples at."""
        return self.sigma_eval or denoiser.sampling.schedule.sigma_min

    @cached_property
    def extractor(self) -> Extractor:
        """The feature extractor: trained on first use, if it has to be, and kept in cache_dir."""
        return build_extractor(self.data, self.cache_dir, self.inception_weights)

    @cached_property
    def train(self) -> Real:
        """The training split, as metrics see it."""
        return Real(self.data, "train", self.extractor, self.batch_size, self.cache_dir)

    @cached_property
    def test(self) -> Real:
        """The test split, as metrics see it."""
        return Real(self.data, "test", self.extractor, self.batch_size, self.cache_dir)

    def frechet(self, samples: Tensor) -> dict[str, float]:
        """{"fd_<extractor>" or "fid": distance of samples (N, …) in model space from the training split}."""
        return self._measure(FRECHET, self._samples(samples))

    def floor(self, name: str) -> dict[str, float]:
        """What a metric of `comparisons` gives for the test split; kept in cache_dir."""
        settings = {key: getattr(self.comparisons[name], key) for key in hyperparameters(type(self.comparisons[name]))}
        return self.test.kept("floors", lambda: self._measure(name, self.test), self.train.key, name, settings)

    def evaluate(
        self,
        denoiser: ConditionedDenoiser,
        sample_fn: Callable[[int, int], Tensor],
        seed: int,
    ) -> dict[str, float]:
        """Everything in the final table.

        sample_fn(n, seed) returns n samples in model space. The denoiser is in eval mode meanwhile. Returns

        always: test_loss, test_loss_se;
        frechet: what `quality` returns;
        of densities, or with ode: what `densities` returns.
        """
        results: dict[str, float] = {}
        with _evaluating(denoiser):
            results["test_loss"], results["test_loss_se"] = denoising_loss(
                denoiser,
                self.data,
                denoiser.cond_of,
                seed=seed,
                batch_size=self.batch_size,
                num_levels=self.sigmas_per_sample,
            )
            if self.with_frechet:
                results |= self.quality(sample_fn, seed)
            results |= self.densities(denoiser, seed)
        return results

    @torch.no_grad()
    def autoencoding(self, denoiser: ConditionedDenoiser) -> dict[str, float]:
        """What the autoencoder is worth that this model is, or whose latents it is of; {} where there is none.

        reconstruction_mse, kl, active_units, latent_dims; frechet: reconstruction_fd_<extractor>, the distance of the
        test split's reconstructions, which no samples of latents can be expected to beat by much.
        """
        autoencoder = denoiser.autoencoder
        if autoencoder is None:
            return {}
        found, seen = latent_statistics(autoencoder, self.data, self.batch_size)
        if self.with_frechet:
            found |= {f"reconstruction_{name}": value for name, value in self.frechet(seen).items()}
        return found

    def quality(self, sample_fn: Callable[[int, int], Tensor], seed: int) -> dict[str, float]:
        """The part of the table that needs only samples: sample_fn(n, seed) gives n of them in model space.

        Each number of the comparisons (their mean over repeats, <name>_sd if there are several) and its <name>_floor,
        <name>_n where a metric looks at no more samples than that; num_samples, num_test (the floors' n),
        extractor_accuracy if it is a classifier, samples_per_second.
        """
        measured: list[dict[str, float]] = []
        seconds = 0.0
        for repeat in range(self.repeats):
            start = time.perf_counter()
            x = sample_fn(self.num_samples, seed + repeat).cpu()  # on the CPU a GPU's work is done as well
            seconds += time.perf_counter() - start
            samples = self._samples(x)
            measured.append({k: v for name in self.comparisons for k, v in self._measure(name, samples).items()})
        results: dict[str, float] = {}
        for name, metric in self.comparisons.items():
            for key, floor in self.floor(name).items():
                values = [numbers[key] for numbers in measured]
                results[key] = statistics.fmean(values)
                if self.repeats > 1:
                    # By torch, to whom a nan, as of a diverged model, is a number too.
                    results[f"{key}_sd"] = torch.tensor(values, dtype=torch.float64).std().item()
                results[f"{key}_floor"] = floor
                if metric.num_samples is not None and metric.num_samples < max(self.num_samples, self.test.n):
                    results[f"{key}_n"] = metric.num_samples
        results["num_samples"] = self.num_samples
        results["num_test"] = len(self.data.test)
        if self.extractor.accuracy is not None:
            results["extractor_accuracy"] = self.extractor.accuracy
        results["samples_per_second"] = self.repeats * self.num_samples / seconds
        return results

    def densities(
        self,
        denoiser: ConditionedDenoiser,
        seed: int,
    ) -> dict[str, float]:
        """The part of the table that needs no samples: {} for a network that is no density, unless ode is asked for.

        likelihood: bpd, bpd_se of images, nats_per_dim, nats_per_dim_se of continuous data, by the exact density; the
        same with _sigma_<σ> for each of sigma_sweep;
        ode: bpd_ode, bpd_ode_se or nats_per_dim_ode, nats_per_dim_ode_se;
        classify: class_accuracy, class_accuracy_se, class_ece (calibration error), num_classified, of a density or a
        classifier; the accuracy with _sigma_<σ> for each of sigma_sweep;
        outliers: auroc_permuted, and auroc_<name> of data sets of the same shape that are at hand;
        interpolate: interpolation_<bpd or nats_per_dim>, its _se, and interpolation_straight in the same unit.

        Of a density of latents all is nats per dimension of z, and called latent_…; likelihood adds bpd_bound, its _se,
        a bound on the images. An autoencoder, and the first stage of any model, adds what `autoencoding` returns.
        """
        return self._densities(denoiser, self.sigma_of(denoiser), seed) | self.autoencoding(denoiser)

    def _samples(self, x: Tensor) -> Generated:
        return Generated(x, self.extractor, self.data, self.batch_size)

    def _measure(self, name: str, samples: Samples) -> dict[str, float]:
        """The numbers of one comparison, all not-a-number for the samples of a diverged model."""
        if isinstance(samples, Generated) and not samples.finite:
            return dict.fromkeys(self.floor(name), math.nan)
        return self.comparisons[name](samples, self.train, self.test)


def comparisons(lines: Mapping[str, Mapping[str, Any] | None], data: Any) -> dict[str, Comparison]:
    """The metrics that the lines {name: settings} describe; ConfigurationError where one does not suit the data."""
    found = {}
    for name, settings in lines.items():
        metric = resolve("comparison", name)
        found[name] = metric(**check("comparison", {**(settings or {}), "name": name}, f"metrics.compare.{name}"))
        found[name].check(data)
    return found


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and every part of it back in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
