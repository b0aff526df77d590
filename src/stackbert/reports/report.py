"""`report`: from folders to one HTML file."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stackbert.errors import UserError
from stackbert.files import reading, write_text, writing
from stackbert.pretraining.record import RUN
from stackbert.reports.page import Page, is_report, render, save_figures

FolderPath = str | os.PathLike[str]
COMPARISON, ATTENTION, FINETUNE = "comparison.json", "attention.json", "finetune.json"
EVALUATION = "evaluation.json"
"""The record that tells what a folder holds."""
_KINDS = (RUN, COMPARISON, FINETUNE, EVALUATION, ATTENTION)


def report(
    paths: FolderPath | Sequence[FolderPath], out: FolderPath, figures: FolderPath | None = None
) -> Path:
    """Write one self-contained HTML file of a run, several runs, or one other result.

    Args:
        paths: a run directory or several, or one folder that `stackbert compare`, `attention`,
            `finetune` or `evaluate` wrote. None need be finished. A folder of `attention` may stand
            with the others; its part comes last.
        out: the HTML file; replaced if it is a report.
        figures: a folder to draw the figures into as well, as SVG and PNG.

    Returns:
        The HTML file.

    Raises:
        UserError: a folder is none of these, kinds are mixed, `out` is another file, or a file
            cannot be written.

    Example:
        >>> import stackbert as sb
        >>> sb.report("run", "report.html")  # doctest: +SKIP
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    out = Path(out)
    if out.exists() and not is_report(out):
        raise UserError(f"{out} exists and is not a report. Give --out a new name.")
    page = report_page(list({Path(path).resolve(): Path(path) for path in paths}.values()))
    html = render(page)
    with writing(f"writing the report to {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, html)
    if figures is not None:
        save_figures(page, Path(figures))
    return out


def report_page(folders: Sequence[Path]) -> Page:
    """The page about what the folders hold.

    Raises:
        UserError: as `report`.
    """
    kinds: dict[str, list[Path]] = {name: [] for name in _KINDS}
    for folder in folders:
        held = [name for name in kinds if (folder / name).is_file()]
        if not held:
            raise UserError(
                f"{folder} does not hold a run, a comparison, a fine-tuning, an evaluation or a "
                f"measurement of attention: it has none of {', '.join(kinds)}."
            )
        for name in held:
            kinds[name].append(folder)
    held = [name for name, found in kinds.items() if found]
    if not held:
        raise UserError("Name at least one folder to report.")
    subjects = [name for name in held if name != ATTENTION]
    if len(subjects) > 1 or any(len(kinds[name]) > 1 for name in held if name != RUN):
        names = "; ".join(f"{name} in {', '.join(map(str, kinds[name]))}" for name in held)
        raise UserError(
            "A report shows runs, one comparison, one fine-tuning or one evaluation, and one "
            f"measurement of attention, but these folders hold more: {names}."
        )
    pages = []
    for name in held:
        with reading(kinds[name][0] / name, "A value in it makes no sense."):
            pages.append(_page(name, kinds[name]))
    first, *rest = pages
    return replace(first, parts=sum((page.parts for page in rest), first.parts))


def _page(name: str, folders: list[Path]) -> Page:
    # Each page brings the libraries of its subject; load only what is asked for.
    if name == RUN:
        from stackbert.reports.runs import run_page

        return run_page(folders)
    if name == COMPARISON:
        from stackbert.reports.comparison import comparison_page

        return comparison_page(folders[0])
    if name == FINETUNE:
        from stackbert.reports.finetuning import finetune_page

        return finetune_page(folders[0])
    if name == EVALUATION:
        from stackbert.reports.evaluation import evaluation_page

        return evaluation_page(folders[0])
    from stackbert.reports.attention import attention_page

    return attention_page(folders[0])
