"""The model of another run that teaches the one in training: its D, guided if asked for, in its own conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from flowdiff.diffusion.denoiser import Denoise
from flowdiff.diffusion.other_run import OfData, check_classes, check_fits
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import FlowDensity, Network
from flowdiff.shapes import append_dims

ROLE = "the model in training"


class TeacherModel(OfData, Denoise, Protocol):
    """What a loss needs of the model of another run."""

    @property
    def network(self) -> Network: ...

    @property
    def conditioner(self) -> Conditioner: ...

    def to(self, device: torch.device) -> nn.Module: ...


Load = Callable[[str], TeacherModel]
Guided = Callable[[TeacherModel, Mapping[str, Any]], Denoise]


class Teacher:
    """The trained model of a run, loaded when it is first asked: a finished student is sampled without it.

    Args:
        load: run folder → its model.
        run: the folder.
        loss: the name of the loss, for its errors.
        guided: a model and the settings of a guidance → the model in that guidance.
        guidance: settings of the teacher's guidance, e.g. {name: cfg, scale: 2}; None for none.

    Raises:
        ConfigurationError: no folder, or a guidance that needs a run of its own.
    """

    def __init__(
        self,
        load: Load,
        run: str | None,
        loss: str,
        guided: Guided | None = None,
        guidance: Mapping[str, Any] | None = None,
    ):
        if run is None:
            raise ConfigurationError(
                f"loss={loss} needs a run that teaches: give loss.run=<run folder>, e.g. one below outputs/."
            )
        if guidance is not None and "run" in guidance:
            raise ConfigurationError(
                f"loss.guidance={dict(guidance)} needs a run of its own, which a teacher's guidance cannot have: take "
                "cfg or flow_classifier."
            )
        self.run = run
        self._load = load
        self._guided = guided
        self._guidance = guidance

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # the weight average copies what it averages, and a teacher never changes

    @cached_property
    def model(self) -> TeacherModel:
        """The model in eval mode; RunError if the folder holds none."""
        try:
            return self._load(self.run)
        except RunError as error:
            raise RunError(f"loss.run={self.run} cannot teach: {error}") from error

    @cached_property
    def _denoise(self) -> Denoise:
        if self._guidance is None:
            return self.model
        assert self._guided is not None  # who gives settings gives what reads them
        return self._guided(self.model, self._guidance)

    def check(self, student: OfData) -> None:
        """Raise ConfigurationError unless it is a model of the student's samples, latent space and classes."""
        named = f"loss.run={self.run}"
        check_fits(self.model, named, student, ROLE)
        check_classes(self.model, named, student, ROLE)
        if self.model.conditioner.reads_text:
            raise ConfigurationError(
                f"{named} reads text, and a teacher is asked by class: give a run of conditioner=class or none."
            )
        assert self._denoise is not None  # it may refuse its guidance

    def cond(self, cond: Conditioning | None) -> Conditioning | None:
        """The teacher's condition of the same classes as the student's condition; −1 is its null condition."""
        if self.model.num_classes is None:
            return None
        assert cond is not None  # `check` has compared the classes
        assert cond.label is not None
        n, known = len(cond.label), cond.label >= 0
        own = self.model.conditioner(cond.label.clamp(min=0))
        if own is None or bool(known.all()):
            return own
        null = self.model.conditioner.null(n)
        assert null is not None  # it has a condition, so it has a null condition
        return Conditioning.cat([own, null])[torch.arange(n, device=known.device) + n * ~known]

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning | None, scale: Tensor | None = None) -> Tensor:
        """D of the teacher, like x (B, …), at sigma (B,), for the condition of the student.

        scale: (B,), w of classifier-free guidance, D_∅ + w·(D_c − D_∅); None for the teacher's own guidance.
        """
        self.model.to(x.device)
        own = self.cond(cond)
        if scale is None:
            return self._denoise(x, sigma, own)
        null = self.model.conditioner.null(len(x))
        assert own is not None  # `check_guidable` has asked for classes
        assert null is not None
        both = self.model(torch.cat([x, x]), torch.cat([sigma, sigma]), Conditioning.cat([own, null]))
        conditional, free = both.chunk(2)
        return free + append_dims(scale, x.ndim) * (conditional - free)

    def check_guidable(self) -> None:
        """Raise ConfigurationError unless the model has classes and a null condition, for `scale`."""
        if self.model.num_classes is None or not self.model.conditioner.drop:
            raise ConfigurationError(
                f"loss.scales guides the teacher by its null condition, and loss.run={self.run} was trained without "
                "classes or label dropout: give a run with conditioner=class and conditioner.drop > 0, or set "
                "loss.scales=null."
            )


class FlowTeacher(Teacher):
    """The trained flow of a run: pairs (x, z) of samples and base points, exact in both directions.

    Args:
        load: run folder → its model.
        run: the folder.
        loss: the name of the loss, for its errors.
    """

    def __init__(self, load: Load, run: str | None, loss: str):
        super().__init__(load, run, loss)

    def check(self, student: OfData) -> None:
        super().check(student)
        network = self.model.network
        if not isinstance(network, FlowDensity) or not network.normal_base:
            raise ConfigurationError(
                f"loss.run={self.run} is not a flow whose base points are N(0, I): give a run of network=score_flow "
                "with network.components=0."
            )

    @property
    def flow(self) -> FlowDensity:
        """The network of the model."""
        assert isinstance(self.model.network, FlowDensity)  # `check` has refused others
        return self.model.network

    @torch.no_grad()
    def encode(self, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
        """The base point z of x, like x (B, …), at sigma (B,), for the condition of the student."""
        self.model.to(x.device)
        return self.flow.encode(x, sigma, self.cond(cond))

    @torch.no_grad()
    def decode(self, z: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
        """The sample x of a base point, like z (B, …), at sigma (B,), for the condition of the student."""
        self.model.to(z.device)
        return self.flow.decode(z, sigma, self.cond(cond))
