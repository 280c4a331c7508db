"""The law of imports: file by file they go down the list of rooms and never up, without a circle."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. A file imports only from rooms before its own in this list, and from its own room. Every import
# counts, also inside a function and under TYPE_CHECKING.
ROOMS = [
    "version",
    *("errors", "shapes", "noise", "digests", "progress", "yaml_defaults", "registry"),
    *("runs", "config", "loggers"),
    *("models.activations", "models.conditioning", "models.nn", "models.conditioners", "models.autoencoder"),
    *("models.flows", "models.networks", "models.first_stage", "models.adapters"),
    *("diffusion.scalings", "diffusion.weightings", "diffusion.schedules", "diffusion.sigma_samplers"),
    *("diffusion.fokker_planck", "diffusion.denoiser", "diffusion.other_run", "diffusion.losses", "diffusion.guidance"),
    *("diffusion.samplers", "diffusion.hinting", "diffusion.model", "diffusion.inversion"),
    *("diffusion.conjugate_gradient", "diffusion.measurements", "diffusion.posteriors"),
    "data",
    *("evaluation.ranks", "evaluation.features", "evaluation.retrieval", "evaluation.comparisons"),
    "evaluation.densities",
    *("evaluation.denoising", "evaluation.health", "evaluation.pictures", "evaluation.sample_accuracy"),
    *("evaluation.prompts", "evaluation.obedience"),
    *("evaluation.metrics", "evaluation.evaluate"),
    *("evaluation.restoration", "evaluation.image_start"),
    *("training.averages", "training.optimizers", "training.accelerators", "training.weights"),
    *("training.assembly", "training.posthoc", "training.divergence", "training.engine"),
    *("training.checkpoint", "training.threads", "training.trainer", "training.callbacks", "training.run"),
    "export",
    *("launch", "report", "testing"),
    *("api", "cli", "__main__", ""),
]


def module_of(path: Path, root: Path) -> str:
    """The dotted name below flowdiff: "models.nn.mlp"; a package's is that of its __init__.py."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room that a module belongs to: the longest name of ROOMS that it begins with."""
    fitting = [room for room in ROOMS if module == room or (room and module.startswith(f"{room}."))]
    return max(fitting, key=len) if fitting else f"{module} has no room"


def imports(root: Path) -> dict[str, set[str]]:
    """{module: modules of flowdiff that its file imports}; of `from flowdiff.a import b` it is a.b if there is one."""
    modules = {module_of(path, root): path for path in root.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            named: list[str] = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in named:
                if name == "flowdiff" or name.startswith("flowdiff."):
                    below = name.removeprefix("flowdiff").removeprefix(".")
                    found[module].add(below if below in modules else below.rpartition(".")[0])
        found[module].discard(module)
    return found


def climbs(found: dict[str, set[str]]) -> set[tuple[str, str]]:
    """Imports from a room that stands later in ROOMS."""
    level = {room: i for i, room in enumerate(ROOMS)}
    # Importing a package's __init__, which only re-exports what lies below it, is importing the package's own room.
    return {(a, b) for a, targets in found.items() for b in targets if level[room_of(b)] > level[room_of(a)]}


def circles(found: dict[str, set[str]]) -> list[list[str]]:
    """Each circle of imports between files, once."""
    seen: dict[str, int] = {}
    path: list[str] = []
    result = []

    def walk(module: str) -> None:
        seen[module] = 1
        path.append(module)
        for target in sorted(found.get(module, ())):
            if seen.get(target) == 1:
                result.append([*path[path.index(target) :], target])
            elif target not in seen:
                walk(target)
        path.pop()
        seen[module] = 2

    for module in sorted(found):
        if module not in seen:
            walk(module)
    return result


FOUND = imports(ROOT / "flowdiff")


def test_every_module_has_a_room():
    assert [module for module in FOUND if room_of(module).endswith("has no room") and not is_wing(module)] == []


def is_wing(module: str) -> bool:
    """Whether a module is the empty __init__ of a wing, which imports nothing."""
    return any(room.startswith(f"{module}.") for room in ROOMS) and not FOUND[module]


def test_no_import_climbs():
    assert climbs({a: b for a, b in FOUND.items() if not is_wing(a)}) == set()


def test_no_import_circles():
    assert circles(FOUND) == []


@pytest.mark.parametrize(
    ("files", "climb", "circle"),
    [
        ({"errors.py": "import flowdiff.runs.job", "runs/job.py": ""}, ("errors", "runs.job"), None),
        (
            {"noise.py": "def f():\n    from flowdiff.diffusion import model", "diffusion/model.py": ""},
            ("noise", "diffusion.model"),
            None,
        ),
        (
            {"data/base.py": "from flowdiff.data import toy", "data/toy.py": "from flowdiff.data.base import Split"},
            None,
            ["data.base", "data.toy", "data.base"],
        ),
    ],
)
def test_the_law_sees_what_breaks_it(files, climb, circle, tmp_path):
    for name, code in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    found = imports(tmp_path)
    assert climbs(found) == ({climb} if climb else set())
    assert circles(found) == ([circle] if circle else [])


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
        "import flowdiff.api, flowdiff.launch.sweep; from flowdiff import config; "
        "from flowdiff.training import assembly; "
        "given = config.compose([]); config.check(given); assembly.assemble_run(config.resolved(given))"
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
