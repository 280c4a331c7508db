"""Imports go down one way, without cycles; and composing or importing stays free of torch."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "flowdiff"

# Each layer may import those above it in this list, and nothing below; rooms in one layer never import each other.
LAYERS = [
    ["errors"],
    ["registry", "shapes", "noise", "conditioning", "digests", "progress"],
    ["activations", "schedules", "scalings", "weightings"],
    ["nn", "sigma_samplers"],
    ["flows", "first_stage"],
    ["networks"],
    ["denoiser"],
    ["losses", "guidance", "samplers"],
    ["model"],
    ["data", "conditioners", "optimizers", "accelerators"],
    ["loggers", "metrics_csv", "result_table"],
    ["training_bar", "evaluation"],
    ["assembly"],
    ["divergence"],
    ["engine"],
    ["launch", "report"],
    ["config"],
    ["training", "api"],
    ["cli"],
]
# Beyond the layers: the registry asks the config for YAML defaults (inside a function), the data room is read by no
# model, and what a run folder holds is known to whoever writes it; a run may be guided by another one, and stand on the
# autoencoder of a third.
ALLOWED = {("registry", "config"), ("model", "api"), ("assembly", "api")}
FORBIDDEN = {
    ("data", "denoiser"),
    ("data", "losses"),
    ("conditioners", "denoiser"),
    ("first_stage", "denoiser"),
    ("report", "engine"),
    ("report", "config"),
}


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "flowdiff" and len(parts) > 1 else None


@cache
def arrows():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module] + [f"{node.module}.{a.name}" for a in node.names if node.module == "flowdiff"]
            for module in modules:
                there = room(module)
                if there and there != here:
                    found.add((here, there))
    return found


def level(name: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_every_room_has_a_layer():
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == {name for layer in LAYERS for name in layer}


def test_imports_only_go_down():
    wrong = {a for a in arrows() if a not in ALLOWED and level(a[0]) <= level(a[1])}
    assert not wrong


def test_forbidden_arrows_are_not_there():
    assert not arrows() & FORBIDDEN


def test_the_walk_sees_imports():
    assert ("engine", "losses") in arrows()  # or the tests above would pass on an empty set


@pytest.mark.parametrize(
    "code",
    [
        "import flowdiff",
        "import flowdiff.config; flowdiff.config.compose(['flow=realnvp'])",
        "import sys; sys.argv = ['train.py', '--help']; from flowdiff.cli.train import main; main()",
        "import sys; sys.argv = ['train.py', '--cfg', 'job', 'flow.n_flows=5']; "
        "from flowdiff.cli.train import main; main()",
        "import sys; sys.argv = ['sample.py', '--help']; from flowdiff.cli.sample import main; main()",
        "import flowdiff.report",
    ],
)
def test_composing_needs_no_torch(code):
    assert imported(code, "torch", "lightning") == []


def test_sampling_and_checking_a_job_need_no_lightning():
    code = (
        "import flowdiff.api, flowdiff.cli.sweep; from flowdiff import assembly, config; "
        "given = config.compose([]); config.check(given); assembly.rehearse(config.resolved(given))"
    )
    assert imported(code, "lightning", "torchmetrics", "torchvision", "torch") == ["torch"]


def imported(code: str, *modules: str) -> list[str]:
    """Which of the modules a fresh process has imported after running the code."""
    probe = (
        f"import sys\ntry:\n    exec({code!r})\nexcept SystemExit: pass\n"
        f"print(*[m for m in {modules!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()
