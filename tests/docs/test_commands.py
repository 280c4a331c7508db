"""Every command on every page composes: its settings exist and go together. Nothing is trained."""

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from pages import ROOT, commands, pages, words

from flowdiff import config, registry
from flowdiff.cli import sample

ID = "1a2b3c4d"  # of the runs that stand for those that a page calls <id>
# Programs that are not ours.
OTHERS = ("pip", "pytest", "cp", "mkdocs", "ruff", "mypy", "pre-commit", "tail", "wandb")


def is_pattern(command: str) -> bool:
    """Whether it is a name or a form, and not a command: `flowdiff status`, `python train.py <group>=<option>`."""
    return "…" in command or re.search(r"<(?!id>)", command) is not None or len(command.split()) < 3


FOUND = {" ".join(words(c)): words(c) for text in pages().values() for c in commands(text) if not is_pattern(c)}
COMMANDS = {name: split for name, split in FOUND.items() if split}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the plugins of the pages and the runs that commands name; the registry is restored afterwards."""
    for group in registry.GROUP_MODULES:
        registry.names(group)  # imports it
    Plugins.instance()  # Hydra's own options, which it stores when it first looks for them, are to stay
    known = {group: dict(components) for group, components in registry._components.items()}
    stored = {
        group: dict(options) for group, options in ConfigStore.instance().repo.items() if isinstance(options, dict)
    }
    path = tmp_path_factory.mktemp("commands")
    for text in pages().values():
        for mark, code in re.findall(r"```python\n(# \w+\.py|%%writefile \w+\.py)\n(.*?)```", text, re.DOTALL):
            (path / mark.split()[-1]).write_text(code)
    for name in sorted(
        {run for split in COMMANDS.values() for word in split for run in re.findall(r"[\w./-]+-<id>", word)}
    ):
        experiment = re.search(r"experiment-(\w+)-<id>", name)
        run = path / name.replace("<id>", ID)
        run.mkdir(parents=True)
        composed = config.compose([f"experiment={experiment[1]}"] if experiment else [])
        OmegaConf.save(OmegaConf.create(config.resolved(composed)), run / "config.yaml")
    yield path
    for group, components in known.items():
        registry._components[group].clear()
        registry._components[group].update(components)
    repo = ConfigStore.instance().repo
    for group in [group for group, options in repo.items() if isinstance(options, dict)]:
        repo[group] = stored.get(group, {})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_composes(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    run(*(word.replace("<id>", ID).replace("$run", f"outputs/default-{ID}") for word in COMMANDS[name]))


def run(program: str, *arguments: str) -> None:
    """Check a command as far as it can be without doing anything."""
    if program == "torchrun":
        at = arguments.index("sample.py")
        run("python", *arguments[at:])
    elif program == "sbatch":
        run(*words(arguments[-1]))  # behind --wrap
    elif program in ("apptainer", "docker"):
        if arguments[0] == "run":
            at = next(i for i, word in enumerate(arguments) if word in ("flowdiff", "flowdiff.sif"))
            run("flowdiff", *arguments[at + 1 :])
    elif program == "python" and arguments[0] in ("train.py", "sample.py"):
        run("flowdiff", arguments[0].removesuffix(".py"), *arguments[1:])
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif program == "flowdiff" and arguments[0] in ("train", "sample"):
        {"train": compose_train, "sample": compose_sample}[arguments[0]](list(arguments[1:]))
    elif program == "flowdiff":
        parse(arguments[0], list(arguments[1:]))
    else:
        assert program in OTHERS


def compose_train(arguments: list[str]) -> None:
    for overrides in jobs(arguments):
        config.check(config.compose(overrides))


def compose_sample(arguments: list[str]) -> None:
    for given in sample.one_run_each([a for a in arguments if a != "-m"]):
        one, _ = config.without(given, sample.NOT_IN_SAMPLE)  # as `sample.main` does
        sample.offer_settings_of_run(one)
        for overrides in jobs(sample.swept_together(["-m", *one] if "-m" in arguments else one)):
            config.check(config.compose(overrides, "sample"))


def jobs(arguments: list[str]) -> list[list[str]]:
    """The overrides of one run; with -m of some runs of the sweep, so that each value comes up in one of them."""
    given = [a for a in arguments if not a.startswith("-") and a != "job"]  # --cfg job
    if "-m" not in arguments:
        return [given]
    columns = []
    for override in OverridesParser.create().parse_overrides(given):
        if not override.is_sweep_override():
            columns.append([override.input_line])
        elif isinstance(override.value(), IntervalSweep):
            columns.append([f"{override.key_or_group}={override.value().start}"])
        else:
            columns.append([f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()])
    return [[column[i % len(column)] for column in columns] for i in range(max(map(len, columns)))]


class Parsed(Exception):
    """The arguments are fine."""


def parse(name: str, arguments: list[str]) -> None:
    """Stop a command without Hydra when it has read its arguments."""
    command, read = import_module(f"flowdiff.cli.{name}").main, argparse.ArgumentParser.parse_args

    def stop(*given):
        read(*given)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsed):
            command(arguments)


def test_the_pages_name_the_commands_that_people_look_for():
    readme = (ROOT / "README.md").read_text()
    for expected in ("train.py -m", "hydra/launcher=slurm", "flowdiff status", "flowdiff cancel", "flowdiff sync"):
        assert expected in readme


def test_a_wrong_setting_on_a_page_would_be_found(folder, monkeypatch):
    from flowdiff.errors import ConfigurationError

    monkeypatch.chdir(folder)
    for wrong in (["train.py", "flow.n_flow=3"], ["train.py", "-m", "flow=realnvp,reelnvp"], ["benchmarks/none.py"]):
        with pytest.raises((ConfigurationError, AssertionError)):
            run("python", *wrong)
    with pytest.raises(SystemExit):
        parse("report", ["--ouput"])


def test_the_plugins_of_a_page_are_files_that_it_shows(folder):
    named = {p for split in COMMANDS.values() for word in split for p in re.findall(r"plugins=\[(.*?)\]", word)}
    assert named
    assert all((Path(folder) / plugin).is_file() for plugin in named)
