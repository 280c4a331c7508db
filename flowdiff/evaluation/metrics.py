"""What a trained model is worth: denoising loss, Fréchet distance beside its floor, likelihood, sampling speed.

And what only a normalised density can say: which class a sample is of, which are foreign, what lies between two.

The Fréchet distance compares n generated samples with the *training* split. Its floor does the same with the test
split, real images that the model has not seen; both are biased upward by their own n, which is reported with them.
"""

from __future__ import annotations

import contextlib
import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError, DataError, InverseDidNotConverge
from flowdiff.evaluation.cache import cached, digest
from flowdiff.evaluation.denoising import denoising_loss
from flowdiff.evaluation.features import (
    Extractor,
    build_extractor,
    check_extractable,
    extract,
    fingerprint,
    split_batches,
)
from flowdiff.evaluation.frechet import FeatureStatistics, frechet_distance
from flowdiff.evaluation.interpolation import likelihood_between
from flowdiff.evaluation.likelihood import bits_per_dim
from flowdiff.evaluation.outliers import outlier_scores
from flowdiff.evaluation.posterior import classify as classified
from flowdiff.registry import register

log = logging.getLogger(__name__)

# What nobody asked for is a fraction of what the Fréchet distance's samples take: so many evaluations of a density, and
# pairs of samples, whose flow is to be inverted, which for some families is slow.
CHEAP, CHEAP_PAIRS, PAIRS = 10_000, 20, 100


