"""The command line: one typed function a command, which parses, calls and prints.

Heavy libraries load inside the commands, so that `stackbert --help` answers at once.
"""

from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from stackbert.errors import UserError

app = typer.Typer(
    name="stackbert",
    help="Pre-train BERT-like encoders for less: train a shallow model, stack it, train on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field: model.hidden_size=256, stages.0.steps=9."),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Scale the stages to this many steps in all.")
]


class Resume(StrEnum):
    """Whether to resume a run that is there."""

    auto = "auto"
    never = "never"


class VocabularyKind(StrEnum):
    """What `corpus` learns."""

    wordpiece = "wordpiece"
    bytes = "bytes"


class LabelKind(StrEnum):
    """What the labels of one's own data are."""

    auto = "auto"
    classification = "classification"
    regression = "regression"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"stackbert {version('stackbert')}")
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
    out: Annotated[Path, typer.Option(help="Where corpus, run and report go.")] = Path("demo"),
) -> None:
    """Run the main job on a small real corpus: text, corpus, three depths, a filled mask.

    Example: stackbert demo --out demo
    """
    from stackbert.demo import run_demo
    from stackbert.progress import console_progress

    run_demo(out, say=typer.echo, progress=console_progress())


@app.command()
def corpus(
    out: Annotated[Path, typer.Argument(help="Folder to make; must not exist.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="A file, folder or pattern: .txt, .jsonl, .parquet, also compressed."),
    ] = None,
    suffix: Annotated[
        str, typer.Option(help="Read these files, too, each as one document: py,md,tex.")
    ] = "",
    dataset: Annotated[
        str | None, typer.Option(help="A data set for the library datasets: a folder or a name.")
    ] = None,
    field: Annotated[str, typer.Option(help="The field that holds the text.")] = "text",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Use this Hugging Face tokenizer instead of learning one.")
    ] = None,
    vocabulary: Annotated[
        VocabularyKind,
        typer.Option(
            help="wordpiece: BERT's, lower-cased, rare characters become [UNK]. bytes: byte-level "
            "BPE; keeps case, newlines and indentation, knows every text."
        ),
    ] = VocabularyKind.wordpiece,
    vocab_size: Annotated[
        int | None, typer.Option(help="Its entries; by default up to 32,768, as the text gives.")
    ] = None,
    cased: Annotated[bool, typer.Option("--cased", help="Word pieces keep upper case.")] = False,
    strip_accents: Annotated[
        bool,
        typer.Option(
            "--strip-accents",
            help="Word pieces lose accents (é is e): fine for English. It deletes Hindi's vowels "
            "and Japanese voicing marks, and German ä becomes a.",
        ),
    ] = False,
    allow_unknown: Annotated[
        bool,
        typer.Option("--allow-unknown", help="Build even if the tokenizer loses a fifth of it."),
    ] = False,
    validation: Annotated[
        float, typer.Option(help="Share of the documents held out (the paper: 199 to 1).")
    ] = 0.005,
    paths: Annotated[
        list[str] | None, typer.Argument(help="More paths, as the shell expands them.")
    ] = None,
) -> None:
    """Turn text into a corpus: a tokenizer and memory-mapped token files.

    Example: stackbert corpus corpus/ --text articles/ --vocab-size 32768
    """
    from stackbert.batches.batches import data_sentences
    from stackbert.corpus.build import build_corpus
    from stackbert.progress import console_progress
    from stackbert.recipes import load_recipe

    with console_progress() as progress:
        built = build_corpus(
            out,
            text=[*(text or []), *(paths or [])],
            suffixes=_words(suffix) if suffix else (),
            dataset=dataset,
            field=field,
            tokenizer=tokenizer,
            vocabulary=vocabulary.value,
            vocab_size=vocab_size,
            lowercase=not cased,
            strip_accents=strip_accents,
            allow_unknown=allow_unknown,
            validation=validation,
            progress=progress,
        )
    typer.echo(f"{out}: {built.manifest.summary()}")
    typer.echo("small-cpu as shipped: " + data_sentences(load_recipe("small-cpu"), built)[0])
    typer.echo(f"Next: stackbert pretrain small-cpu --corpus {out} --out run --budget 30m")


