"""`stackbert report`: from folders to an HTML file."""

import os
from collections.abc import Sequence
from pathlib import Path

from stackbert.comparison.folder import COMPARISON
from stackbert.errors import UserError
from stackbert.pretraining.rundir import is_run
from stackbert.reporting.content import Page
from stackbert.reporting.figures import save_figures
from stackbert.reporting.page import write_page
from stackbert.reporting.runs import run_page

FolderPath = str | os.PathLike[str]


def report(
    paths: FolderPath | Sequence[FolderPath], out: FolderPath, figures: FolderPath | None = None
) -> Path:
    """Write one self-contained HTML file of a run, of several runs, or of a comparison.

    Args:
        paths: a run directory or several; or one folder that `stackbert compare` made. Runs need
            not be finished.
        out: the HTML file; replaced if it is there.
        figures: a folder to draw the figures into as well, as SVG and PNG.

    Returns:
        The HTML file.

    Raises:
        UserError: a folder is neither, both kinds are mixed, or a file cannot be written.

    Example:
        >>> import stackbert as sb
        >>> sb.report("run", "report.html")  # doctest: +SKIP
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    folders = [Path(path) for path in paths]
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the report a file name, such as report.html.")
    page = _page(folders)
    write_page(page, out)
    if figures is not None:
        save_figures(page, Path(figures))
    return out


def _page(folders: list[Path]) -> Page:
    if not folders:
        raise UserError("Name at least one run directory, or the folder of a comparison.")
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
    comparisons = [folder for folder in folders if (folder / COMPARISON).is_file()]
    if comparisons and len(folders) > 1:
        raise UserError(
            f"{comparisons[0]} is a comparison, and a comparison is reported alone. Name it "
            "without the other folders, or name run directories only."
        )
    if comparisons:
        from stackbert.comparison.report_page import comparison_page

        return comparison_page(comparisons[0])
    for folder in folders:
        if not is_run(folder):
            raise UserError(
                f"{folder} is neither a run directory (it has no run.json) nor a comparison (it "
                f"has no {COMPARISON})."
            )
    return run_page(_once(folders))


def _once(folders: list[Path]) -> list[Path]:
    """The folders without those that are named twice."""
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]
