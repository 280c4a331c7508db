"""A model: a denoiser with its condition, its latent space and its default way to sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.guidance import Guidance
from flowdiff.diffusion.hinting import Hinting, Seen
from flowdiff.diffusion.other_run import check_classes, check_fits
from flowdiff.diffusion.samplers.base import Callback, Sampler
from flowdiff.diffusion.samplers.clipping import Clip, Clipped, DataRange, say_unknown_range
from flowdiff.diffusion.samplers.dpmpp import DPMpp2M
from flowdiff.diffusion.samplers.generate import Progress, generate
from flowdiff.diffusion.samplers.image_start import NoisedImage, level_of
from flowdiff.diffusion.schedules import Schedule
from flowdiff.diffusion.sigma_samplers import SigmaSampler
from flowdiff.errors import ConfigurationError
from flowdiff.models.autoencoder.base import Autoencoder
from flowdiff.models.conditioners.base import Conditioner, Given, LabelledText
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.base import AutoencoderStage, FirstStage
from flowdiff.models.networks.base import AutoencoderNetwork, ImageTextNetwork, Network, NoisyClassifier
from flowdiff.noise import generators

RANGE_ROUNDING = 1e-5  # relative rounding error of the ends of a range that was computed in float32
SAME_SCALE = 0.02  # relative difference of the root mean squares of the same data, measured with other random numbers
MEASURING_SEED = 2**31 - 1  # seed of the trajectories that a schedule is measured on; users' seeds are smaller


class Guiding(Protocol):
    """Puts a model into a guidance; calling it again with the same models returns the same guidance."""

    def __call__(self, model: ConditionedDenoiser, start_model: ConditionedDenoiser | None = None, /) -> Guidance:
        """The model in its guidance; start_model: the model that start=flow draws from, by default the same."""


@dataclass(frozen=True)
class Sampling:
    """How a model samples by default.

    Args:
        sampler: the steps.
        schedule: the noise levels.
        guide: model → the model in its guidance.
        trained_levels: the distribution of the noise levels that the model was trained at.
        settings: {"sampler" | "schedule" | "guidance": settings that it was created from}; only `flowdiff.sample` reads
            them, to change some of them.
        clip: whether D is kept in the range of the data; auto: as measured to be best.
        start: noise, or flow: an exact sample of the density at sigma_start.
        sigma_start: noise level at which start=flow begins; None for the schedule's smallest.
    """

    sampler: Sampler
    schedule: Schedule
    guide: Guiding
    trained_levels: SigmaSampler
    settings: Mapping[str, Mapping[str, Any]]
    clip: Clip = "auto"
    start: str = "noise"
    sigma_start: float | None = None


class ConditionedDenoiser(nn.Module):
    """A denoiser with its conditioner, its first stage and its default way to sample.

    It is itself a denoiser, called with (x, σ, cond), in the space of the first stage's latents.

    Args:
        denoiser: D(x, σ, c).
        conditioner: labels → Conditioning.
        first_stage: data space ↔ the space of x.
        to_uint8: samples in data space → uint8 pictures.
        sampling: how to sample by default.
        data_range: the range of the clean data in the space of x.
        hinting: the hints that it reads; None if it reads none.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        conditioner: Conditioner,
        first_stage: FirstStage,
        to_uint8: Callable[[Tensor], Tensor],
        sampling: Sampling,
        data_range: DataRange,
        hinting: Hinting | None = None,
    ):
        super().__init__()
        self.data_range = data_range
        self.denoiser = denoiser
        self.conditioner = conditioner
        self.first_stage = first_stage
        self.to_uint8 = to_uint8
        self.sampling = sampling
        self.hinting = hinting
        self.levels_file: Path | None = None  # file of the run folder that keeps what schedule=optimal measures
        self.evaluations = 0  # samples that the network has evaluated through the methods below

    def __getstate__(self) -> dict[str, Any]:
        # The weight average deep-copies the model: the copy never samples, and a guidance may hold further models.
        return {**self.__dict__, "sampling": None}

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        """D(x, σ, c) for x (B, …), sigma (B,)."""
        self.evaluations += len(x)
        return self.denoiser(x, sigma, cond)

    @property
    def network(self) -> Network:
        """The network inside the denoiser."""
        return self.denoiser.network

    @property
    def is_density(self) -> bool:
        """Whether the network is a normalised density."""
        return self.denoiser.is_density

    @property
    def is_classifier(self) -> bool:
        """Whether the network is a classifier p(c|x, σ)."""
        return isinstance(self.network, NoisyClassifier)

    @property
    def is_autoencoder(self) -> bool:
        """Whether the network is an autoencoder, which does not denoise and samples from its prior."""
        return isinstance(self.network, AutoencoderNetwork)

    @property
    def can_sample(self) -> bool:
        """Whether it can be sampled: all networks but embeddings of images and captions, which have no D."""
        return not isinstance(self.network, ImageTextNetwork)

    @property
    def autoencoder(self) -> Autoencoder | AutoencoderStage | None:
        """The autoencoder that the network is, or that the first stage holds; None if there is neither."""
        if isinstance(self.network, AutoencoderNetwork):
            return self.network.autoencoder
        return self.first_stage if isinstance(self.first_stage, AutoencoderStage) else None

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
        """log p_σ(x|c) in nats, (B,); NotADensity for a raw network."""
        return self.denoiser.log_prob(x, sigma, cond)

    def log_prob_and_denoised(
        self, x: Tensor, sigma: Tensor, cond: Conditioning | None = None
    ) -> tuple[Tensor, Tensor]:
        """log p_σ(x|c) in nats, (B,), and D like x, from one evaluation; NotADensity for a raw network."""
        self.evaluations += len(x)
        return self.denoiser.log_prob_and_denoised(x, sigma, cond)

    def class_log_prob(self, x: Tensor, sigma: Tensor) -> Tensor:
        """log p(c|x, σ) of every class, (B, C) nats, of network=classifier."""
        assert isinstance(self.network, NoisyClassifier)  # guidance and metrics ask for this first
        self.evaluations += len(x)
        return self.network.class_log_prob(x, sigma)

    def cond_of(self, given: Given) -> Conditioning | None:
        """The condition of labels (B,), or of B captions."""
        device = self.sigma_data.device
        if isinstance(given, LabelledText):
            return self.conditioner(LabelledText(given.label.to(device), given.text))
        return self.conditioner(given.to(device) if isinstance(given, Tensor) else given)

    def cond_of_batch(self, batch: Seen) -> Conditioning | None:
        """The condition of each sample of a batch: its label, or its first caption, and its hints."""
        cond = self.cond_of(self.conditioner.given(batch))
        return cond if self.hinting is None else self.with_hint(cond, self.hinting.of_raw(batch.x))

    def with_hint(self, cond: Conditioning | None, hint: Tensor) -> Conditioning:
        """The condition with hints (B, C, H, W)."""
        return replace(cond or Conditioning(), hint=hint.to(self.sigma_data))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        label: int | Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        seed: int = 0,
        sampler: Sampler | None = None,
        schedule: Schedule | None = None,
        guidance: Guidance | None = None,
        start: str | None = None,
        sigma_start: float | None = None,
        start_model: ConditionedDenoiser | None = None,
        clip: Clip | None = None,
        batch_size: int = 512,
        indices: range | None = None,
        progress: Progress | None = None,
        callback: Callback | None = None,
        image: Tensor | None = None,
        strength: float = 1.0,
        hint: Tensor | None = None,
    ) -> Tensor:
        """n samples in data space, (n, *shape). Sample i of a seed is the same for every batch size.

        An autoencoder samples its prior and ignores sampler, schedule, guidance, start, clip and callback.

        Args:
            n: number of samples.
            label: one class for all samples, one class per sample, or None: every class in turn.
            prompt: one text for all samples, or several, which are taken in turn; None: the run's examples in turn.
            seed: sample i draws its numbers from (seed, i).
            sampler: the steps; by default the model's own.
            schedule: the noise levels; by default the model's own.
            guidance: a guidance around this model; by default the model's own.
            start: noise, from N(0, σ_max²), flow, from an exact sample of the density at sigma_start, or image, from
                `image` with noise; by default the model's own, with its own sigma_start.
            sigma_start: noise level in data units at which start=flow begins; None for the schedule's smallest.
            start_model: start=flow: a model of the same data from whose density the start is drawn; by default this
                one.
            clip: whether D is kept in the range of the data; by default as the model's own sampling says.
            batch_size: samples per batch.
            indices: which of the samples 0 … n − 1 to draw; None for all.
            progress: called with (samples drawn, samples in all) after every batch.
            callback: called in every sampler step.
            image: start=image: what all samples begin with, in data space, *shape.
            strength: start=image: how far it is noised, in (0, 1], as a share of the steps; 1 leaves nothing of it.
            hint: of a model that reads hints: the hints (m, C, H, W) in [-1, 1] that samples obey, in turn; None: those
                of its examples, with their classes or captions, unless others are asked for.

        Raises:
            ConfigurationError: an argument does not fit the model, e.g. a sigma_start that it was not trained at; or
                the model cannot be sampled.
        """
        if not self.can_sample:
            raise ConfigurationError("a run of network=clip does not denoise and cannot be sampled: take another run.")
        if isinstance(self.network, AutoencoderNetwork):
            return self._from_prior(self.network, range(n) if indices is None else indices, seed, batch_size, progress)
        sampler = sampler or self.sampling.sampler
        self._check_sampler(sampler)
        schedule = schedule or self.sampling.schedule
        guide = guidance or self.sampling.guide(self, start_model)
        start, sigma_start = self.begins(start, sigma_start)
        clipped = self.clips(clip, schedule, start, sigma_start)
        given, hints = self._asked(n, label, prompt, hint)
        begin, begin_cond_of = guide.start, None
        if start_model is not None:
            self.check_start(start_model, start, schedule.sigma_min if sigma_start is None else sigma_start)
            begin, begin_cond_of = begin or start_model.denoiser.density, start_model._conditions(given, None)
        if start == "image":
            begin = NoisedImage(self._encoded(image, seed))
            sigma_start = level_of(strength, schedule(sampler.num_steps))
        if sigma_start is not None:
            check_trained_at(sigma_start, self.sampling.trained_levels)
        was_training = self.training
        self.eval()
        try:
            schedule = schedule.fitted(self._trajectories, self.levels_file)
            sigmas = self._trained_grid(schedule(sampler.num_steps)) if start == "noise" else None
            z = generate(
                Clipped(guide, self.data_range) if clipped else guide,
                sampler,
                schedule,
                self.first_stage.latent_shape,
                n=n,
                seed=seed,
                cond_of=self._conditions(given, hints),
                start="flow" if start == "image" else start,
                sigma_start=sigma_start,
                start_density=begin,
                start_cond_of=begin_cond_of,
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

    def check_start(self, other: ConditionedDenoiser, start: str, sigma: float, named: str = "start_model") -> None:
        """Raise ConfigurationError unless samples can begin with the density of another model at the level sigma.

        Args:
            other: the other model.
            start: where sampling starts.
            sigma: the noise level of the start, in data units.
            named: the other model as the user names it.
        """
        if start != "flow":
            raise ConfigurationError(
                f"{named} was given with start={start}, which does not draw from a flow: set start=flow, or leave it "
                "out."
            )
        if not other.is_density:
            raise ConfigurationError(f"{named} has no density to draw from: give a run of network=score_flow.")
        role = "the model that denoises"
        check_fits(other, named, self, role)
        check_classes(other, named, self, role)
        if other.conditioner.reads_text != self.conditioner.reads_text:
            reads, does = ("reads", "does not") if other.conditioner.reads_text else ("does not read", "does")
            raise ConfigurationError(f"{named} {reads} text, and {role} {does}: give a run of the same conditions.")
        ours, theirs = float(self.sigma_data), float(other.sigma_data)
        if abs(ours - theirs) > SAME_SCALE * ours:
            raise ConfigurationError(
                f"{named} was trained on data of root mean square {theirs:.3g}, and {role} on data of {ours:.3g}: give "
                "a run of the same data."
            )
        check_trained_at(sigma, other.sampling.trained_levels)

    def _check_sampler(self, sampler: Sampler) -> None:
        """ConfigurationError if the sampler takes a denoiser and D is a consistency function, or the reverse."""
        if sampler.of_consistency and not self.denoiser.is_consistency:
            raise ConfigurationError(
                "sampler=consistency takes a consistency function, and this run's D is a denoiser: take another "
                "sampler, e.g. ancestral, or a run of loss=consistency."
            )
        if self.denoiser.is_consistency and not sampler.of_consistency:
            raise ConfigurationError(
                f"the sampler {type(sampler).__name__} takes a denoiser, and this run's D is a consistency function: "
                "take sampler=consistency."
            )

    def _encoded(self, image: Tensor | None, seed: int) -> Tensor:
        """A picture of data space in the space of the model, (1, *latent_shape)."""
        if image is None:
            raise ConfigurationError("start=image needs a picture to begin with: give image=…, or another start.")
        return self.first_stage.encode(image[None].to(self.sigma_data), generators(seed, [0]))

    def begins(self, start: str | None, sigma_start: float | None) -> tuple[str, float | None]:
        """Where `sample` with these arguments starts, and the noise level of start=flow; None as for `sample`."""
        if start is not None:
            return start, sigma_start
        return self.sampling.start, self.sampling.sigma_start if sigma_start is None else sigma_start

    def clips(
        self,
        clip: Clip | None,
        schedule: Schedule | None = None,
        start: str = "noise",
        sigma_start: float | None = None,
    ) -> bool:
        """Whether `sample` with these arguments keeps D in the range of the data.

        A flow's one-shot sample is exact and is never clipped. Where the range is not known nothing is clipped, which
        is said once, unless clip=auto and it cannot be known because the autoencoder is trained along.
        """
        wanted = self.sampling.clip if clip is None else clip
        smallest = (schedule or self.sampling.schedule).sigma_min
        one_shot = start == "flow" and (sigma_start is None or sigma_start <= smallest)
        if wanted is False or one_shot:
            return False
        if not self.data_range.known and (wanted is True or not self.first_stage.trained):
            say_unknown_range()
        return self.data_range.known

    @torch.no_grad()
    def _from_prior(
        self, network: AutoencoderNetwork, indices: range, seed: int, batch_size: int, progress: Progress | None
    ) -> Tensor:
        """Samples of an autoencoder's prior, (len(indices), *shape)."""
        batches = []
        for first in range(0, len(indices), batch_size):
            batch = indices[first : first + batch_size]
            z = network.from_prior(len(batch), generators(seed, batch))
            batches.append(self.first_stage.decode(z))
            self.evaluations += len(batch)
            if progress is not None:
                progress(first + len(batch), len(indices))
        return torch.cat(batches)

    def _trained_grid(self, grid: Tensor) -> Tensor:
        """A grid whose levels are those that the model was trained at, if it was trained at discrete levels."""
        return torch.cat([self.sampling.trained_levels.nearest(grid[:-1]), grid[-1:]])

    def _trajectories(self, sigmas: Tensor, n: int, callback: Callback) -> Tensor:
        """Trajectories that a schedule measures: in latent space, without guidance, every class in turn."""
        return generate(
            self.denoiser,  # its calls are not counted as evaluations for samples
            DPMpp2M(num_steps=len(sigmas) - 1),
            None,
            self.first_stage.latent_shape,
            n=n,
            seed=MEASURING_SEED,
            cond_of=self.conditions(n),
            sigmas=self._trained_grid(sigmas),
            batch_size=n,
            device=self.sigma_data.device,
            callback=callback,
        )

    def conditions(
        self,
        n: int,
        label: int | Sequence[int] | None = None,
        prompt: str | Sequence[str] | None = None,
        hint: Tensor | None = None,
    ) -> Callable[[Sequence[int]], Conditioning | None]:
        """A function that makes the conditions of some of n samples, by their positions; arguments as of `sample`."""
        return self._conditions(*self._asked(n, label, prompt, hint))

    def _asked(
        self, n: int, label: int | Sequence[int] | None, prompt: str | Sequence[str] | None, hint: Tensor | None
    ) -> tuple[Given | None, Tensor | None]:
        """The class or the prompt of each of n samples, and their hints; arguments as of `sample`."""
        hints = self.hints(n, hint)
        if hint is not None and label is None and self.num_classes is not None and prompt is None:
            label = [i % self.num_classes for i in range(n)]  # and not the classes of the examples
        return self.given(n, label, prompt), hints

    def _conditions(self, given: Given | None, hints: Tensor | None) -> Callable[[Sequence[int]], Conditioning | None]:
        """A function that makes the conditions of some samples from what was asked for all, by their positions."""

        def of(indices: Sequence[int]) -> Conditioning | None:
            rows = list(indices)
            if given is None:
                cond = None
            elif isinstance(given, Tensor | LabelledText):
                cond = self.cond_of(given[rows])
            else:
                cond = self.cond_of([given[i] for i in rows])
            return cond if hints is None else self.with_hint(cond, hints[rows])

        return of

    def hints(self, n: int, hint: Tensor | None = None) -> Tensor | None:
        """The hints of n samples, (n, C, H, W): those given, or examples, in turn; None if the model reads none.

        Raises:
            ConfigurationError: the model reads no hints, or hints of another shape.
        """
        if self.hinting is None:
            if hint is not None:
                raise ConfigurationError(
                    "a hint was given to a model that reads none: remove it, or take a run of adapter=control."
                )
            return None
        if hint is None:
            return self.hinting.examples(n)
        return self.hinting.checked(hint)[torch.arange(n) % len(hint)]

    def given(
        self, n: int, label: int | Sequence[int] | None = None, prompt: str | Sequence[str] | None = None
    ) -> Given | None:
        """The class of each of n samples, (n,), or its prompt, or both; None for an unconditional model.

        A model that reads both takes one of them alone, if it was trained without the other at times. Where neither is
        asked for, those of a model that reads hints are the classes and captions of its examples.

        Raises:
            ConfigurationError: a label or a prompt was given to a model that does not read it, or is out of range.
        """
        if self.hinting is not None and label is None and prompt is None and len(self.hinting.label):
            rows = [i % len(self.hinting.label) for i in range(n)]
            if self.num_classes is not None:
                label = self.hinting.label[rows].tolist()
            if self.conditioner.reads_text and self.hinting.texts:
                prompt = [self.hinting.texts[row] for row in rows]
        if not self.conditioner.reads_text:
            if prompt is not None:
                raise ConfigurationError(
                    f"prompt={prompt!r} was given to a model that does not read text: remove prompt, or train with "
                    "conditioner=text and a data set with captions."
                )
            return self.labels(n, label)
        if label is not None and self.num_classes is None:
            raise ConfigurationError(
                f"class_label={label} was given to a model that reads text: give a prompt instead."
            )
        prompts = self.conditioner.examples() if prompt is None else [prompt] if isinstance(prompt, str) else prompt
        if not prompts:
            raise ConfigurationError("prompt is an empty list: give at least one text, or leave prompt out.")
        texts = [prompts[i % len(prompts)] for i in range(n)]
        if self.num_classes is None:
            return texts
        if label is None and prompt is None:
            classes = self.conditioner.example_classes()
            return LabelledText(torch.tensor([classes[i % len(classes)] for i in range(n)]), texts)
        if (label is None or prompt is None) and not self.conditioner.alone:
            missing, other = ("class_label", "prompt") if label is None else ("prompt", "class_label")
            raise ConfigurationError(
                f"{other} was given without {missing}, and this model was always trained with both: give both, or "
                "train with conditioner.label.drop > 0 and conditioner.text.drop > 0."
            )
        classes_of = torch.full((n,), -1) if label is None else self.labels(n, label)
        assert classes_of is not None  # there are classes
        return LabelledText(classes_of, [None] * n if prompt is None else texts)

    def prompts(
        self, n: int, label: int | Sequence[int] | None = None, prompt: str | Sequence[str] | None = None
    ) -> list[str] | None:
        """The text that each of n samples is drawn for; None for a model that does not read text."""
        given = self.given(n, label, prompt)
        if given is None or isinstance(given, Tensor):
            return None
        return [text or "" for text in (given.text if isinstance(given, LabelledText) else given)]

    def labels(self, n: int, label: int | Sequence[int] | None) -> Tensor | None:
        """The class of each of n samples, (n,); None for an unconditional model; ConfigurationError if out of range."""
        if self.num_classes is None:
            if label is not None:
                raise ConfigurationError(
                    f"class_label={label} was given to an unconditional model: remove class_label."
                )
            return None
        if label is None:
            return torch.arange(n) % self.num_classes
        given = torch.as_tensor(label).expand(n) if isinstance(label, int) else torch.as_tensor(label)
        if len(given) != n:
            raise ConfigurationError(
                f"class_label={label} names {len(given)} classes, and {n} samples are drawn: give one class for all of "
                f"them, or a list of {n} classes."
            )
        if bool(((given < 0) | (given >= self.num_classes)).any()):
            raise ConfigurationError(
                f"class_label={label} is out of range: this model knows the classes 0 … {self.num_classes - 1}."
            )
        return given


def check_trained_at(sigma: float, trained_levels: SigmaSampler) -> None:
    """Raise ConfigurationError for a noise level at which the model was not trained."""
    margin = torch.finfo(torch.float32).eps / 2
    low, high = trained_levels.quantile(torch.tensor([margin, 1 - margin])).tolist()
    if not low * (1 - RANGE_ROUNDING) <= sigma <= high * (1 + RANGE_ROUNDING):
        raise ConfigurationError(
            f"a start at sigma={sigma:g} is not allowed: this model was trained at {low:.3g} … {high:.3g} and is not "
            "defined at other noise levels; choose sigma_start in that range."
        )
