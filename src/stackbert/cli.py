"""The command line: one typed function a command, which parses, calls and prints.

Heavy libraries load inside the commands, so that `stackbert --help` answers at once.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from stackbert.attention.command import attention
from stackbert.comparison.command import compare
from stackbert.finetuning.command import finetune

app = typer.Typer(
    name="stackbert",
    help="Pre-train BERT-like encoders for less: train a shallow model, stack it, train on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Resume(StrEnum):
    """Whether to continue a run that is there."""

    auto = "auto"
    never = "never"


def _version(asked: bool) -> None:
    if asked:
        import stackbert

        typer.echo(f"stackbert {stackbert.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Pre-train BERT-like encoders for less: train a shallow model, stack it, train on."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where corpus and run go.")] = Path("demo"),
) -> None:
    """Run the main job on a small real corpus: text, corpus, three depths, a filled mask.

    Example: stackbert demo --out demo
    """
    from stackbert.demo import run_demo
    from stackbert.pretraining.progress import console_reporter

    run_demo(out, say=typer.echo, reporter=console_reporter())


@app.command()
def corpus(
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A file, folder or pattern: .txt, .jsonl, .parquet, also compressed."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A data set for the library datasets: a folder or a name.")
    ] = None,
    field: Annotated[str, typer.Option(help="The field that holds the text.")] = "text",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use this Hugging Face tokenizer instead of training one.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Word pieces; by default up to 32,768, as the text gives.")
    ] = None,
    cased: Annotated[bool, typer.Option("--cased", help="Keep upper case and accents.")] = False,
    validation: Annotated[
        float, typer.Option(help="Share of the documents held out (the paper: 199 to 1).")
    ] = 0.005,
    paths: Annotated[
        list[str] | None, typer.Argument(help="More paths, as the shell expands them.")
    ] = None,
) -> None:
    """Turn text into a corpus: a tokenizer and memory-mapped token shards.

    Example: stackbert corpus corpus/ --text articles/ --vocab-size 32768
    """
    from stackbert.corpus.build import build_corpus
    from stackbert.pretraining.progress import corpus_progress

    with corpus_progress() as on_progress:
        built = build_corpus(
            out,
            text=[*(text or []), *(paths or [])],
            dataset=dataset,
            field=field,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            lowercase=not cased,
            validation=validation,
            on_progress=on_progress,
        )
    manifest = built.manifest
    typer.echo(
        f"{out}: {manifest.train.documents:,} documents and {manifest.train.tokens:,} tokens for "
        f"training, {manifest.validation.documents:,} and {manifest.validation.tokens:,} held out; "
        f"{manifest.duplicate_documents:,} duplicates and {manifest.empty_documents:,} empty ones "
        f"dropped; vocabulary {manifest.tokenizer_size:,}; unigram entropy of the held-out text "
        f"{manifest.validation.unigram_entropy:.3f} nats."
    )
    typer.echo(f"Next: stackbert pretrain small-cpu --corpus {out} --out run --budget 30m")


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    device: Annotated[
        str,
        typer.Option(
            help="here (measured, a minute or two), A100, H100, H200, L4, 'RTX 4090' or cpu."
        ),
    ] = "here",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field: model.hidden_size=256, stages.0.steps=9."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Scale the stages to this time: 30m, 1.5h.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Scale the stages to this many steps in all.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="From 'stackbert corpus'; else random tokens will do.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Word pieces without a corpus; by default 32,768.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(help="Share of a named device's peak, by default 0.4: assumed, not measured."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="USD an hour of a device.")] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="So many of a named device share every step.")
    ] = 1,
) -> None:
    """Predict time, memory and money of a run, stacked and from scratch, before paying for it.

    Example: stackbert plan bert-base --device H200 --price 3
    """
    from stackbert.planning.planner import plan as plan_run
    from stackbert.planning.table import plan_table
    from stackbert.recipe_files import load_recipe

    loaded = load_recipe(recipe, set_ or [])
    if device == "here":
        typer.echo("measuring seconds per step at every depth …", err=True)
    planned = plan_run(
        loaded,
        device=device,
        budget=budget,
        steps=steps,
        corpus=corpus,
        vocab_size=vocab_size,
        mfu=mfu,
        price=price,
        devices=devices,
    )
    typer.echo(plan_table(planned))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")],
    corpus: Annotated[Path, typer.Option(help="From 'stackbert corpus'.")],
    out: Annotated[Path, typer.Option(help="Run directory; an unfinished run there goes on.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field: model.hidden_size=256, stages.0.steps=9."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Scale the stages to this time, measured here: 30m, 1.5h.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Scale the stages to this many steps in all.")
    ] = None,
    resume: Annotated[Resume, typer.Option(help="auto goes on with a run; never refuses it.")] = (
        Resume.auto
    ),
    track: Annotated[
        str | None, typer.Option(help="tensorboard, wandb, or both with a comma.")
    ] = None,
) -> None:
    """Train a model in stages, growing it between them; writes a run directory.

    In several processes: torchrun --nproc-per-node 8 -m stackbert pretrain … (docs/scaling.md).

    Example: stackbert pretrain small-cpu --corpus corpus --out run --budget 30m
    """
    from stackbert.pretraining.progress import console_reporter
    from stackbert.pretraining.ranks import is_first_process
    from stackbert.pretraining.report import stage_table
    from stackbert.pretraining.run import pretrain as run_pretraining
    from stackbert.recipe_files import load_recipe

    result = run_pretraining(
        load_recipe(recipe, set_ or []),
        corpus=corpus,
        out=out,
        budget=budget,
        steps=steps,
        resume=resume.value,
        track=[name.strip() for name in track.split(",")] if track else [],
        reporter=console_reporter(),
    )
    if is_first_process():
        typer.echo(stage_table(result.summary))
        typer.echo(
            f"The model is {result.model_folder}; transformers opens it with from_pretrained."
        )


app.command()(compare)


@app.command()
def grow(
    source: Annotated[Path, typer.Argument(help="A Hugging Face checkpoint folder.")],
    destination: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    depth: Annotated[int, typer.Option(help="Layers of the new model.")],
    operator: Annotated[
        str, typer.Option(help="stack, interleave, identity, identity-noise or random.")
    ] = "stack",
    seed: Annotated[int, typer.Option(help="Of fresh layers and noise.")] = 0,
) -> None:
    """Make a deeper checkpoint out of any Hugging Face checkpoint with stacked layers.

    Example: stackbert grow bert-6 bert-12 --depth 12 --operator stack
    """
    from stackbert.growth.folder import grow_folder

    done = grow_folder(source, destination, depth, operator, seed=seed)
    typer.echo(
        f"{destination}: a {done.model_class} of {done.depth} layers ({done.parameters:,} "
        f"parameters), grown from {done.source_depth} by {done.operator}."
    )


app.command()(attention)
app.command()(finetune)


@app.command()
def recipes() -> None:
    """List the shipped recipes.

    Example: stackbert recipes
    """
    from stackbert.recipe_files import shipped_recipes

    for name, recipe in shipped_recipes().items():
        typer.echo(f"{name:20} {recipe.summary}")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, or the folder of one comparison or fine-tuning; beside them or "
            "alone, one of attention."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    figures: Annotated[
        Path | None, typer.Option(help="A folder for the figures as SVG and PNG as well.")
    ] = None,
) -> None:
    """Write one self-contained HTML file of a run, of several, of a comparison or fine-tuning.

    Example: stackbert report run --out report.html --figures figures
    """
    from stackbert.reporting.report import report as write_report

    page = write_report(runs, out, figures)
    typer.echo(f"The report is {page}; any browser opens it, without a network.")
