"""The command line: one typed function a command, which parses, calls and prints.

Heavy libraries load inside the commands, so that `stackbert --help` answers at once.
"""

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, Exit, Option, Typer, echo

from stackbert.errors import MissingExtra, UserError
from stackbert.progress import console_progress

if TYPE_CHECKING:
    from stackbert.tables import Tables

app = Typer(
    name="stackbert",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_RECIPE = Argument(
    help="A shipped recipe's name, or a YAML file.",
    autocompletion=lambda: [path.stem for path in Path(__file__).parent.glob("recipes/*.yaml")],
)
RecipeName = Annotated[str, _RECIPE]
Set = Annotated[list[str] | None, Option("--set", help="Change a field: model.hidden_size=256.")]
Budget = Annotated[str | None, Option(help="Scale to this time: 30m, 1.5h; start-up comes on top.")]
Steps = Annotated[int | None, Option(min=1, help="Scale the stages to this many steps in all.")]
Corpus = Annotated[Path, Option(help="Folder that 'stackbert corpus' made.")]
NewFolder = Annotated[Path, Argument(help="Folder to make; must not exist.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print only results and errors.")]
Json = Annotated[bool, Option("--json", help="Print tables as JSON.")]
Resumed = Annotated[Path, Option(help="Folder to write; unfinished work in it is resumed.")]


def _version(asked: bool) -> None:
    if asked:
        echo(f"stackbert {version('stackbert')}")
        raise Exit


@app.callback()
def main(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pre-train BERT-like encoders for less: train a shallow model, stack it, train on."""


@app.command()
def demo(
    out: Annotated[Path, Option(help="Where corpus, run and report go.")] = Path("demo"),
    quiet: Quiet = False,
) -> None:
    """Run the main job on a small real corpus.

    Text, vocabulary, three depths, filled masks and a report; minutes on two cores.

    Example: stackbert demo --out demo
    """
    from stackbert.demo import run_demo

    run_demo(out, say=echo, progress=console_progress(quiet))


@app.command()
def corpus(
    out: NewFolder,
    text: Annotated[list[str] | None, Option(help="A file, folder or pattern; repeatable.")] = None,
    suffix: Annotated[str, Option(help="Also read files ending so, a document each: py,md.")] = "",
    dataset: Annotated[str | None, Option(help="Of Hugging Face datasets: folder or name.")] = None,
    field: Annotated[str, Option(help="Of JSON, Parquet, data sets: the text's field.")] = "text",
    tokenizer: Annotated[Path | None, Option(help="Use this Hugging Face tokenizer.")] = None,
    add_tokens: Annotated[Path | None, Option(help="A file with a new token in each line.")] = None,
    vocabulary: Annotated[
        Literal["wordpiece", "bytes"],
        Option(help="wordpiece: lower-cased, with [UNK]; bytes: BPE, knows and keeps all text."),
    ] = "wordpiece",
    vocab_size: Annotated[int | None, Option(help="Entries; by default up to 32,768.")] = None,
    cased: Annotated[bool, Option("--cased", help="Keep upper case in word pieces.")] = False,
    strip_accents: Annotated[
        bool, Option("--strip-accents", help="Turn é into e; that deletes Hindi's vowels.")
    ] = False,
    allow_unknown: Annotated[
        bool, Option("--allow-unknown", help="Build even if a fifth of the text is lost.")
    ] = False,
    validation: Annotated[float, Option(help="Share of the documents to hold out.")] = 0.005,
    language: Annotated[str, Option(help="For model cards, the text's: de or de,fr.")] = "",
    license: Annotated[str, Option(help="For model cards: cc-by-sa-4.0.")] = "",
    quiet: Quiet = False,
    paths: Annotated[list[str] | None, Argument(help="More text, such as *.txt.")] = None,
) -> None:
    """Turn text into a corpus: a tokenizer and token files.

    Example: stackbert corpus corpus/ --text articles/ --vocab-size 32768
    """
    from stackbert.batches.batches import data_sentences
    from stackbert.corpus.build import build_corpus
    from stackbert.recipes import load_recipe

    with console_progress(quiet) as progress:
        built = build_corpus(
            out,
            text=[*(text or []), *(paths or [])],
            suffixes=_words(suffix) if suffix else (),
            dataset=dataset,
            field=field,
            tokenizer=tokenizer,
            added_tokens=add_tokens,
            vocabulary=vocabulary,
            vocab_size=vocab_size,
            lowercase=not cased,
            strip_accents=strip_accents,
            allow_unknown=allow_unknown,
            validation=validation,
            language=language,
            license=license,
            progress=progress,
        )
    echo(f"{out}: {built.manifest.summary()}")
    echo("small-cpu as shipped: " + data_sentences(load_recipe("small-cpu"), built)[0])
    echo(f"Next: stackbert pretrain small-cpu --corpus {out} --out run --budget 30m")


@app.command()
def plan(
    recipe: RecipeName,
    device: Annotated[
        str, Option(help="here (measured, a minute or two), A100, H100, H200, L4, 'RTX 4090', cpu.")
    ] = "here",
    set_: Set = None,
    budget: Budget = None,
    steps: Steps = None,
    corpus: Annotated[Path | None, Option(help="Measure on it, not on random tokens.")] = None,
    vocab_size: Annotated[int | None, Option(help="Without a corpus; by default 32,768.")] = None,
    mfu: Annotated[float | None, Option(min=0.01, max=1.0, help="Of peak; by default 0.4.")] = None,
    price: Annotated[float | None, Option(min=0.0, help="USD an hour for one device.")] = None,
    devices: Annotated[int, Option(min=1, help="Devices that share every step.")] = 1,
    as_json: Json = False,
) -> None:
    """Predict time, memory and money of a run before paying for it.

    Example: stackbert plan bert-base --device H200 --price 3
    """
    from stackbert.corpus.store import open_corpus
    from stackbert.planner import plan as plan_run
    from stackbert.recipes import load_recipe

    loaded = load_recipe(recipe, set_ or [])
    opened = open_corpus(corpus) if corpus else None
    if device == "here":
        echo("measuring seconds per step at every depth …", err=True)
    planned = plan_run(
        loaded,
        device=device,
        budget=budget,
        steps=steps,
        corpus=opened,
        vocab_size=vocab_size,
        mfu=mfu,
        price=price,
        devices=devices,
    )
    _show(planned, [planned.text()], as_json)


@app.command()
def pretrain(
    out: Resumed,
    recipe: Annotated[str | None, _RECIPE] = None,
    corpus: Annotated[Path | None, Option(help="Folder that 'stackbert corpus' made.")] = None,
    start: Annotated[Path | None, Option("--from", help="Start from this model or run.")] = None,
    extend: Annotated[str | None, Option(help="Train the finished run RECIPE longer: 2h.")] = None,
    set_: Set = None,
    budget: Budget = None,
    steps: Steps = None,
    resume: Annotated[
        Literal["auto", "never"], Option(help="never: refuse a folder with a run.")
    ] = "auto",
    track: Annotated[str | None, Option(help="Log to tensorboard,wandb,trackio,mlflow.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a model in stages, growing it between them.

    It writes a run directory, which --out alone resumes. In several processes: torchrun
    --nproc-per-node 8 -m stackbert pretrain … (docs/scaling.md).

    Example: stackbert pretrain small-cpu --corpus corpus --out run --budget 30m
    """
    from stackbert.recipes import load_recipe

    loaded = None
    if extend is not None:
        if recipe is None or start or set_ or budget or steps:
            raise UserError(
                "--extend keeps a run's recipe: no --from, --set, --budget or --steps, and the "
                "finished run in RECIPE's place."
            )
    elif recipe is not None:
        loaded = load_recipe(recipe, set_ or [])
    elif start or set_ or budget or steps:
        raise UserError("--from, --set, --budget, --steps go with a RECIPE; a run has its own.")
    if corpus is None and recipe is not None:
        raise UserError("A new run takes --corpus, a folder that 'stackbert corpus' made.")

    from stackbert.pretraining import run  # takes seconds, for torch
    from stackbert.pretraining.distributed import is_main_process

    common: dict[str, Any] = {
        "corpus": corpus,
        "out": out,
        "resume": resume,
        "track": _words(track or ""),
        "progress": console_progress(quiet),
    }
    if loaded is not None:
        result = run.pretrain(loaded, start=start, budget=budget, steps=steps, **common)
    elif recipe is not None:
        result = run.extend(recipe, by=str(extend), **common)
    else:
        result = run.resume_run(**common)
    if is_main_process():
        place = f"The model is {result.model_folder}; transformers opens it with from_pretrained."
        _show(result, [result.table(), place], as_json)


@app.command()
def compare(
    recipe: RecipeName,
    corpus: Corpus,
    out: Resumed,
    variants: Annotated[
        str,
        Option(
            help="Growth operators and YAML files, with commas; stack@0.5,stack@1 tries two "
            "learning rates. Each depth is also run from scratch."
        ),
    ] = "scratch,stack",
    seeds: Annotated[int, Option(min=1, help="Runs of each variant.")] = 3,
    budget: Annotated[
        str | None,
        Option("--budget", "--budgets", help="Of each run: 30m, 2000steps, 4e15flops or 4m,12m."),
    ] = None,
    steps: Steps = None,
    fractions: Annotated[str, Option(help="Shares of the budget to run at: 1,0.65,0.5.")] = "1",
    learning_rates: Annotated[str, Option(help="Factors to try, the best counts: 0.5,1,2.")] = "1",
    jobs: Annotated[int, Option(min=1, help="Runs at a time; they divide the cores.")] = 1,
    keep_checkpoints: Annotated[bool, Option("--keep-checkpoints", help="Of each stage.")] = False,
    set_: Set = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare growing with training from scratch on equal budgets.

    Example: stackbert compare small-cpu --corpus corpus --out comparison --jobs 2
    """
    from stackbert.comparison.compare import compare as run_comparison
    from stackbert.recipes import load_recipe

    loaded = load_recipe(recipe, set_ or [])
    with console_progress(quiet) as progress:
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
    _show(found, found.verdict(), as_json, out)


@app.command()
def grow(
    source: Annotated[Path, Argument(help="A Hugging Face checkpoint folder, or a run.")],
    destination: NewFolder,
    depth: Annotated[int | None, Option(help="Layers of the new model.")] = None,
    operator: Annotated[str, Option(help="A growth operator (docs/operators.md).")] = "stack",
    seed: Annotated[int, Option(help="Seed of fresh layers and noise.")] = 0,
    rebalance: Annotated[
        bool, Option("--rebalance", help="Bring weights to initial scale first, or only.")
    ] = False,
) -> None:
    """Make a deeper model out of any Hugging Face checkpoint.

    Example: stackbert grow bert-6 bert-12 --depth 12 --operator stack
    """
    from stackbert.growth.folder import grow_folder
    from stackbert.pretraining.record import final_model

    grown = grow_folder(
        final_model(source), destination, depth, operator, seed, rebalance=rebalance
    )
    how = "rebalancing" if depth is None else operator
    echo(
        f"{destination}: a {type(grown).__name__} of {grown.config.num_hidden_layers} layers "
        f"({grown.num_parameters():,} parameters), made by {how}."
    )


@app.command()
def attention(
    model: Annotated[Path, Argument(help="A Hugging Face checkpoint folder, or a run directory.")],
    text: Annotated[str, Option(help="A file, folder or pattern to take sentences from.")],
    out: Annotated[Path, Option(help="Folder for numbers and page; made if need be.")],
    sentences: Annotated[int, Option(min=1, help="How many to sample from the text.")] = 256,
    compare: Annotated[Path | None, Option(help="A second model with the same tokenizer.")] = None,
    beside: Annotated[list[Path] | None, Option(help="Another run, to show its growths.")] = None,
    max_length: Annotated[int, Option(min=2, help="Tokens at which a sentence is cut.")] = 128,
    seed: Annotated[int, Option(min=0, help="Seed of the sample.")] = 0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure where each head looks, and how alike the layers are.

    For a run directory, also what each growth did to the maps; give --beside once for each run with
    another way of growing. 'stackbert report' takes the folder, too.

    Example: stackbert attention run --text articles.txt --out attention
    """
    from stackbert.attention.measure import measure_attention
    from stackbert.attention.statements import LAYER_FORMATS, layer_table, statements
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
        progress=console_progress(quiet),
    )
    table = table_text(layer_table(result), formats=LAYER_FORMATS)
    _show(result, [table, *statements(result)], as_json, out)


@app.command()
def finetune(
    models: Annotated[list[str], Argument(help="Folders or runs; the first is the yardstick.")],
    out: Resumed,
    data: Annotated[Path, Option(help="Folder of official files, or your own table.")],
    task: Annotated[
        str,
        Option(
            help="glue (all whose data is there), cola, sst-2, mrpc, sts-b, qqp, mnli, qnli, rte, "
            "wnli, squad, squad-v2, several with commas; or own."
        ),
    ],
    seeds: Annotated[int | None, Option(min=1, help="Runs of each model; 6, large data 3.")] = None,
    set_: Annotated[
        list[str] | None, Option("--set", help="Change a field: epochs=4, lr=auto, save=true.")
    ] = None,
    dev: Annotated[Path | None, Option(help="Your own: the table to score on.")] = None,
    test: Annotated[Path | None, Option(help="Your own: a table to predict.")] = None,
    text: Annotated[str | None, Option(help="Your own: the column of the text.")] = None,
    second: Annotated[str | None, Option(help="Your own: the column of a second text.")] = None,
    label: Annotated[str | None, Option(help="Your own: the column of the label.")] = None,
    key: Annotated[str | None, Option(help="Your own: the column of the row's id.")] = None,
    kind: Annotated[
        Literal["auto", "classification", "regression"], Option(help="Your own: what labels are.")
    ] = "auto",
    control: Annotated[bool, Option("--control", help="Also fine-tune random weights.")] = False,
    predict: Annotated[bool, Option("--predict", help="Also predict test sets.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Fine-tune and compare models on GLUE, SQuAD or your own table.

    Example: stackbert finetune run --task own --data my.csv --text review --label stars --out tuned
    """
    from stackbert.finetuning.study import finetune as run_study

    own = (dev, test, text, second, label, key, None if kind == "auto" else kind)
    if task != "own" and any(each is not None for each in own):
        raise UserError("--dev, --test, --text, --second, --label, --key, --kind: of --task own.")
    if task == "own" and None in (text, label):
        raise UserError("--task own takes --text and --label, columns of the table --data.")
    with console_progress(quiet) as progress:
        result = run_study(
            models,
            task=task,
            data=data,
            out=out,
            seeds=seeds,
            settings=set_ or [],
            control=control,
            dev=dev,
            test=predict if test is None else test,
            text=text or "text",
            second=second,
            label=label or "label",
            key=key,
            kind=kind,
            progress=progress,
        )
    kept = (
        "The models were not kept. The same command with --set save=true trains and keeps them "
        "(with --seeds 1, too, one of each)."
    )
    if any(out.glob("results/*/*/config.json")):
        kept = f"The models are folders below {out / 'results'}; transformers opens them."
    _show(result, [result.summary(), *result.verdict(), kept], as_json, out)


@app.command()
def evaluate(
    models: Annotated[list[Path], Argument(help="Folders or runs; of a run, every checkpoint.")],
    data: Annotated[Path, Option(help="A folder of tests, a corpus, or a single file.")],
    out: Annotated[Path | None, Option(help="Folder for the numbers and a page.")] = None,
    only: Annotated[str, Option(help="Names of tests with commas; by default all.")] = "",
    train: Annotated[int, Option(min=1, help="Sentences a probe learns from.")] = 2000,
    test: Annotated[int, Option(min=2, help="Sentences a probe is tested on.")] = 1000,
    pairs: Annotated[int, Option(min=1, help="Minimal pairs of each paradigm.")] = 200,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure what models have learned: probes, pairs, held-out loss.

    Example: stackbert evaluate run/model --data tests --out evaluation
    """
    from stackbert.evaluation.evaluate import evaluate as run_evaluation
    from stackbert.tables import table_text

    counts = {"train": train, "test": test, "pairs": pairs}
    with console_progress(quiet) as progress:
        result = run_evaluation(
            models, data=data, out=out, only=_words(only), progress=progress, **counts
        )
    tables = [
        table_text(table, formats=dict.fromkeys(table.select_dtypes("float"), "{:.4g}"))
        for table in result.tables().values()
    ]
    _show(result, [*tables, *result.sentences()], as_json, out)


@app.command()
def recipes(name: Annotated[str | None, _RECIPE] = None) -> None:
    """List the shipped recipes, or print one with all its fields.

    Example: stackbert recipes small-cpu > mine.yaml
    """
    from stackbert.recipes import load_recipe, shipped_recipes

    if name is not None:
        echo(load_recipe(name).to_yaml(), nl=False)
        return
    for shipped, recipe in shipped_recipes().items():
        echo(f"{shipped:20} {recipe.summary}")


@app.command()
def report(
    folders: Annotated[list[Path], Argument(help="Runs, and folders of other results.")],
    out: Annotated[Path, Option(help="The HTML file to write.")],
    figures: Annotated[Path | None, Option(help="Folder for the figures as SVG and PNG.")] = None,
) -> None:
    """Write one self-contained HTML page of runs or other results.

    Example: stackbert report run --out report.html --figures figures
    """
    from stackbert.reports.report import report as write_report

    page = write_report(folders, out, figures)
    echo(f"The report is {page}; any browser opens it, without a network.", err=True)


def _show(
    result: "Tables", lines: Iterable[str], as_json: bool, folder: Path | None = None
) -> None:
    """Print what was found, and write the result's page into its own folder, if it has one."""
    echo(result.to_json() if as_json else "\n".join(lines))
    if folder is not None:
        try:
            report([folder], folder / "report.html")
        except MissingExtra as missing:
            echo(f"No page was written: {missing}", err=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"{option} '{text}' is not a list of numbers with commas.") from error
