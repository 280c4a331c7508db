"""A search over runs: an Optuna study in a file of the sweep folder.

The process of the sweep asks the study for trials and tells it how their runs ended. The process of a run, on whatever
machine, finds its trial in the file by its run id, reports its metric at every validation and asks whether to continue.
The config of a run does not mention the search, so a run of a search is the same run as any other.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import NonNegativeInt, PositiveInt

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.records import Unreadable, read_csv
from flowdiff.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.journal"  # in the sweep folder
MIN_TRIALS_FOR_IMPORTANCE = 5  # complete trials
# Keys of a trial's attributes: its run id, its overrides, and why it makes no sense.
RUN, OVERRIDES, REFUSED = "run", "overrides", "refused"


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True, extra="forbid"))
class Settings:
    """The settings in conf/hydra/sweeper/optuna.yaml except params; the file explains each of them."""

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
        """Validate the settings; ConfigurationError names the first that is not allowed."""
        try:
            return cls(**given)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            key, allowed = str(first["loc"][0]), first["msg"][0].lower() + first["msg"][1:]
            raise ConfigurationError(f"hydra.sweeper.{key}={given.get(key)} is not allowed: {allowed}.") from None


def require_optuna() -> None:
    """ConfigurationError if Optuna is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigurationError(
            "hydra/sweeper=optuna needs Optuna, which is not installed: pip install -e '.[optuna]', or sweep over "
            "values with hydra/sweeper=grid."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the board shows the same about the runs


class Search:
    """The study of one search. A search with another space, metric or other fixed overrides is another study.

    A trial is *open* from the moment it is asked for until its run is complete, pruned or failed.

    Args:
        sweep: the sweep folder.
        settings: the settings of the search.
        space: the distribution of each override key that is searched over.
        fixed: the other overrides that affect numbers.
    """

    def __init__(self, sweep: Path, settings: Settings, space: Mapping[str, BaseDistribution], fixed: Sequence[str]):
        import optuna

        require_optuna()
        self.sweep = sweep
        self.settings = settings
        self.space = dict(space)
        described = {key: optuna.distributions.distribution_to_json(d) for key, d in self.space.items()}
        known = [sorted(fixed), described, settings.metric, settings.direction]
        self.name = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]
        self._storage = _storage(sweep)
        self.study = self._open()

    def delete_trials(self) -> None:
        """Delete all trials, to search from scratch."""
        import optuna

        optuna.delete_study(study_name=self.name, storage=self._storage)
        self.study = self._open()

    def trials(self, *states: str) -> list[FrozenTrial]:
        """The trials in these states (COMPLETE, PRUNED, FAIL, RUNNING; none: all), in the order they were asked for."""
        from optuna.trial import TrialState

        return self.study.get_trials(deepcopy=False, states=[TrialState[s] for s in states] or None)

    def ask(self, params: Mapping[str, Any] | None = None) -> FrozenTrial:
        """A new trial, with these parameters, or, if None, with parameters that the sampler draws.

        The draw is a function of the seed, the number of the trial and the results so far: an interrupted search
        continues as if it had not been interrupted.
        """
        if params is not None:
            self.study.enqueue_trial(dict(params))
        self.study.sampler = _sampler(self.settings, len(self.trials()))
        return self._trial(self.study.ask(self.space).number)

    def assign(self, trial: FrozenTrial, run: str, overrides: Sequence[str]) -> FrozenTrial:
        """Set the run id and the overrides of a trial, so that the process of the run finds it; returns the trial."""
        self._note(trial, OVERRIDES, list(overrides))
        self._note(trial, RUN, run)
        return self._trial(trial.number)

    def refuse(self, trial: FrozenTrial, overrides: Sequence[str], why: str) -> None:
        """Close a trial whose parameters make no sense together."""
        self._note(trial, OVERRIDES, list(overrides))
        self._note(trial, REFUSED, why)
        self._tell(trial, "FAIL")

    def folder(self, run: str) -> RunFolder | None:
        """The folder of a run of the sweep; None if it has not begun."""
        found = sorted(path for path in self.sweep.glob(f"*-{run}") if path.is_dir())
        return RunFolder(found[0]) if found else None

    def has_ended(self, run: str) -> bool:
        """Whether a run is complete or was pruned by this study."""
        folder = self.folder(run)
        return folder is not None and (folder.is_complete or self._has_pruned(folder))

    def settle(self, trial: FrozenTrial) -> bool:
        """Close an open trial if its run has ended, in whatever way; returns whether it is closed.

        Raises:
            RunError: the run is complete but did not measure the metric.
        """
        folder = self.folder(trial.user_attrs[RUN])
        if folder is None:
            return False
        if folder.is_complete:
            value = last_value(folder, self.settings.metric)
            if math.isnan(value):  # Optuna does not accept it as a value
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
        """The last trial of each run whose last trial failed."""
        last = {trial.user_attrs[RUN]: trial for trial in self.trials() if RUN in trial.user_attrs}
        return [trial for trial in last.values() if trial.state.name == "FAIL"]

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best value."""
        complete = self.trials("COMPLETE")
        sign = 1 if self.settings.direction == "minimize" else -1
        return min(complete, key=lambda trial: sign * (trial.value or 0.0)) if complete else None

    def importances(self) -> dict[str, float]:
        """How much each parameter contributes to what separates good trials from the rest; the shares add up to 1.

        Empty if the complete trials are too few or all equal.

        Source: Watanabe, Bansal, Hutter, PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
        Subspaces, 2023.
        """
        import optuna

        complete = self.trials("COMPLETE")
        if len(complete) < MIN_TRIALS_FOR_IMPORTANCE or len({trial.value for trial in complete}) == 1:
            return {}
        shares = optuna.importance.get_param_importances(self.study)
        return shares if sum(shares.values()) > 0 else {}

    def _has_pruned(self, folder: RunFolder) -> bool:
        pruned = folder.pruned()
        return pruned is not None and pruned["study"] == self.name

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
    """The trial of a run, as the process of the run sees it. study: the name of its study; metric: what to report."""

    def __init__(self, trial: Trial, metric: str):
        self.metric = metric
        self.study = trial.study.study_name
        self._trial = trial

    @classmethod
    def find(cls, sweep: Path, run: str) -> OpenTrial | None:
        """The open trial with this run id in the studies of a sweep folder; None if there is none."""
        if not (sweep / STUDY_FILE).is_file():
            return None
        require_optuna()
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

    def should_prune(self, step: int, value: float) -> bool:
        """Report the metric after `step` optimiser steps, and return whether the study ends the run here."""
        reported = self._trial.study.trials[self._trial.number].intermediate_values
        if step not in reported:  # a resumed run reports a step twice
            self._trial.report(value, step)
        return self._trial.should_prune()


def last_value(folder: RunFolder, metric: str) -> float:
    """The last value in a column of metrics.csv, NaN if the result has no number; RunError if there is no value."""
    if folder.is_complete and metric in (folder.result().get("reasons") or ()):
        return math.nan
    header: list[str] = []
    rows: list[list[str]] = []
    with suppress(Unreadable):
        header, *rows = read_csv(folder.metrics) or [[]]
    at = header.index(metric) if metric in header else len(header)
    values = [row[at] for row in rows if len(row) > at and row[at]]
    if not values:
        columns = ", ".join(key for key in header if key != "step" and rows)
        raise RunError(
            f"hydra.sweeper.metric={metric} was not measured: {folder.metrics} has {columns or 'no rows'}; choose one "
            "of these (complete runs are not trained again)."
        )
    with suppress(ValueError):
        return float(values[-1])
    return math.nan


def _storage(sweep: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = str((sweep / STUDY_FILE).absolute())
    # This lock is taken over half a minute after a process was killed while it wrote.
    return JournalStorage(JournalFileBackend(file, JournalFileOpenLock(file)))


def _sampler(settings: Settings, number: int) -> BaseSampler:
    import optuna
    from numpy.random import SeedSequence

    seed = int(SeedSequence([settings.seed, number]).generate_state(1)[0])
    if settings.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(settings: Settings) -> BasePruner:
    import optuna

    if settings.pruner == "none":
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_steps)
