"""`stackbert demo`: the main job on a small real corpus, start to finish in a few minutes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stackbert.corpus.build import build_corpus
from stackbert.corpus.manifest import MANIFEST
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.factbook import write_factbook
from stackbert.files import explaining_os_errors
from stackbert.pretraining.checkpoints import quiet_transformers
from stackbert.pretraining.progress import Reporter
from stackbert.pretraining.report import stage_table
from stackbert.pretraining.run import RunResult, pretrain
from stackbert.recipe_files import load_recipe
from stackbert.reporting.report import report

VOCABULARY = 4096
HELD_OUT = 0.05
"""256 documents are few: 199 to 1 would hold out a single one."""
SENTENCES = (
    "The capital of the {mask} is the largest city.",
    "Members of the National {mask} are elected by popular vote.",
    "The country gained independence from the United {mask}.",
    "The president is elected for a five-year {mask}.",
)


def run_demo(out: Path, *, say: Callable[[str], None], reporter: Reporter) -> RunResult:
    """Build the corpus, run the recipe `demo`, print stages and filled masks, write a report.

    Run again, it takes up what is there: a finished corpus, an unfinished or finished run.

    Args:
        out: text, corpus, run and report go here.
        say: prints a line.
        reporter: hears of the training's progress.

    Raises:
        UserError: the demo's text is not installed, or `out` holds something else.
    """
    corpus = _corpus(out, say)
    entropy = corpus.manifest.validation.unigram_entropy
    recipe = load_recipe("demo")
    depths = " → ".join(str(stage.depth) for stage in recipe.stages)
    say(f"Training: {depths} layers, {recipe.total_steps:,} steps.")
    result = pretrain(recipe, corpus=corpus, out=out / "run", reporter=reporter)
    say(stage_table(result.summary))
    loss = result.summary.loss
    if loss is not None:
        say(
            f"Validation loss {loss:.3f} nats; a model that knows word frequencies alone has "
            f"{entropy:.3f} (the unigram entropy): {entropy - loss:.3f} nats below it."
        )
    say("\nWhat the model fills in, through transformers' own pipeline:")
    for line in fill_masks(result.model_folder):
        say(f"  {line}")
    page = report(out / "run", out / "report.html")
    say(f"\nThe report of this run is {page}; any browser opens it, without a network.")
    say(
        f"The model is {result.model_folder}. With your own text:\n"
        "  stackbert corpus corpus --text YOUR_TEXT_FOLDER\n"
        "  stackbert pretrain small-cpu --corpus corpus --out run --budget 30m\n"
        "  stackbert recipes"
    )
    return result


def fill_masks(model: Path, sentences: tuple[str, ...] = SENTENCES) -> list[str]:
    """Each sentence with the three likeliest fillings of its {mask}, by transformers' pipeline."""
    from transformers import pipeline

    with quiet_transformers():
        fill: Any = pipeline("fill-mask", model=str(model), top_k=3, device="cpu")
    mask = fill.tokenizer.mask_token
    lines = []
    for sentence in sentences:
        answers = fill(sentence.format(mask=mask))
        words = ", ".join(f"{a['token_str']} {a['score']:.0%}" for a in answers)
        lines.append(f"{sentence.format(mask='[…]')}  {words}")
    return lines


def _corpus(out: Path, say: Callable[[str], None]) -> Corpus:
    folder = out / "corpus"
    if (folder / MANIFEST).is_file():
        say(f"Corpus: {folder} is there already.")
        return open_corpus(folder)
    with explaining_os_errors(f"writing the demo's text to {out}"):
        out.mkdir(parents=True, exist_ok=True)
        text = out / "world-factbook.txt"
        documents = write_factbook(text)
    say(f"Text: {documents} country articles of the World Factbook (public domain).")
    corpus = build_corpus(folder, text=[text], vocab_size=VOCABULARY, validation=HELD_OUT)
    train, held_out = corpus.manifest.train, corpus.manifest.validation
    say(
        f"Corpus: {train.tokens:,} tokens to train on, {held_out.tokens:,} held out, "
        f"{corpus.manifest.tokenizer_size:,} word pieces."
    )
    return corpus
