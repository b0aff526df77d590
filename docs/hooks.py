"""For mkdocs: the site is this folder and what its pages link to elsewhere in the repository."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+://|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 (mkdocs' settings)
    """Add README.md as the first page, the changes, and every other file that a page links to."""
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *Path(config.docs_dir).rglob("*.md")]
    for page in pages:  # grows by the pages that it finds
        _add(files, page, config)
        for target in LINK.findall(page.read_text("utf-8")):
            path = (page.parent / target).resolve()
            if path.suffix == ".md" and path not in pages:
                pages.append(path)
            elif path.is_file():
                _add(files, path, config)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:  # noqa: ANN401 (mkdocs' own)
    """Point the links of a page to where their targets are on the site."""
    source, here = Path(page.file.abs_src_path), Path(page.file.src_uri).parent

    def moved(link: re.Match[str]) -> str:
        path = (source.parent / link[1]).resolve()
        return os.path.relpath(_place(path), here) if path.is_file() else link[1]

    return LINK.sub(moved, markdown)


def _add(files: Files, path: Path, config: Any) -> None:  # noqa: ANN401 (mkdocs' settings)
    if files.get_file_from_path(_place(path)) is None:
        files.append(File.generated(config, _place(path), abs_src_path=str(path)))


def _place(path: Path) -> str:
    """Where a file of the repository is on the site: `docs` is its root."""
    name = path.relative_to(ROOT).as_posix().removeprefix("docs/")
    return "index.md" if name == "README.md" else name