@app.command()
def plan(
    recipe: RecipeName,
    device: Annotated[
        str,
        typer.Option(
            help="here (measured, a minute or two), A100, H100, H200, L4, 'RTX 4090' or cpu."
        ),
    ] = "here",
    set_: Set = None,
    budget: Annotated[
        str | None, typer.Option(help="Scale the stages to this time: 30m, 1.5h.")
    ] = None,
    steps: Steps = None,
    corpus: Annotated[
        Path | None, typer.Option(help="From 'stackbert corpus'; by default random tokens.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Word pieces without a corpus; by default 32,768.")
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of a named device's peak, by default 0.4: assumed, not measured.",
        ),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="USD an hour of a device.")] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="How many of a named device share every step.")
    ] = 1,
) -> None:
    """Predict time, memory and money of a run, stacked and from scratch, before paying for it.

    Example: stackbert plan bert-base --device H200 --price 3
    """
    from stackbert.planner import plan as plan_run
    from stackbert.recipes import load_recipe

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
    typer.echo(planned.text())


@app.command()
def pretrain(
    recipe: RecipeName,
    corpus: Annotated[Path, typer.Option(help="From 'stackbert corpus'.")],
    out: Annotated[Path, typer.Option(help="Run directory; an unfinished run there is resumed.")],
    set_: Set = None,
    budget: Annotated[
        str | None, typer.Option(help="Scale the stages to this time, measured here: 30m, 1.5h.")
    ] = None,
    steps: Steps = None,
    resume: Annotated[
        Resume, typer.Option(help="auto resumes a run that is there; never refuses it.")
    ] = Resume.auto,
    track: Annotated[
        str | None, typer.Option(help="tensorboard, wandb, or both with a comma.")
    ] = None,
) -> None:
    """Train a model in stages, growing it between them; writes a run directory.

    In several processes: torchrun --nproc-per-node 8 -m stackbert pretrain … (docs/scaling.md).

    Example: stackbert pretrain small-cpu --corpus corpus --out run --budget 30m
    """
    from stackbert.pretraining.distributed import is_main_process
    from stackbert.pretraining.run import pretrain as run_pretraining
    from stackbert.progress import console_progress
    from stackbert.recipes import load_recipe

    result = run_pretraining(
        load_recipe(recipe, set_ or []),
        corpus=corpus,
        out=out,
        budget=budget,
        steps=steps,
        resume=resume.value,
        track=[name.strip() for name in track.split(",")] if track else [],
        progress=console_progress(),
    )
    if is_main_process():
        typer.echo(result.table())
        typer.echo(
            f"The model is {result.model_folder}; transformers opens it with from_pretrained."
        )


@app.command()
def compare(
    recipe: RecipeName,
    corpus: Annotated[Path, typer.Option(help="From 'stackbert corpus'.")],
    out: Annotated[Path, typer.Option(help="Folder; an unfinished comparison there is resumed.")],
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
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; they divide the cores.")] = 1,
    keep_checkpoints: Annotated[
        bool,
        typer.Option("--keep-checkpoints", help="Of finished runs, at the end of each stage."),
    ] = False,
    set_: Set = None,
) -> None:
    """Compare ways of growing with training from scratch, on equal budgets; writes a report.

    Example: stackbert compare small-cpu --corpus corpus --out comparison --jobs 2
    """
    from stackbert.comparison.compare import compare as run_comparison
    from stackbert.progress import console_progress
    from stackbert.recipes import load_recipe

    loaded = load_recipe(recipe, set_ or [])
    with console_progress() as progress:
        found = run_comparison(
            loaded,
            corpus=corpus,
            out=out,
            variants=_words(variants),
            seeds=seeds,
            budget=budget,
            steps=steps,
            fractions=_numbers("--fractions", fractions),
            learning_rates=_numbers("--learning-rates", learning_rates),
            jobs=jobs,
            keep_checkpoints=keep_checkpoints,
            progress=progress,
        )
    for sentence in found.verdict():
        typer.echo(sentence)
    _report(out)


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

    grown = grow_folder(source, destination, depth, operator, seed=seed)
    typer.echo(
        f"{destination}: a {grown.model_class} of {grown.depth} layers ({grown.parameters:,} "
        f"parameters), grown from {grown.source_depth} by {grown.operator}."
    )


