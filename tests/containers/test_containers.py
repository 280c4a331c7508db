"""The container files: they copy what the wheel needs, install the extras that exist, and say the same."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTRUCTIONS = {"FROM", "RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}
SECTIONS = {"help", "files", "post", "environment", "runscript"}


def dockerfile() -> list[tuple[str, str]]:
    """The instructions with their arguments; lines that go on are joined."""
    text = re.sub(r"^\s*#.*\n", "", (CONTAINERS / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def definition() -> dict[str, list[str]]:
    """The sections of the Apptainer definition, and its header as the section ''."""
    sections: dict[str, list[str]] = {"": []}
    for line in (CONTAINERS / "flowdiff.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            sections[name] = []
        elif line.strip() and not line.strip().startswith("#"):
            sections[[*sections][-1]].append(line.strip())
    return sections


def copied() -> dict[str, str]:
    """{path in the repository: path in the image} of the Dockerfile."""
    found = {}
    for name, arguments in dockerfile():
        if name == "COPY":
            *sources, target = arguments.split()
            found.update({s: target + s if target.endswith("/") else target for s in sources})
    return found


def commands() -> list[str]:
    return [part.strip() for name, given in dockerfile() if name == "RUN" for part in given.split("&&")]


def test_the_dockerfile_is_one():
    instructions = dockerfile()
    assert {name for name, _ in instructions} == INSTRUCTIONS
    assert instructions[0][0] == "FROM"
    image = instructions[0][1]
    version = re.fullmatch(r"python:(\d+)\.(\d+)-slim-\w+", image)  # a pinned tag
    minimum = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["project"]["requires-python"])
    assert version is not None
    assert tuple(map(int, version.groups())) >= tuple(map(int, minimum.groups()))
    for command in commands():
        words = shlex.split(command)
        assert words[:2] in (["apt-get", "update"], ["apt-get", "install"], ["pip", "install"], ["rm", "-rf"])
        if words[:2] == ["apt-get", "install"]:
            assert {"--yes", "--no-install-recommends"} <= set(words)
    (entry,) = [given for name, given in instructions if name == "ENTRYPOINT"]
    assert entry.strip('[]"') in PROJECT["project"]["scripts"]


def test_what_the_wheel_is_built_from_is_copied():
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "LICENSE", PROJECT["project"]["readme"], *wheel["packages"], *wheel["force-include"]}
    assert set(copied()) == needed
    assert all((ROOT / source).exists() for source in needed)
    ignored = (CONTAINERS / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == needed
    hidden = [line for line in ignored if line and line[0] not in "#!*"]
    assert not [source for source in needed for pattern in hidden if fnmatch.fnmatch(source, pattern)]


def test_the_extras_exist():
    (command,) = [c for c in commands() if c.startswith("pip")]
    words = shlex.split(command)
    extras = re.fullmatch(r"/src\[(.*)\]", words[-1])
    assert extras is not None
    known = PROJECT["project"]["optional-dependencies"]
    assert set(extras[1].split(",")) == set(known) - {"test", "docs", "dev", "bench"}
    assert "--no-cache-dir" in words


def test_the_definition_of_apptainer_says_the_same():
    sections = definition()
    assert set(sections) == {"", *SECTIONS}
    assert sections[""] == ["Bootstrap: docker", f"From: {dockerfile()[0][1]}"]
    assert dict(line.split() for line in sections["files"]) == copied()
    assert sections["post"] == commands()
    assert sections["runscript"] == ['exec flowdiff "$@"']


@pytest.mark.slow
def test_the_builder_finds_nothing_wrong():
    """Docker's own checks of the file; building it would fetch some gigabytes."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "buildx", "inspect"], capture_output=True, timeout=60).returncode:
        pytest.skip("needs docker with a builder")
    checked = [docker, "build", "--check", "-f", str(CONTAINERS / "Dockerfile"), str(ROOT)]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "flowdiff.def"])
def test_the_commands_in_a_file_are_those_of_the_guide(name):
    guide = (ROOT / "docs" / "guides" / "slurm.md").read_text()
    shown = re.findall(r"^\W*((?:docker|apptainer) .*)$", (CONTAINERS / name).read_text(), re.MULTILINE)
    assert len(shown) == 2
    for command in shown:
        assert " ".join(command.split()) in " ".join(guide.replace("\\\n", " ").split())
