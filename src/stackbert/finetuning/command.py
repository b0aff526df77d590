"""`stackbert finetune`: options to arguments, and the tables printed."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stackbert.finetuning.gather import OwnData


class KindOption(StrEnum):
    """What the labels of one's own data are."""

    auto = "auto"
    classification = "classification"
    regression = "regression"


def finetune(
    out: Annotated[Path, typer.Option(help="Folder; unfinished work there goes on.")],
    task: Annotated[
        str,
        typer.Option(
            help="glue (all whose data is there), cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, "
            "wnli, squad, squad-v2, several with commas; or own."
        ),
    ],
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Checkpoint folders or run directories; the first is the yardstick."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The folder of the official files; of your own, the training table."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="GLUE from the library datasets instead: a folder or a hub's name."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each; by default 6, of large tasks 3.")
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(help="A model from several pre-training seeds: stack=run0,run1,run2."),
    ] = None,
    along: Annotated[
        list[str] | None, typer.Option(help="A run, instead: each checkpoint that it kept.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field: epochs=4, for one task rte.epochs=10."),
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Your own: the table to score on.")] = None,
    test: Annotated[Path | None, typer.Option(help="Your own: a table to predict.")] = None,
    text: Annotated[str | None, typer.Option(help="Your own: the column of the text.")] = None,
    second: Annotated[
        str | None, typer.Option(help="Your own: the column of a pair's other text.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Your own: the column of the label.")] = None,
    key: Annotated[str | None, typer.Option(help="Your own: the column of the row's id.")] = None,
    kind: Annotated[KindOption, typer.Option(help="Your own: what the labels are.")] = (
        KindOption.auto
    ),
    control: Annotated[
        bool,
        typer.Option("--control", help="Also the first model untrained, with random weights."),
    ] = False,
    submit: Annotated[
        bool, typer.Option("--submit", help="Predict the test splits; zips for GLUE's server.")
    ] = False,
    fill: Annotated[
        bool, typer.Option("--fill", help="With --submit: one answer for tasks without a model.")
    ] = False,
) -> None:
    """Fine-tune models on GLUE, SQuAD or your own data, several seeds each, and compare them.

    Example: stackbert finetune run --task glue --data glue --out finetuned
    """
    from stackbert.errors import UserError
    from stackbert.finetuning.server import write_submissions
    from stackbert.finetuning.study import finetune as run_study
    from stackbert.finetuning.tables import as_text, main_table
    from stackbert.finetuning.verdict import statements
    from stackbert.pretraining.progress import console_reporter
    from stackbert.reporting.report import report as write_report

    is_own = task == "own"
    if not is_own and any(option is not None for option in (dev, test, text, second, label, key)):
        raise UserError("--dev, --test, --text, --second, --label and --key go with --task own.")
    if fill and not submit:
        raise UserError("--fill goes with --submit.")
    results = run_study(
        models or [],
        task=_own_data(data, dev, test, text, second, label, key, kind) if is_own else task,
        data=None if is_own else data,
        dataset=dataset,
        out=out,
        groups=_groups(group or []),
        along=along or [],
        seeds=seeds,
        settings=set_ or [],
        control=control,
        test=submit or test is not None,
        reporter=console_reporter(),
    )
    typer.echo(as_text(main_table(results)))
    for sentence in statements(results):
        typer.echo(sentence)
    if submit:
        for name, written in write_submissions(results, fill=fill).items():
            typer.echo(f"For GLUE's server, {name}: {written.path}.")
            for note in written.notes:
                typer.echo(f"  {note}")
    page = write_report([out], out / "report.html", out / "figures")
    typer.echo(f"The report is {page}; results and predictions are in {out / 'results'}.")


def _groups(given: list[str]) -> dict[str, list[str]]:
    from stackbert.errors import UserError

    groups: dict[str, list[str]] = {}
    for text in given:
        name, equals, paths = text.partition("=")
        members = [path for path in paths.split(",") if path]
        if not equals or not name or not members:
            raise UserError(f"--group {text}: write it as NAME=RUN,RUN,RUN.")
        if name in groups:
            raise UserError(f"--group {name} is given twice.")
        groups[name] = members
    return groups


def _own_data(
    data: Path | None,
    dev: Path | None,
    test: Path | None,
    text: str | None,
    second: str | None,
    label: str | None,
    key: str | None,
    kind: KindOption,
) -> "OwnData":
    from stackbert.errors import UserError
    from stackbert.finetuning.gather import OwnData

    if data is None or text is None or label is None:
        raise UserError(
            "--task own takes --data (the training table, .csv, .tsv or .jsonl), --text and "
            "--label (names of its columns)."
        )
    return OwnData(
        train=data,
        text=text,
        label=label,
        second=second,
        dev=dev,
        test=test,
        key=key,
        kind=kind.value,
    )
