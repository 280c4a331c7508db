"""The arguments of Lightning's Trainer that a run takes, with their types and ranges.

Lightning checks many of its arguments late, or not at all. They are checked here, before anything starts. Arguments
that flowdiff sets itself are refused, and the message names the setting to use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any

from omegaconf import OmegaConf

from flowdiff.errors import ConfigurationError, nearest, text_hint
from flowdiff.yaml_defaults import CONF, plain_node

INT64 = 2**63 - 1  # the largest number of steps that a checkpoint can hold
DURATION = "a duration DD:HH:MM:SS > 0, e.g. 00:01:30:00, or {hours: 1, minutes: 30}"


def is_integer(value: object, low: int, high: int = INT64) -> bool:
    """Whether a value is an integer low … high; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: object) -> bool:
    """Whether a value is a finite number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def seconds_of(value: object) -> float | None:
    """The seconds of a duration, as text DD:HH:MM:SS or as {unit: number}; None if the value is not a duration."""
    if isinstance(value, str):
        read = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", value.strip())
        units = ("days", "hours", "minutes", "seconds")
        value = None if read is None else dict(zip(units, map(int, read.groups()), strict=True))
    if not isinstance(value, Mapping) or not all(map(is_number, value.values())):
        return None
    try:
        return timedelta(**value).total_seconds()
    except (TypeError, OverflowError):
        return None


def check_trainer(trainer: object) -> None:
    """Raise ConfigurationError for the first argument in the config node `trainer` that a run does not take."""
    if not isinstance(trainer, Mapping):
        raise ConfigurationError(f"trainer={trainer} is not allowed: it is a group of settings, set trainer.max_steps.")
    for key in trainer_defaults():
        if key not in trainer:
            raise ConfigurationError(f"trainer.{key} is missing: a run needs it; remove ~trainer.{key}.")
    for key, value in trainer.items():
        if key in SET_BY_FLOWDIFF:
            raise ConfigurationError(f"trainer.{key} cannot be set: {SET_BY_FLOWDIFF[key]}.")
        if key not in ARGUMENTS:
            raise ConfigurationError(
                f"trainer.{key} is not an argument of Lightning's Trainer that a run takes: {nearest(key, ARGUMENTS)}."
            )
        allowed, fits = ARGUMENTS[key]
        if not fits(value):
            raise ConfigurationError(
                f"trainer.{key}={value} is not allowed: it must be {allowed}{text_hint(value, allowed)}."
            )


@cache
def trainer_defaults() -> dict[str, Any]:
    """The trainer's arguments in conf/config.yaml, with interpolations as they are written."""
    return plain_node(OmegaConf.load(CONF / "config.yaml").trainer, resolve=False)


def _none_or(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _at_least(low: int) -> Callable[[Any], bool]:
    return lambda value: is_integer(value, low)


def _one_of(*allowed: object) -> Callable[[Any], bool]:
    return lambda value: any(value is one or (isinstance(value, str) and value == one) for one in allowed)


def _is_duration(value: object) -> bool:
    return (seconds_of(value) or 0) > 0


# The allowed values in words, and the test.
ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "max_steps": ("an integer ≥ 1", _at_least(1)),
    "min_steps": ("an integer ≥ 0 or null", _none_or(_at_least(0))),
    "max_epochs": ("an integer ≥ 1, -1 or null", _none_or(lambda v: is_integer(v, -1) and v != 0)),
    "min_epochs": ("an integer ≥ 0 or null", _none_or(_at_least(0))),
    "max_time": (f"{DURATION}, or null", _none_or(_is_duration)),
    "gradient_clip_val": ("a number > 0 or null", _none_or(lambda v: is_number(v) and v > 0)),
    "gradient_clip_algorithm": ("norm, value or null", _one_of("norm", "value", None)),
    "accumulate_grad_batches": ("an integer ≥ 1", _at_least(1)),
    "val_check_interval": (
        f"an integer ≥ 1 (steps), {DURATION}, or null",
        _none_or(lambda v: is_integer(v, 1) or _is_duration(v)),
    ),
    "limit_train_batches": (
        "an integer ≥ 1 or null, because the stream of training batches is endless and has no share",
        _none_or(lambda v: is_integer(v, 1) or (isinstance(v, float) and v == 1)),
    ),
    "limit_val_batches": (
        "an integer ≥ 0, a share 0.0 … 1.0, or null",
        _none_or(lambda v: is_integer(v, 0) or (isinstance(v, float) and 0 <= v <= 1)),
    ),
    "log_every_n_steps": ("an integer ≥ 1", _at_least(1)),
    "detect_anomaly": ("true or false", _one_of(True, False)),
    "profiler": ("simple, advanced, pytorch or null", _one_of("simple", "advanced", "pytorch", None)),
    "benchmark": ("true, false or null", _one_of(True, False, None)),
    "deterministic": ("true, false, warn or null", _one_of(True, False, "warn", None)),
    "sync_batchnorm": ("true or false", _one_of(True, False)),
    "reload_dataloaders_every_n_epochs": ("an integer ≥ 0", _at_least(0)),
}

_BY_ACCELERATOR = "the accelerator has this setting; set accelerator.{}"
_NO_LOOP = "a run has no such loop, it measures its samples after the training; see metrics.num_samples"
# Why an argument cannot be set, and what to use.
SET_BY_FLOWDIFF = {
    "accelerator": _BY_ACCELERATOR.format("kind"),
    **{key: _BY_ACCELERATOR.format(key) for key in ("strategy", "devices", "num_nodes", "precision")},
    "logger": "loggers are a group of their own; set logger=csv, tensorboard or wandb",
    "callbacks": "every run has the same callbacks; remove it",
    "plugins": "flowdiff detects the cluster itself; remove it",
    "fast_dev_run": "it would count one step as a complete run; use debug=fast_dev_run",
    "overfit_batches": "use debug=overfit, which also fixes the noise",
    "limit_test_batches": _NO_LOOP,
    "limit_predict_batches": _NO_LOOP,
    "check_val_every_n_epoch": "validation counts steps, because the stream of batches is endless; set "
    "trainer.val_check_interval",
    "num_sanity_val_steps": "a run is checked before it starts; use debug=fast_dev_run to try every part of it",
    "enable_checkpointing": "every run writes checkpoints, as often as trainer.val_check_interval; remove it",
    "enable_progress_bar": "flowdiff shows its own bar; remove it",
    "enable_model_summary": "flowdiff logs the number of parameters itself; remove it",
    "inference_mode": "a score is a gradient, also in validation; remove it",
    "use_distributed_sampler": "every rank is given its own part of the data; remove it",
    "barebones": "it turns off what a run needs: checkpoints and metrics; remove it",
    "default_root_dir": "the run folder holds all files; set hydra.run.dir",
    "enable_autolog_hparams": "flowdiff passes the config to the logger itself; remove it",
    "model_registry": "every run writes checkpoints/last.ckpt; set logger.checkpoint=true to upload it to W&B",
}
