"""A search over runs: an Optuna study in a file of the sweep folder.

The sweep's process asks the study for trials and tells it what became of their runs; the process of a run, wherever it
runs, finds its trial in the file by the run's identity, reports its metric there at every validation and asks whether
it is worth going on. Of all this a run's config knows nothing, so that a run of a search is the same run as any other.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import NonNegativeInt, PositiveInt

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

FILE = "study.journal"  # in the sweep folder
TELLING = 5  # complete trials from which on the importance of a parameter can be spoken of
# What the study keeps of a trial beside its parameters.
RUN, OVERRIDES, REFUSED = "run", "overrides", "refused"


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True, extra="forbid"))
class Settings:
    """What conf/hydra/sweeper/optuna.yaml holds beside params; its comments say what each means."""

    n_trials: PositiveInt
    n_jobs: PositiveInt
    metric: str
    direction: Literal["minimize", "maximize"]
    sampler: Literal["tpe", "random"]
    seed: NonNegativeInt
    pruner: Literal["median", "none"]
    startup_trials: NonNegativeInt
    warmup_steps: NonNegativeInt

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Settings:
        """From plain values; ConfigurationError names the first that is not allowed."""
        try:
            return cls(**given)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key, allowed = first["loc"][0], first["msg"][0].lower() + first["msg"][1:]
            raise ConfigurationError(f"hydra.sweeper.{key}={given.get(key)} is not allowed: {allowed}.") from None


def needed() -> None:
    """ConfigurationError where Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigurationError(
            "hydra/sweeper=optuna needs Optuna, which is not installed: pip install -e '.[optuna]', or sweep over "
            "values with hydra/sweeper=grid."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says of a trial the board says of its run


class Search:
    """The study of one search; one with other fixed overrides, space or metric in the same folder is another study.

    space: override key to distribution, fixed: the other overrides that decide numbers. A trial that was asked for is
    *open* until its run is complete, pruned or failed.
    """

    def __init__(self, sweep: Path, settings: Settings, space: Mapping[str, BaseDistribution], fixed: Sequence[str]):
        import optuna

        needed()
        self.sweep = sweep
        self.settings = settings
        self.space = dict(space)
        described = {key: optuna.distributions.distribution_to_json(d) for key, d in self.space.items()}
        known = [sorted(fixed), described, settings.metric, settings.direction]
        self.name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]
        self._storage = _storage(sweep)
        self.study = self._open()

    def begin_anew(self) -> None:
        """Forget all trials."""
        import optuna

        optuna.delete_study(study_name=self.name, storage=self._storage)
        self.study = self._open()

    def trials(self, *states: str) -> list[FrozenTrial]:
        """The trials in these states (COMPLETE, PRUNED, FAIL, RUNNING), or all, in the order they were asked for."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=[TrialState[s] for s in states] or None)

    def ask(self, params: Mapping[str, Any] | None = None) -> FrozenTrial:
        """A new trial, with these parameters or those that the sampler likes best.

        What the sampler draws is a function of its seed, the number of the trial and the results so far: a search that
        was interrupted goes on as if it had not been.
        """
        if params is not None:
            self.study.enqueue_trial(dict(params))
        self.study.sampler = _sampler(self.settings, len(self.trials()))
        return self._trial(self.study.ask(self.space).number)

    def assign(self, trial: FrozenTrial, run: str, overrides: Sequence[str]) -> FrozenTrial:
        """Say which run, by its identity, is the trial's: from here on the process of the run finds it. The trial."""
        self._note(trial, OVERRIDES, list(overrides))
        self._note(trial, RUN, run)
        return self._trial(trial.number)

    def refuse(self, trial: FrozenTrial, overrides: Sequence[str], why: str) -> None:
        """A trial whose parameters make no sense together."""
        self._note(trial, OVERRIDES, list(overrides))
        self._note(trial, REFUSED, why)
        self._tell(trial, "FAIL")

    def folder(self, run: str) -> RunFolder | None:
        """The folder of a run of the sweep, if it has one."""
        found = sorted(path for path in self.sweep.glob(f"*-{run}") if path.is_dir())
        return RunFolder(found[0]) if found else None

    def has_ended(self, run: str) -> bool:
        """Whether a run is complete, or was ended early by this study."""
        folder = self.folder(run)
        return folder is not None and (folder.is_complete or self._has_pruned(folder))

    def settle(self, trial: FrozenTrial) -> bool:
        """Close an open trial when its run has ended in whichever way. Whether it is closed.

        Raises RunError where a complete run did not measure the metric.
        """
        folder = self.folder(trial.user_attrs[RUN])
        if folder is None:
            return False
        if folder.is_complete:
            value = measured(folder, self.settings.metric)
            if math.isnan(value):  # to Optuna that is no value
                self._tell(trial, "FAIL")
            else:
                self._tell(trial, "COMPLETE", value)
        elif self._has_pruned(folder):
            self._tell(trial, "PRUNED")
        elif folder.failure() is not None:
            self._tell(trial, "FAIL")
        else:
            return False
        return True

    def failed(self) -> list[FrozenTrial]:
        """Of each run that failed, and has not ended otherwise since, the last trial."""
        last = {trial.user_attrs[RUN]: trial for trial in self.trials() if RUN in trial.user_attrs}
        return [trial for trial in last.values() if trial.state.name == "FAIL"]

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best value."""
        complete = self.trials("COMPLETE")
        sign = 1 if self.settings.direction == "minimize" else -1
        return min(complete, key=lambda trial: sign * trial.value) if complete else None

    def importances(self) -> dict[str, float]:
        """The share of each parameter in what separates good trials from the rest, adding up to 1 (PED-ANOVA).

        Empty where the complete trials are too few or too alike to say. Source: Watanabe, Bansal, Hutter, "PED-ANOVA:
        Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces", 2023.
        """
        import optuna

        complete = self.trials("COMPLETE")
        if len(complete) < TELLING or len({trial.value for trial in complete}) == 1:
            return {}
        shares = optuna.importance.get_param_importances(self.study)
        return shares if sum(shares.values()) > 0 else {}

    def _has_pruned(self, folder: RunFolder) -> bool:
        return (folder.pruned() or {}).get("study") == self.name

    def _trial(self, number: int) -> FrozenTrial:
        return self.trials()[number]

    def _note(self, trial: FrozenTrial, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(trial._trial_id, key, value)

    def _tell(self, trial: FrozenTrial, state: str, value: float | None = None) -> None:
        from optuna.trial import TrialState

        self.study.tell(trial.number, value, TrialState[state])

    def _open(self) -> Study:
        import optuna

        study = optuna.create_study(
            study_name=self.name, storage=self._storage, direction=self.settings.direction, load_if_exists=True
        )
        if study.user_attrs.get("settings") != asdict(self.settings):
            study.set_user_attr("settings", asdict(self.settings))  # for the processes of the runs
        return study


class OpenTrial:
    """The trial of a run, as the process of the run sees it."""

    def __init__(self, trial: Trial, metric: str):
        self.metric = metric
        self.study = trial.study.study_name
        self._trial = trial

    @classmethod
    def of(cls, sweep: Path, run: str) -> OpenTrial | None:
        """The open trial of a run in the studies of a sweep folder; None where no search asked for the run."""
        if not (sweep / FILE).is_file():
            return None
        needed()
        import optuna

        storage = _storage(sweep)
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            settings = Settings.checked(study.user_attrs["settings"])
            study.pruner = _pruner(settings)
            for trial in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
                if trial.user_attrs.get(RUN) == run:
                    return cls(optuna.Trial(study, trial._trial_id), settings.metric)
        return None

    def is_hopeless(self, step: int, value: float) -> bool:
        """Report the metric after `step` optimiser steps; whether the study would rather not go on."""
        if (
            step not in self._trial.study.trials[self._trial.number].intermediate_values
        ):  # else a resumed run repeats it
            self._trial.report(value, step)
        return self._trial.should_prune()


def measured(folder: RunFolder, metric: str) -> float:
    """The last value in a column of metrics.csv; RunError where there is none."""
    with folder.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    values = [row[metric] for row in rows if row.get(metric)]
    if not values:
        columns = ", ".join(key for key in (rows[0] if rows else ()) if key != "step")
        raise RunError(
            f"hydra.sweeper.metric={metric} was not measured: {folder.metrics} has {columns or 'no rows'}; take one of "
            "these (runs that are complete are not trained again)."
        )
    return float(values[-1])


def _storage(sweep: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = str((sweep / FILE).absolute())
    # Of a process that was killed while it wrote, the lock is taken over after half a minute.
    return JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))


def _sampler(settings: Settings, number: int) -> Any:
    import optuna
    from numpy.random import SeedSequence

    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    return samplers[settings.sampler](seed=int(SeedSequence([settings.seed, number]).generate_state(1)[0]))


def _pruner(settings: Settings) -> Any:
    import optuna

    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_steps)
