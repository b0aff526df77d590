"""`stackbert report`: from folders to an HTML file."""

import os
from collections.abc import Sequence
from pathlib import Path

from stackbert.attention.stored import ATTENTION, is_attention, read_attention
from stackbert.comparison.folder import COMPARISON
from stackbert.errors import UserError
from stackbert.finetuning.folder import FINETUNE, is_study
from stackbert.pretraining.rundir import is_run
from stackbert.reporting.content import Page
from stackbert.reporting.figures import save_figures
from stackbert.reporting.page import write_page
from stackbert.reporting.runs import run_page

FolderPath = str | os.PathLike[str]


def report(
    paths: FolderPath | Sequence[FolderPath], out: FolderPath, figures: FolderPath | None = None
) -> Path:
    """Write one self-contained HTML file of a run, several runs, a comparison or fine-tuning.

    Args:
        paths: a run directory or several; or one folder that `stackbert compare` or `stackbert
            finetune` made. None need be finished. With these or alone, one folder that `stackbert
            attention` wrote.
        out: the HTML file; replaced if it is there.
        figures: a folder to draw the figures into as well, as SVG and PNG.

    Returns:
        The HTML file.

    Raises:
        UserError: a folder is none of these, kinds are mixed, or a file cannot be written.

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
    page = _page(_once(folders))
    write_page(page, out)
    if figures is not None:
        save_figures(page, Path(figures))
    return out


def _page(folders: list[Path]) -> Page:
    """The page on what the folders hold, with that on attention in it or alone."""
    attention = [folder for folder in folders if is_attention(folder)]
    if not attention:
        return _subject_page(folders)
    if len(attention) > 1:
        raise UserError(
            f"{attention[0]} and {attention[1]} are both measurements of attention, and a report "
            "takes one. To see growths of several runs beside each other, measure them together: "
            "stackbert attention RUN --beside OTHER."
        )
    # Both may lie in one folder.
    rest = [each for each in folders if each not in attention or _is_subject(each)]
    page = _subject_page(rest) if rest else None
    from stackbert.attention.page import attention_page, with_attention

    result, examples = read_attention(attention[0])
    if page is None:
        return attention_page(result, examples)
    return with_attention(page, result, examples)


def _is_subject(folder: Path) -> bool:
    return is_run(folder) or (folder / COMPARISON).is_file() or is_study(folder)


def _subject_page(folders: list[Path]) -> Page:
    if not folders:
        raise UserError(
            "Name at least one run directory, or the folder of a comparison or of fine-tuning."
        )
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
    studies = [folder for folder in folders if is_study(folder)]
    if studies and len(folders) > 1:
        raise UserError(
            f"{studies[0]} is a folder of fine-tuning, and such a one is reported alone. Name it "
            "without the other folders, or name run directories only."
        )
    if studies:
        from stackbert.finetuning.tables import finetune_page

        return finetune_page(studies[0])
    for folder in folders:
        if not is_run(folder):
            raise UserError(
                f"{folder} is neither a run directory (it has no run.json) nor a comparison (it "
                f"has no {COMPARISON}) nor a folder of fine-tuning (it has no {FINETUNE}) nor one "
                f"of attention (it has no {ATTENTION})."
            )
    return run_page(folders)


def _once(folders: list[Path]) -> list[Path]:
    """The folders without those that are named twice."""
    return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]
