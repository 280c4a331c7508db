"""MkDocs hook: a page for each notebook in docs/notebooks/, with the outputs that are kept in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Write the pages and their pictures."""
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = page(file)
        files.append(File.generated(config, f"notebooks/{file.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{file.stem}/{name}", content=content))


def page(file: Path) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by name."""
    blocks: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(file.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
            continue
        blocks.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            blocks += _output(output, file.stem, pictures)
    title, _, rest = "\n\n".join(blocks).partition("\n")
    note = f"*The notebook itself: [{file.name}]({file.name}).*"
    return f"{title}\n\n{note}\n{rest}", pictures


def _output(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> Iterator[str]:
    if output["output_type"] == "stream":
        yield "```text\n" + "".join(output["text"]).rstrip() + "\n```"
        return
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        yield f"![output {len(pictures)}]({stem}/{name})"
    elif "text/plain" in data:
        yield "```text\n" + "".join(data["text/plain"]).rstrip() + "\n```"
