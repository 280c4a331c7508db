"""Execute the notebooks of the site, keep their outputs, and write docs/score_flow.png, the picture of the README.

python docs/execute_notebooks.py [NAME…]
"""

from __future__ import annotations

import argparse
import base64
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

DOCS = Path(__file__).parent
PICTURE = "picture"  # tag of the cell whose picture the README shows
SECONDS = 600  # that a cell may take


def main() -> None:
    """Execute those named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks without .ipynb (default: all)")
    names = parser.parse_args().names or [file.stem for file in sorted((DOCS / "notebooks").glob("*.ipynb"))]
    for name in names:
        file = DOCS / "notebooks" / f"{name}.ipynb"
        notebook = executed(file)
        nbformat.write(notebook, file)
        print(f"executed {file}")
        for content in pictures(notebook):
            (DOCS / "score_flow.png").write_bytes(content)


def executed(file: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs; CellExecutionError where a cell fails."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(file, as_version=4)
    where = {"metadata": {"path": str(file.parent)}}
    NotebookClient(notebook, timeout=SECONDS, resources=where, coalesce_streams=True).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this machine
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The PNG files that cells with the tag `picture` have drawn."""
    tagged = [cell for cell in notebook.cells if PICTURE in cell.metadata.get("tags", [])]
    outputs = [output for cell in tagged for output in cell.get("outputs", [])]
    return [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]


if __name__ == "__main__":
    main()
