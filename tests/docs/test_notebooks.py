"""The notebooks are kept as they ran, are small, and still run."""

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location

import pytest
from pages import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 1_500_000  # bytes


@pytest.fixture(scope="module")
def execute():
    """docs/execute_notebooks.py."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    spec = spec_from_file_location("execute_notebooks", ROOT / "docs" / "execute_notebooks.py")
    module = sys.modules["execute_notebooks"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["execute_notebooks"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_kept_with_its_outputs(file):
    assert file.stat().st_size < LARGEST
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [
        o for cell in cells for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"
    ]


def test_the_picture_of_the_readme_is_that_of_the_notebook(execute):
    import nbformat

    (content,) = execute.pictures(nbformat.read(ROOT / "docs" / "notebooks" / "score_flow_2d.ipynb", as_version=4))
    assert (ROOT / "docs" / "score_flow.png").read_bytes() == content


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file, execute, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # beside other tests two threads wait for each other most of the time
    execute.executed(file)
