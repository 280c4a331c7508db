"""The wheel works outside of the checkout: configuration, types, console script and one training step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flowdiff

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def pip(*arguments):
    subprocess.run([sys.executable, "-m", "pip", "--no-input", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder into which the wheel is installed."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip("wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels))
    (wheel,) = wheels.iterdir()
    pip("install", str(wheel), "--no-deps", "--no-index", "--target", str(target))
    return target


def run(installed, cwd, *command):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_contains_the_configuration_and_says_that_it_is_typed(installed):
    package = installed / "flowdiff"
    assert (package / "py.typed").is_file()
    assert {file.relative_to(package / "conf") for file in (package / "conf").rglob("*.yaml")} == {
        file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")
    }


def test_one_training_step_outside_of_the_checkout(installed, tmp_path):
    run(
        installed,
        tmp_path,
        *(sys.executable, "-m", "flowdiff", "train", "dataset=digits", "trainer.max_steps=1", "logger=csv"),
        *("metrics.frechet=false", "metrics.likelihood=false"),
    )
    (result,) = map(json.loads, (file.read_text() for file in tmp_path.glob("outputs/*/result.json")))
    assert result["steps"] == 1
    assert result["versions"]["flowdiff"] == flowdiff.__version__
    assert result["git_commit"] is None  # an installed file belongs to no repository


def test_the_console_script_and_the_metadata(installed, tmp_path):
    assert "usage: flowdiff {train,sample," in run(installed, tmp_path, str(installed / "bin" / "flowdiff"), "--help")
    where = "import flowdiff, importlib.metadata as m; print(flowdiff.__file__, m.version('flowdiff'))"
    file, version = run(installed, tmp_path, sys.executable, "-c", where).split()
    assert Path(file).is_relative_to(installed)
    assert version == flowdiff.__version__
