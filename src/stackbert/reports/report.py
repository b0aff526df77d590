"""`report`: from folders to one HTML file."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from stackbert.errors import UserError
from stackbert.files import write_text, writing
from stackbert.pretraining.record import RUN
from stackbert.reports.page import Page, is_report, render, save_figures

KINDS = {
    RUN: "runs",
    "comparison.json": "comparison",
    "finetune.json": "finetuning",
    "evaluation.json": "evaluation",
    "attention.json": "attention",
}
"""What a folder holds, by the file that tells, and the module with its `page`."""


def report(
    paths: str | Path | Sequence[str | Path], out: str | Path, figures: str | Path | None = None
) -> Path:
    """Write one self-contained HTML file of runs and of what other commands found; return it.

    Args:
        paths: run directories, which share a figure, and folders that `stackbert compare`,
            `attention`, `finetune` or `evaluate` wrote. None need be finished.
        out: the HTML file; replaced if it is a report.
        figures: a folder to draw the figures into as well, as SVG and PNG.

    Raises:
        UserError: a folder is none of these, `out` is another file, or a file cannot be written.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    out = Path(out)
    if out.exists() and not is_report(out):
        raise UserError(f"{out} exists and is not a report. Give --out a new name.")
    pages = report_pages([Path(path) for path in paths])
    html = render(pages)
    with writing(f"writing the report to {out}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, html)
    if figures is not None:
        save_figures(pages, Path(figures))
    return out


def report_pages(folders: Sequence[Path]) -> list[Page]:
    """One page of all runs, then one of each other result; errors as of `report`."""
    found = {kind: [each for each in folders if (each / kind).is_file()] for kind in KINDS}
    strange = set(folders).difference(*found.values())
    if strange or not folders:
        names = ", ".join(map(str, strange)) or "An empty list"
        raise UserError(f"{names} holds no result to report: none of {', '.join(KINDS)} is there.")
    pages: list[Page] = []
    for kind, own in found.items():
        if own:
            # Each module brings the libraries of its subject; load only what is asked for.
            page = import_module(f"stackbert.reports.{KINDS[kind]}").page
            pages += [page(own)] if kind == RUN else map(page, own)
    return pages
