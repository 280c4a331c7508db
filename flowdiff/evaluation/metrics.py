"""What a trained model is worth: denoising loss, Fréchet distance beside its floor, likelihood, sampling speed.

The Fréchet distance compares n generated samples with the *training* split. Its floor does the same with the test
split, real images that the model has not seen; both are biased upward by their own n, which is reported with them.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from flowdiff.conditioning import Conditioning
from flowdiff.errors import NotADensity
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
from flowdiff.evaluation.likelihood import bits_per_dim
from flowdiff.registry import register


@register("metrics", "default")
class Metrics:
    """The numbers of a run's table, as {metric name: number}.

    every_n_steps, periodic_num_samples: how often, and on how many samples, the caller looks in while training.
    num_samples, repeats: samples of the final Fréchet distance, and over how many sampling seeds it is averaged.
    sigmas_per_sample: noise levels per test sample in the test loss.  sigma_eval: σ of the likelihood, null for the
    schedule's smallest.  cache_dir: where extractors and statistics of real data are kept.
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
        likelihood of densities: bpd, bpd_se of images, nats_per_dim, nats_per_dim_se of continuous data.
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
            if self.with_likelihood:
                results |= self._evaluate_likelihood(denoiser, cond_of, self.sigma_eval or sigma_min, seed)
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
            results[f"{name}_sd"] = statistics.stdev(distances)
        results[f"{name}_floor"] = self.floor
        results["num_samples"] = self.num_samples
        results["num_test"] = len(self.data.test)
        if self.extractor.accuracy is not None:
            results["extractor_accuracy"] = self.extractor.accuracy
        results["samples_per_second"] = self.repeats * self.num_samples / seconds
        return results

    def _evaluate_likelihood(
        self, denoiser: nn.Module, cond_of: Callable[[Tensor], Conditioning | None], sigma: float, seed: int
    ) -> dict[str, float]:
        try:
            found = bits_per_dim(denoiser, self.data, sigma, cond_of, seed=seed, batch_size=self.batch_size)
        except NotADensity:
            return {}  # a table of flows and raw networks leaves the cell empty
        return {found.metric: found.mean, f"{found.metric}_se": found.standard_error}

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