@register("metrics", "default")
class Metrics:
    """The numbers of a run's table, as {metric name: number}.

    every_n_steps, periodic_num_samples: how often, and on how many samples, the caller looks in while training.
    num_samples, repeats: samples of the final Fréchet distance, and over how many sampling seeds it is averaged.
    sigmas_per_sample: noise levels per test sample in the test loss.  sigma_eval: σ of the likelihood, null for the
    schedule's smallest.  cache_dir: where extractors and statistics of real data are kept.
    classify, outliers, interpolate: true for all test samples (100 pairs); null for as many as are cheap, where the
    model and the data allow it at all; false for none.
    Raises ConfigurationError if a Fréchet distance is asked for and no extractor suits the data.
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
        batch_size: PositiveInt,
        cache_dir: str,
        frechet: bool,
        likelihood: bool,
        classify: bool | None,
        outliers: bool | None,
        interpolate: bool | None,
    ) -> None:
        if frechet:
            check_extractable(data)
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
        self.with_likelihood = likelihood
        self.of_density = {"classify": classify, "outliers": outliers, "interpolate": interpolate}

    def check(self, denoiser: nn.Module) -> None:
        """Raise ConfigurationError where something is asked for that this model or these data cannot give."""
        for key, asked in self.of_density.items():
            lacking = self._lacking(key, denoiser)
            if asked and lacking:
                raise ConfigurationError(f"metrics.{key}=true needs {lacking}; or set metrics.{key}=false.")

    def wants(self, key: str, denoiser: nn.Module) -> bool:
        """Whether `classify`, `outliers` or `interpolate` is to be done with this model."""
        return self.of_density[key] is not False and self._lacking(key, denoiser) is None

    @cached_property
    def extractor(self) -> Extractor:
        """The feature extractor that suits the data: trained on first use, if it has to be, and kept in cache_dir."""
        return build_extractor(self.data, self.cache_dir)

    @cached_property
    def reference(self) -> FeatureStatistics:
        """Feature statistics of the training split."""
        return self._real("train")

    @cached_property
    def floor(self) -> float:
        """Fréchet distance of the test split from the training split."""
        return frechet_distance(self._real("test"), self.reference)

    def frechet(self, samples: Tensor) -> dict[str, float]:
        """{"fd_<extractor>": distance of samples (N, …) in model space from the training split}."""
        generated = self._statistics(extract(self.extractor, self.data, samples, self.batch_size))
        return {f"fd_{self.extractor.name}": frechet_distance(generated, self.reference)}

    def evaluate(
        self,
        denoiser: nn.Module,
        sample_fn: Callable[[int, int], Tensor],
        cond_of: Callable[[Tensor], Conditioning | None],
        sigma_min: float,
        seed: int,
    ) -> dict[str, float]:
        """Everything in the final table.

        sample_fn(n, seed) returns n samples in model space; cond_of maps labels (B,) to a Conditioning or None;
        sigma_min is the likelihood's σ where sigma_eval is null. The denoiser is in eval mode meanwhile. Returns

        always: test_loss, test_loss_se;
        frechet: fd_<extractor> (the mean over repeats, fd_<extractor>_sd if there are several), fd_<extractor>_floor,
        num_samples, num_test (the floor's n), samples_per_second, extractor_accuracy if it is a classifier;
        of densities: what `densities` returns.
        """
        results: dict[str, float] = {}
        with _evaluating(denoiser):
            results["test_loss"], results["test_loss_se"] = denoising_loss(
                denoiser,
                self.data,
                cond_of,
                seed=seed,
                batch_size=self.batch_size,
                num_levels=self.sigmas_per_sample,
            )
            if self.with_frechet:
                results |= self.quality(sample_fn, seed)
            results |= self.densities(denoiser, cond_of, sigma_min, seed)
        return results

    def quality(self, sample_fn: Callable[[int, int], Tensor], seed: int) -> dict[str, float]:
        """The part of the table that needs only samples: sample_fn(n, seed) gives n of them in model space."""
        name = f"fd_{self.extractor.name}"
        distances, seconds = [], 0.0
        for repeat in range(self.repeats):
            start = time.perf_counter()
            samples = sample_fn(self.num_samples, seed + repeat).cpu()  # on the CPU a GPU's work is done as well
            seconds += time.perf_counter() - start
            distances.append(self.frechet(samples)[name])
        results: dict[str, float] = {name: statistics.fmean(distances)}
        if self.repeats > 1:
            # By torch, to whom a nan, as of a diverged model, is a number too.
            results[f"{name}_sd"] = torch.tensor(distances, dtype=torch.float64).std().item()
        results[f"{name}_floor"] = self.floor
        results["num_samples"] = self.num_samples
        results["num_test"] = len(self.data.test)
        if self.extractor.accuracy is not None:
            results["extractor_accuracy"] = self.extractor.accuracy
        results["samples_per_second"] = self.repeats * self.num_samples / seconds
        return results

    def densities(
        self,
        denoiser: nn.Module,
        cond_of: Callable[[Tensor], Conditioning | None],
        sigma_min: float,
        seed: int,
    ) -> dict[str, float]:
        """The part of the table that needs no samples but a density p_σ(x|c), {} for a network that has none.

        likelihood: bpd, bpd_se of images, nats_per_dim, nats_per_dim_se of continuous data;
        classify: class_accuracy, class_accuracy_se, class_ece (calibration error), num_classified;
        outliers: auroc_permuted, and auroc_<name> of data sets of the same shape that are at hand;
        interpolate: interpolation_<bpd or nats_per_dim>, its _se, and interpolation_straight in the same unit.
        """
        if not denoiser.is_density:
            return {}  # a table of flows and raw networks leaves the cells empty
        sigma = self.sigma_eval or sigma_min
        settings = {"seed": seed, "batch_size": self.batch_size}
        results: dict[str, float] = {}
        if self.with_likelihood:
            found = bits_per_dim(denoiser, self.data, sigma, cond_of, **settings)
            results |= {found.metric: found.mean, f"{found.metric}_se": found.standard_error}
        if self.wants("classify", denoiser):
            most = None if self.of_density["classify"] else max(1, CHEAP // denoiser.num_classes)
            accuracy, error, ece, n = classified(denoiser, self.data, sigma, cond_of, most=most, **settings)
            results |= {"class_accuracy": accuracy, "class_accuracy_se": error, "class_ece": ece, "num_classified": n}
        if self.wants("outliers", denoiser):
            most = None if self.of_density["outliers"] else max(1, CHEAP // (denoiser.num_classes or 1))
            scores = outlier_scores(denoiser, self.data, sigma, cond_of, most=most, **settings)
            results |= {f"auroc_{name}": score for name, score in scores.items()}
        if self.wants("interpolate", denoiser):
            results |= self._between(denoiser, cond_of, sigma, settings)
        return results

    def _between(
        self,
        denoiser: nn.Module,
        cond_of: Callable[[Tensor], Conditioning | None],
        sigma: float,
        settings: dict[str, int],
    ) -> dict[str, float]:
        try:
            pairs = PAIRS if self.of_density["interpolate"] else CHEAP_PAIRS
            found = likelihood_between(denoiser, self.data, sigma, cond_of, pairs=pairs, **settings)
        except (InverseDidNotConverge, DataError) as reason:  # no reason to lose a finished training
            log.warning("not interpolated: %s", reason)
            return {}
        name = f"interpolation_{found.metric}"
        return {name: found.mean, f"{name}_se": found.standard_error, "interpolation_straight": found.straight}

    def _lacking(self, key: str, denoiser: nn.Module) -> str | None:
        """What a setting of `of_density` would need and does not find."""
        if not denoiser.is_density:
            return "a normalised density: take network=score_flow"
        if key == "classify" and denoiser.num_classes is None:
            return "a class-conditional density: take conditioner=class"
        if key == "outliers" and len(self.data.shape) == 1:
            return "images, whose pixels it permutes: take another dataset"
        if key == "interpolate" and not hasattr(denoiser.network, "decode"):
            return "a density that encodes and decodes: take network=score_flow"
        return None

    def _real(self, which: str) -> FeatureStatistics:
        """Statistics of a split of the data, kept on disk beside the extractor that they belong to."""
        extractor, split = self.extractor, getattr(self.data, which)
        key = digest(extractor.weight_hash, self.data.name, self.data.levels, fingerprint(split))

        def make() -> dict[str, Any]:
            batches = (x for x, _ in split_batches(self.data, split, self.batch_size))
            features = (f for x in batches for f in extract(extractor, self.data, x, self.batch_size))
            return self._statistics(features).state_dict()

        path = self.cache_dir / "statistics" / f"{self.data.name}-{which}-{extractor.name}-{key}.pt"
        return FeatureStatistics.from_state_dict(cached(path, make))

    def _statistics(self, features: Iterable[Tensor]) -> FeatureStatistics:
        found = FeatureStatistics(self.extractor.num_features)
        for batch in features:
            found.update(batch)
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
