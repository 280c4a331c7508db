"""From Hydra's list of overrides to a search: read the space, and pass batches of trials to the launcher."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from flowdiff import config
from flowdiff.errors import ConfigurationError, FlowdiffError, RunError
from flowdiff.launch.search.study import OVERRIDES, REFUSED, RUN, STUDY_FILE, Search, Settings, require_optuna
from flowdiff.launch.search.trial_row import TrialRow
from flowdiff.launch.sweep import composed, rehearse
from flowdiff.runs.files import removed_if_refused
from flowdiff.runs.identity import run_id, run_name
from flowdiff.runs.job import checked_retry
from flowdiff.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "open", "WAITING": "open"}
MAX_INVALID_IN_A_ROW = 10  # after so many invalid trials in a row a search gives up

PrintTable = Callable[[Sequence[TrialRow], str], None]
"""(trials, metric): prints the table of the trials."""
Draw = Callable[[Sequence[TrialRow], str, str, Mapping[str, float], Path], None]
"""(trials, metric, direction, importances, file): draws the search into a PNG file."""


def run(
    context: HydraContext,
    sweep: DictConfig,
    launcher: Launcher,
    settings: Mapping[str, Any],
    arguments: Sequence[str],
    print_table: PrintTable,
    draw: Draw,
) -> None:
    """Hydra's Sweeper.sweep: search until there are n_trials, then show them, the best one and its command.

    Args:
        context: Hydra's context.
        sweep: the config of the sweep.
        launcher: launches batches of trials.
        settings: the settings of conf/hydra/sweeper/optuna.yaml.
        arguments: the overrides of its params and of the command line.
        print_table: shows the trials at the end.
        draw: draws the trials at the end.

    Raises:
        ConfigurationError: the search cannot work.
        RunError: no trial has a value.
    """
    checked = Settings.checked(settings)
    require_optuna()
    retry = checked_retry(sweep.retry)
    space = search_space(OverridesParser.create(context.config_loader).parse_overrides(list(arguments)))
    folder = Path(sweep.hydra.sweep.dir)
    with removed_if_refused(folder, "multirun.yaml", f"{STUDY_FILE}*"):
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(sweep, folder / "multirun.yaml")
        search = _Search(context, sweep, launcher, folder, checked, space)
        if sweep.force or retry == "all":
            search.study.delete_trials()
        search.run(retry_failed=retry == "failed")
    search.conclude(print_table, draw)


def search_space(overrides: Sequence[Override]) -> dict[str, str | BaseDistribution]:
    """{override key: its distribution if it is searched, else the fixed override}; a later override of a key wins.

    choice(a,b) and a,b are categories, range(a,b,step) are numbers from a to b, interval(a,b) is any number between;
    tag(log, …) makes the logarithm uniform and int(…) makes the numbers whole. Raises ConfigurationError for others.
    """
    space: dict[str, str | BaseDistribution] = {}
    for override in overrides:
        searched = override.is_sweep_override()
        space[override.get_key_element()] = _distribution(override) if searched else str(override.input_line)
    if all(isinstance(word, str) for word in space.values()):
        raise ConfigurationError(
            "hydra/sweeper=optuna has nothing to search: give at least one choice(…), range(…) or interval(…), e.g. "
            "'optimizer.lr=tag(log,interval(1e-4,3e-3))'."
        )
    return space


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    if not isinstance(value, ChoiceSweep | RangeSweep | IntervalSweep):
        raise _not_searchable(override, "it is a glob")
    log = "log" in value.tags
    if value.tags - {"log"} or (log and isinstance(value, ChoiceSweep)):
        raise _not_searchable(override, "the only tag is log, and only a range or an interval can have it")
    if isinstance(value, RangeSweep | IntervalSweep):
        low = value.start
        high, step = (value.stop, value.step) if isinstance(value, RangeSweep) else (value.end, None)
        if low is None or high is None:
            raise _not_searchable(override, "an end is missing")
        whole = all(isinstance(number, int) for number in (low, high, step) if number is not None)
        if step is not None and step > 0:
            start, width = Decimal(str(low)), Decimal(str(step))  # Optuna counts the steps exactly
            high = float(start + (Decimal(str(high)) - start) // width * width)
        # On a logarithmic axis Optuna has no step, except the step 1 of whole numbers.
        step = None if log and whole and step == 1 else step
        try:
            if whole:
                return IntDistribution(int(low), int(high), log=log, step=1 if step is None else int(step))
            return FloatDistribution(low, high, log=log, step=step)
        except ValueError as error:
            raise _not_searchable(override, str(error).splitlines()[0].rstrip(".")) from None
    return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))


def _not_searchable(override: Override, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"{override.input_line} cannot be searched over ({why}): give choice(a,b), range(low,high) or "
        "interval(low,high) with low < high, and tag(log,…) only where low > 0."
    )


class _Search:
    """One call of a search: how many trials are left, and how a trial becomes a run."""

    def __init__(
        self,
        context: HydraContext,
        sweep: DictConfig,
        launcher: Launcher,
        folder: Path,
        settings: Settings,
        space: Mapping[str, str | BaseDistribution],
    ):
        self.context = context
        self.sweep = sweep
        self.launcher = launcher
        self.folder = folder
        self.settings = settings
        self.space = space
        searched = {key: word for key, word in space.items() if not isinstance(word, str)}
        # Overrides that do not affect the numbers may differ between two calls of one search.
        fixed = [word for word in space.values() if isinstance(word, str) and run_name([word]) == word]
        self.study = Search(folder, settings, searched, fixed)
        self._again: list[FrozenTrial] = []  # trials that failed in an earlier call and are run again
        self._invalid = 0  # invalid trials in a row

    def run(self, *, retry_failed: bool) -> None:
        """Batch after batch, until there are n_trials or a batch continues without this process."""
        set_aside: set[int] = set()
        if retry_failed:
            self._again = self.study.failed()
            set_aside = {trial.number for trial in self.study.trials("FAIL") if RUN in trial.user_attrs}
        asked = self.study.trials("RUNNING")  # left open by an earlier call
        batch = [trial for trial in asked if RUN in trial.user_attrs]
        half = [trial for trial in asked if RUN not in trial.user_attrs]
        # If a run of the batch exists, the batch is finished unchanged: the next batch is then chosen from the same
        # results as in a search that was not interrupted.
        whole = any(self.study.folder(trial.user_attrs[RUN]) for trial in batch)
        while True:
            while half or (not whole and len(batch) < min(self.settings.n_jobs, self._left(set_aside))):
                batch += self._assigned(half.pop(0) if half else self._asked())
            if not batch:
                return
            todo = [list(trial.user_attrs[OVERRIDES]) for trial in batch if not self._has_ended(trial)]
            if todo:
                self.launcher.launch(todo, batch[0].number)
            settled = [self.study.settle(trial) for trial in batch]
            if not all(settled):
                return
            batch, whole = [], False

    def _left(self, set_aside: set[int]) -> int:
        ended = self.study.trials("COMPLETE", "PRUNED", "FAIL")
        return self.settings.n_trials - sum(trial.number not in set_aside for trial in ended)

    def _asked(self) -> FrozenTrial:
        return self.study.ask(self._again.pop(0).params if self._again else None)

    def _assigned(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """The trial with its run; an empty list if its parameters are invalid."""
        overrides = [
            word if isinstance(word, str) else f"{key}={_text(trial.params[key])}" for key, word in self.space.items()
        ]
        try:
            settings = config.resolved(composed(self.context, self.sweep, overrides))
            # The launcher checks the devices they will run on.
            on_cpu = {**settings, "accelerator": config.defaults("accelerator", "cpu")}
            rehearse(on_cpu, RunFolder(self.folder))
        except FlowdiffError as error:
            self.study.refuse(trial, overrides, str(error))
            self._invalid += 1
            if self._invalid == min(MAX_INVALID_IN_A_ROW, self.settings.n_trials):
                raise ConfigurationError(
                    f"{self._invalid} trials in a row are invalid; the last one: {error}"
                ) from None
            return []
        self._invalid = 0
        return [self.study.assign(trial, run_id(settings), overrides)]

    def _has_ended(self, trial: FrozenTrial) -> bool:
        """Whether its run need not be launched; with force only runs that this search has trained count."""
        run = trial.user_attrs[RUN]
        known = any(other.user_attrs.get(RUN) == run for other in self.study.trials("COMPLETE", "PRUNED"))
        return (known or not self.sweep.force) and self.study.has_ended(run)

    def conclude(self, print_table: PrintTable, draw: Draw) -> None:
        """Show the trials, draw them, and print the best one's command; RunError if all have ended without a value."""
        rows = self._rows()
        metric, picture = self.settings.metric, self.folder / "search.png"
        print_table(rows, metric)
        open_trials = len(self.study.trials("RUNNING"))
        if open_trials:
            print(f"{open_trials} trials have not ended: when they have, the same command continues the search.")
        best = self.study.best()
        if best is None and not open_trials:
            raise RunError(f"none of {len(rows)} trials has a value of {metric}; the last one: {rows[-1].note}")
        if best is not None:
            draw(rows, metric, self.settings.direction, self.study.importances(), picture)
            print(f"best {metric} {best.value:.4g}, trial {best.number}; all trials in {picture}\n")
            print(f"  python train.py {shlex.join(best.user_attrs[OVERRIDES])}\n")

    def _rows(self) -> list[TrialRow]:
        """A row for each trial; of failed trials that share a run only the last one."""
        best = self.study.best()
        superseded = {trial.number for trial in self.study.trials("FAIL") if REFUSED not in trial.user_attrs}
        superseded -= {trial.number for trial in self.study.failed()}
        rows = []
        for trial in self.study.trials():
            if trial.number in superseded:
                continue
            state, note = STATES[trial.state.name], trial.user_attrs.get(REFUSED, "")
            folder = self.study.folder(trial.user_attrs.get(RUN, " "))
            if state == "pruned" and trial.last_step is not None:
                note = f"at step {trial.last_step:,}"
            elif state == "failed" and not note and folder is not None:
                note = folder.failure() or f"{self.settings.metric} is not a number"
            params = {key: _text(value) for key, value in trial.params.items()}
            value = trial.value if state == "complete" else None
            is_best = best is not None and trial.number == best.number
            rows.append(TrialRow(trial.number, state, note, params, value, dict(trial.intermediate_values), is_best))
        return rows


def _text(value: Any) -> str:
    """A value as an override has it; six digits are precise enough and short enough to read."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
