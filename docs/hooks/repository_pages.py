"""MkDocs hook: pages for files that lie outside of docs/: the experiments, CONTRIBUTING.md and CHANGELOG.md.

Their links are written for a reader of the repository and are rewritten for the site.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> None:
    """Add a page for each experiment to the section Experiments of the navigation."""
    (pages,) = [entry["Experiments"] for entry in config.nav if "Experiments" in entry]
    pages += [{folder.name: f"experiments/{folder.name}.md"} for folder in experiments()]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Write the pages, and lay the experiments' plots and tables beside them."""
    pages = {"experiments/index.md": ROOT / "experiments" / "README.md"}
    pages |= {f"experiments/{folder.name}.md": folder / "README.md" for folder in experiments()}
    pages |= {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}
    for uri, file in pages.items():
        wide = "---\nhide: [toc]\n---\n\n" if uri.startswith("experiments/") else ""  # their tables are wide
        files.append(File.generated(config, uri, content=wide + with_links(file, uri)))
    for folder in experiments():
        for file in sorted([*folder.glob("*.png"), *folder.glob("*.csv")]):
            files.append(File.generated(config, f"experiments/{folder.name}/{file.name}", abs_src_path=str(file)))


def experiments() -> list[Path]:
    """The folders of experiments/, in the order of the questions in its README.md, then the others."""
    index = (ROOT / "experiments" / "README.md").read_text()
    order = re.findall(r"\]\((\w+)/\)", index)
    folders = [path.parent for path in (ROOT / "experiments").glob("*/README.md")]
    return sorted(folders, key=lambda path: (order.index(path.name) if path.name in order else len(order), path.name))


def with_links(file: Path, uri: str) -> str:
    """The text of a file, its links as they are on the site for a page at `uri`."""

    def rewritten(found: re.Match[str]) -> str:
        target, _, anchor = found[1].partition("#")
        if "://" in target or not target:
            return found[0]
        path = (file.parent / target).resolve()
        to = _on_site(path)
        if to is None:
            raise ValueError(f"{file} links to {target}, which is no page of the site.")
        up = "../" * (len(Path(uri).parts) - 1)
        return f"]({up}{to}{'#' + anchor if anchor else ''})"

    return LINK.sub(rewritten, file.read_text())


def _on_site(path: Path) -> str | None:
    """Where a file of the repository is on the site, below its root; None where it is not shown."""
    named = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "README.md": "index.md"}
    inside = path.relative_to(ROOT).as_posix()
    if inside in named:
        return named[inside]
    if inside.startswith("docs/"):
        return inside.removeprefix("docs/")
    if inside == "experiments":
        return "experiments/index.md"
    if inside.startswith("experiments/"):
        return f"{inside}.md" if path.is_dir() else inside.replace("/README.md", ".md")
    return None
