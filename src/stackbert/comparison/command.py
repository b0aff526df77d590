"""`stackbert compare`: options to arguments, the verdict printed, the report written."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    corpus: Annotated[Path, typer.Option(help="From 'stackbert corpus'.")],
    out: Annotated[Path, typer.Option(help="Folder; an unfinished comparison there goes on.")],
    variants: Annotated[
        str,
        typer.Option(
            help="With commas: scratch (always there), stack, identity, identity-noise, "
            "interleave, random, YAML files."
        ),
    ] = "scratch,stack",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Of each run: 30m, 2000steps, 4e15flops. By default what scratch takes for the "
            "recipe's steps."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="First scale the recipe's stages to so many steps.")
    ] = None,
    fractions: Annotated[
        str, typer.Option(help="Shares of the budget at which variants are run: 1,0.65,0.5.")
    ] = "1",
    learning_rates: Annotated[
        str, typer.Option(help="Factors that scratch tries; all take its best: 0.5,1,2.")
    ] = "1",
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side; cores are divided.")] = 1,
    keep_checkpoints: Annotated[
        bool,
        typer.Option("--keep-checkpoints", help="Of finished runs, at the end of each stage."),
    ] = False,
    switch_at: Annotated[
        str | None,
        typer.Option(
            help="Instead: when to switch. Shallow models of so many steps, grown: 100,200,400."
        ),
    ] = None,
    then: Annotated[
        int | None, typer.Option(min=1, help="With --switch-at: steps after the growth.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field: model.hidden_size=256, stages.0.steps=9."),
    ] = None,
) -> None:
    """Compare ways of growing with training from scratch, on equal budgets; writes a report.

    Example: stackbert compare small-cpu --corpus corpus --out comparison --jobs 2
    """
    from stackbert.comparison.compare import compare as run_comparison
    from stackbert.comparison.compare import console_say
    from stackbert.comparison.switching import compare_switches, sentences
    from stackbert.comparison.verdict import judge
    from stackbert.errors import UserError
    from stackbert.recipe_files import load_recipe
    from stackbert.reporting.report import report as write_report

    loaded = load_recipe(recipe, set_ or [])
    if steps is not None:
        loaded = loaded.scaled(steps)
    rates = _numbers("--learning-rates", learning_rates)
    if then is not None and switch_at is None:
        raise UserError("--then goes with --switch-at.")
    if switch_at is not None:
        _refuse_beside_switches(budget, fractions, variants, rates)
        switches = compare_switches(
            loaded,
            corpus=corpus,
            out=out,
            switch_at=_whole_numbers("--switch-at", switch_at),
            then=then,
            seeds=seeds,
            rate=rates[0],
            jobs=jobs,
            say=console_say(),
        )
        found = sentences(switches)
    else:
        results = run_comparison(
            loaded,
            corpus=corpus,
            out=out,
            variants=[word.strip() for word in variants.split(",") if word.strip()],
            seeds=seeds,
            budget=budget,
            fractions=_numbers("--fractions", fractions),
            rates=rates,
            jobs=jobs,
            keep_checkpoints=keep_checkpoints,
            say=console_say(),
        )
        found = judge(results).sentences
    for sentence in found:
        typer.echo(sentence)
    page = write_report([out], out / "report.html")
    typer.echo(f"The report is {page}.")


def _numbers(option: str, text: str) -> list[float]:
    from stackbert.errors import UserError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"{option} '{text}' is not a list of numbers with commas between them."
        ) from error


def _whole_numbers(option: str, text: str) -> list[int]:
    from stackbert.errors import UserError

    if not all(part.strip().isdecimal() for part in text.split(",")):
        raise UserError(f"{option} '{text}' is not a list of whole numbers with commas between.")
    return [int(part) for part in text.split(",")]


def _refuse_beside_switches(
    budget: str | None, fractions: str, variants: str, rates: list[float]
) -> None:
    from stackbert.errors import UserError

    if budget is not None or fractions != "1" or variants != "scratch,stack" or len(rates) != 1:
        raise UserError(
            "--switch-at takes its budgets from its steps and its growth from the recipe; leave "
            "--budget, --fractions, --variants and several --learning-rates out."
        )
