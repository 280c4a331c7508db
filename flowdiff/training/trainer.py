"""Lightning's Trainer of a run: its own arguments from the config, and what every run needs."""

from __future__ import annotations

import os
import shlex
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    KubeflowEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim.swa_utils import get_ema_multi_avg_fn

from flowdiff.config.trainer_arguments import seconds_of
from flowdiff.errors import ConfigurationError, FlowdiffError
from flowdiff.runs.processes import place
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import RunParts
from flowdiff.training.averages import ramped
from flowdiff.training.checkpoint import ResumableCheckpoint
from flowdiff.training.threads import Threads

LIGHTNING = f"{Path(str(lightning.__file__)).parent}{os.sep}"
TRAINER_VARIABLES = "PL_TRAINER_"  # by them Lightning takes arguments of its Trainer from the environment
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}  # they write <run folder>/fit-profile*.txt
# Lightning's advice that does not apply: our loaders index whole batches in memory, srun on the PATH is not a job, and
# the Fréchet distance is measured on rank 0 only. The fourth is lightning 2.6 calling torch >= 2.15.
ADVICE = (
    ".*does not have many workers.*",
    ".*The `srun` command is available.*",
    ".*GPU available but not used.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*recommended to use `self.log\\('fd_.*sync_dist=True.*",
)


def make_trainer(
    parts: RunParts, folder: RunFolder, loggers: Sequence[Logger], callbacks: Sequence[Callback]
) -> Trainer:
    """The Trainer of a run; ConfigurationError where Lightning refuses its arguments."""
    if behind := sorted(key for key in os.environ if key.startswith(TRAINER_VARIABLES)):
        key = behind[0].removeprefix(TRAINER_VARIABLES).lower()
        raise ConfigurationError(
            f"{behind[0]}={os.environ[behind[0]]} in the environment would change the trainer, and the config would "
            f"not show it: unset it, and set trainer.{key} if a run takes it."
        )
    arguments = dict(parts.trainer)
    decay = parts.optimizer.ema_decay
    rampup = parts.optimizer.ema.rampup
    averaging = ramped(decay, rampup) if rampup else get_ema_multi_avg_fn(decay)
    average = [WeightAveraging(use_buffers=False, multi_avg_fn=averaging)] if decay else []
    if arguments["profiler"] in PROFILERS:  # given by name, Lightning's profiler would write to a logger we silence
        arguments["profiler"] = PROFILERS[arguments["profiler"]](folder.path, "profile")
    every = arguments["val_check_interval"]
    seconds = None if every is None else seconds_of(every)
    steps = every if isinstance(every, int) else arguments["max_steps"]
    saving = ResumableCheckpoint(folder.checkpoint, steps, resume_command(folder), seconds)
    if every is None:
        arguments["limit_val_batches"] = 0
        del arguments["val_check_interval"]
    elif isinstance(every, int):
        arguments["val_check_interval"] = every * arguments["accumulate_grad_batches"]  # Lightning counts batches
    with lightning_errors():
        trainer = Trainer(
            **parts.accelerator.trainer_arguments,
            **arguments,
            logger=list(loggers),
            callbacks=[*callbacks, *average, saving],
            default_root_dir=folder.path,
            check_val_every_n_epoch=None,  # the training stream is endless: validation counts steps
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data module gives every rank its own part
            plugins=[_cluster()],
            inference_mode=False,  # a score is a gradient, also in validation
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    if trainer.world_size == 1:
        # Lightning has read it from the environment, where it may be left over.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # lightning_utilities sets it on the function
    elif seconds is not None:
        raise ConfigurationError(
            f"trainer.val_check_interval={every} is measured by the clocks of {trainer.world_size} processes, which "
            "would not validate at the same step: give a number of steps."
        )
    return trainer


@contextmanager
def lightning_errors(trainer: Trainer | None = None) -> Iterator[None]:
    """Raise errors by which Lightning refuses a configuration as ConfigurationError.

    trainer: a trainer that fits inside the `with`. Lightning checks some of its arguments only there, before the first
    step. What it raises later is not about the configuration, unless its type says so.
    """
    before = 0 if trainer is None else trainer.global_step
    try:
        yield
    except FlowdiffError:
        raise
    except Exception as error:
        setting_up = trainer is None or trainer.global_step == before
        if not isinstance(error, MisconfigurationException) and not (setting_up and _raised_by_lightning(error)):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ConfigurationError(f"the trainer refuses this configuration: {first}.") from error


def _raised_by_lightning(error: Exception) -> bool:
    """Whether an exception comes from a line of Lightning."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return files[-1].startswith(LIGHTNING)


def _cluster() -> ClusterEnvironment:
    """How the processes of the run find each other; flowdiff puts a job back into SLURM's queue itself."""
    launcher = place().launcher
    if launcher == "srun":
        return SLURMEnvironment(auto_requeue=False)
    if launcher == "torchrun":
        if TorchElasticEnvironment.detect():
            return TorchElasticEnvironment()
        if KubeflowEnvironment.detect():
            return KubeflowEnvironment()
    return LightningEnvironment()


def resume_command(folder: RunFolder) -> str:
    """The command that continues a run."""
    return f"python train.py {shlex.quote(f'resume={folder.path}')}"


def device_name(trainer: Trainer, threads: Threads | None) -> str:
    """What the run computes on; threads: what chooses their number, or None."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    number = torch.get_num_threads()
    plain = f"{number} thread" if number == 1 else f"{number} threads"
    return f"{device.type}, {plain if threads is None else threads.description}"


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence Lightning's advice that does not apply."""
    with warnings.catch_warnings():
        for message in ADVICE:
            warnings.filterwarnings("ignore", message)
        yield
