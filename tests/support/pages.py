"""The pages that users read, and the commands and links on them."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = r"(?:python \S+\.py|flowdiff|torchrun)"  # how our own commands begin


def pages() -> dict[str, str]:
    """Every page in Markdown by its path, notebooks with their code cells as ```python blocks."""
    files = [ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    files += sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")])
    found = {str(file.relative_to(ROOT)): file.read_text() for file in files}
    for file in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        found[str(file.relative_to(ROOT))] = "\n\n".join(_cell(cell) for cell in json.loads(file.read_text())["cells"])
    return found


def _cell(cell: dict) -> str:
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def commands(text: str) -> Iterator[str]:
    """The commands of a page: in its bash blocks, behind `!` in its notebooks, and in its running text."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if not re.match(r"for .*; do$|done$", line):
                yield from re.split(r" && | \| ", line)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("!"):
                yield from line[1:].split(" | ")
    for code in re.findall(rf"(?<!`)`({OURS} [^`]*)`", text):
        yield from code.split(" && ")


def words(command: str) -> list[str]:
    """A command as the shell splits it, without its comment."""
    return shlex.split(command, comments=True)


def links(text: str) -> list[str]:
    """The targets of a page's links, without their anchors."""
    return re.findall(r"\]\(([^)#\s]+)\)", text)