@app.command()
def attention(
    model: Annotated[
        Path, typer.Argument(help="A Hugging Face checkpoint folder, or a run directory.")
    ],
    text: Annotated[str, typer.Option(help="A file, folder or pattern to take sentences from.")],
    out: Annotated[Path, typer.Option(help="Folder for numbers and page; made if need be.")],
    sentences: Annotated[int, typer.Option(min=1, help="Sampled from the text.")] = 256,
    compare: Annotated[
        Path | None,
        typer.Option(help="A second model with the same tokenizer, shallower or deeper, or a run."),
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="Of a run: another run, whose growths are shown next to its own."),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=2, help="Tokens of a sentence; longer ones are cut.")
    ] = 128,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
) -> None:
    """Measure where each head of an encoder looks, and how alike its layers are.

    For a run directory, also what each growth did to the maps; give --beside once for each run with
    another way of growing. 'stackbert report' takes the folder, too.

    Example: stackbert attention run --text articles.txt --out attention
    """
    from stackbert.attention.measure import measure_attention
    from stackbert.attention.statements import LAYER_FORMATS, layer_table, statements
    from stackbert.progress import console_progress
    from stackbert.tables import table_text

    result = measure_attention(
        model,
        text=text,
        out=out,
        sentences=sentences,
        max_length=max_length,
        seed=seed,
        compare=compare,
        beside=beside or (),
        progress=console_progress(),
    )
    typer.echo(table_text(layer_table(result), formats=LAYER_FORMATS))
    for sentence in statements(result):
        typer.echo(sentence)
    _report(out)


@app.command()
def finetune(
    out: Annotated[Path, typer.Option(help="Folder; unfinished work there is resumed.")],
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
    kind: Annotated[LabelKind, typer.Option(help="Your own: what the labels are.")] = (
        LabelKind.auto
    ),
    control: Annotated[
        bool,
        typer.Option("--control", help="Also the first model untrained, with random weights."),
    ] = False,
    predict: Annotated[
        bool, typer.Option("--predict", help="Predict the tasks' unlabelled test splits as well.")
    ] = False,
) -> None:
    """Fine-tune models on GLUE, SQuAD or your own data, several seeds each, and compare them.

    Example: stackbert finetune run --task glue --data glue --out finetuned
    """
    from stackbert.finetuning.study import finetune as run_study
    from stackbert.progress import console_progress

    own = task == "own"
    if not own and any(option is not None for option in (dev, test, text, second, label, key)):
        raise UserError("--dev, --test, --text, --second, --label and --key go with --task own.")
    if own and (data is None or text is None or label is None):
        raise UserError(
            "--task own takes --data (the training table), --text and --label (its columns)."
        )
    with console_progress() as progress:
        result = run_study(
            models or [],
            task=task,
            data=data,
            dataset=dataset,
            out=out,
            groups=_groups(group or []),
            along=along or [],
            seeds=seeds,
            settings=set_ or [],
            control=control,
            dev=dev,
            test=predict if test is None else test,
            text=text or "text",
            second=second,
            label=label or "label",
            key=key,
            kind=kind.value,
            progress=progress,
        )
    typer.echo(result.summary())
    for sentence in result.verdict():
        typer.echo(sentence)
    _report(out)


@app.command()
def recipes() -> None:
    """List the shipped recipes.

    Example: stackbert recipes
    """
    from stackbert.recipes import shipped_recipes

    for name, recipe in shipped_recipes().items():
        typer.echo(f"{name:20} {recipe.summary}")


@app.command()
def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, or the folder of one comparison, fine-tuning or measurement of "
            "attention."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    figures: Annotated[
        Path | None, typer.Option(help="A folder for the figures as SVG and PNG as well.")
    ] = None,
) -> None:
    """Write one self-contained HTML file of a run, of several, or of another result.

    Example: stackbert report run --out report.html --figures figures
    """
    from stackbert.reports.report import report as write_report

    page = write_report(folders, out, figures)
    typer.echo(f"The report is {page}; any browser opens it, without a network.")


def _report(folder: Path) -> None:
    """Write a result's page into its own folder."""
    from stackbert.reports.report import report as write_report

    typer.echo(f"The report is {write_report(folder, folder / 'report.html')}.")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} '{text}' is not a list of numbers with commas.") from error


def _groups(given: list[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for text in given:
        name, equals, paths = text.partition("=")
        if not equals or not name or not _words(paths):
            raise UserError(f"--group {text}: write it as NAME=RUN,RUN,RUN.")
        if name in groups:
            raise UserError(f"--group {name} is given twice.")
        groups[name] = _words(paths)
    return groups
