"""The input pipeline: batches a second on one core, and what building a corpus costs.

    python benchmarks/pipeline.py
    python benchmarks/pipeline.py --text my_articles/ --threads 2 --rounds 3

Batches are made of random tokens, with and without sentence pairs, all shapes in turn. With --text
a corpus is built as well, in three ways that take turns, each in a process with its own memory:

    build    build_corpus as a user calls it: a pass to learn the vocabulary, a pass to tokenise
    given    build_corpus with the tokenizer of the first build: the second pass alone
    encode   that tokenizer's encode_batch_fast over the same documents; only this call is timed,
             and its ids are thrown away
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import reporting
from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import TOKENIZER
from stackbert.corpus.text import open_files
from stackbert.recipe import Stage

WAYS = ("build", "given", "encode")
BATCH_CHARACTERS = 4 << 20
"""Of the documents that are encoded in one call."""


def batch_rates(shapes: Sequence[tuple[int, int]], rounds: int, tokens: int) -> pd.DataFrame:
    """Batches and tokens a second for each shape, with and without sentence pairs."""
    # Not at the top: without torch, the memory of a build is its own.
    from stackbert.batches.batches import BatchPlan
    from stackbert.pretraining.synthetic import SyntheticCorpus

    corpus = SyntheticCorpus(32_768)
    plans = {}
    for rows, length in shapes:
        stage = Stage(1, 1 << 40, rows, length, 0.15, "auto")
        for pairs in (False, True):
            plans[f"{rows} × {length}{', pairs' if pairs else ''}", rows * length] = BatchPlan(
                corpus.train, corpus.vocabulary, [stage], seed=0, next_sentence=pairs
            )
    rates: dict[str, list[float]] = {name: [] for name, _ in plans}
    for turn in range(rounds + 1):  # the first warms up
        for (name, size), plan in plans.items():
            count = max(3, tokens // size)
            start = time.perf_counter()
            for step in range(turn * count, (turn + 1) * count):
                plan.batch(step)
            rates[name].append(count / (time.perf_counter() - start))
    return pd.DataFrame(
        [
            {
                "rows × positions": name,
                "batches/s": reporting.spread(rates[name][1:], "{:,.0f}"),
                "M tokens/s": reporting.spread([size * rate / 1e6 for rate in rates[name][1:]]),
                "ms a batch": 1000 / statistics.median(rates[name][1:]),
            }
            for name, size in plans
        ]
    )


def build(folder: Path, text: list[str], vocab_size: int | None, tokenizer: Path | None) -> Any:  # noqa: ANN401
    """Build a corpus: seconds, tokens, documents."""
    start, cpu = time.perf_counter(), time.process_time()
    size = None if tokenizer else vocab_size
    corpus = build_corpus(folder, text=text, tokenizer=tokenizer, vocab_size=size, validation=0.05)
    end, cpu = time.perf_counter(), time.process_time() - cpu
    sides = (corpus.manifest.train, corpus.manifest.validation)
    documents = sum(side.documents for side in sides)
    return {
        "seconds": end - start,
        "cpu": cpu,
        "tokens": sum(side.tokens for side in sides) - documents,  # without the separators
        "documents": documents,
        "bytes": sum(source.bytes for source in corpus.manifest.sources),
    }


def encode(text: list[str], tokenizer: Path) -> dict[str, Any]:
    """Encode the documents that a build keeps; reading them is not timed."""
    from tokenizers import Tokenizer

    opened = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    seconds = cpu = 0.0
    tokens = documents = 0
    for batch in document_batches(text):
        start, processor = time.perf_counter(), time.process_time()
        encodings = opened.encode_batch_fast(batch, add_special_tokens=False)
        seconds += time.perf_counter() - start
        cpu += time.process_time() - processor
        documents += len(batch)
        tokens += sum(map(len, encodings))
    return {"seconds": seconds, "cpu": cpu, "tokens": tokens, "documents": documents}


def document_batches(text: list[str]) -> Iterator[list[str]]:
    """Documents that are neither blank nor duplicates, some megabytes at a time."""
    seen, batch, characters = {hash("")}, [], 0
    for source in open_files(text)[0]:
        for raw in source.documents():
            document = raw.replace("\r\n", "\n").strip()
            if hash(document) not in seen:
                seen.add(hash(document))
                batch.append(document)
                characters += len(document)
            if characters >= BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
    yield batch


def child(way: str, folder: Path, vocab_size: int | None, text: list[str]) -> None:
    """Do one of `WAYS` and print what it took."""
    tokenizer = folder / "build" / TOKENIZER
    if way == "encode":
        result = encode(text, tokenizer)
    else:
        place = folder / (way if not tokenizer.exists() else "again")
        result = build(place, text, vocab_size, tokenizer if way == "given" else None)
        shutil.rmtree(folder / "again", ignore_errors=True)
    # What rusage says would count the parent's memory as well: it survives fork and exec.
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))
    print(json.dumps(result | {"peak_memory": peak}))


def builds(text: list[str], vocab_size: int | None, rounds: int, threads: int) -> pd.DataFrame:
    """A row a round and way, all ways in turn."""
    counts = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), str(threads))
    environment = os.environ | counts | {"TOKENIZERS_PARALLELISM": "true"}
    rows = []
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        for turn in range(rounds):
            for way in WAYS:
                command = [sys.executable, __file__, "--child", way, "--folder", folder]
                command += ["--vocab-size", str(vocab_size)] if vocab_size else []
                done = subprocess.run(
                    [*command, "--text", *text], env=environment, stdout=subprocess.PIPE, text=True
                )
                if done.returncode:
                    sys.exit(f"{way} failed.")
                rows.append({"round": turn, "way": way, **json.loads(done.stdout)})
    return pd.DataFrame(rows)


def build_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Seconds, ratio to `encode` in the same round, and memory of each way."""
    by_round = frame.pivot_table(index="round", columns="way", values="seconds")
    megabytes = frame.bytes.max() / 1e6
    return pd.DataFrame(
        [
            {
                "": way,
                "seconds": reporting.spread(group.seconds),
                "CPU seconds": reporting.spread(group.cpu),
                "MB/s": megabytes / group.seconds.median(),
                "its time ÷ encode's": reporting.spread(by_round[way] / by_round["encode"]),
                "peak MB": group.peak_memory.max() / 1e6,
            }
            for way, group in frame.groupby("way", sort=False)
        ]
    )


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", nargs="+", default=[], help="to build a corpus from")
    add("--vocab-size", type=int, help="by default as `stackbert corpus` chooses")
    add("--threads", type=int, default=1, help="for building; batches take one")
    add("--rounds", type=int, default=5)
    add("--shapes", default="48x64,32x128,320x384,256x512", metavar="ROWSxLENGTH,…")
    add("--tokens", type=int, default=2_000_000, help="of batches, a round and shape")
    add("--out", type=Path, default=reporting.RESULTS)
    add("--name", default="pipeline", help="of the report")
    add("--child", choices=WAYS, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder, given.vocab_size, given.text)
        return
    begun, tables, notes = time.monotonic(), {}, []
    if given.text:
        frame = builds(given.text, given.vocab_size, given.rounds, given.threads)
        tables["A corpus: median (range) over the rounds"] = build_table(frame)
        counts = frame.groupby("way", sort=False)[["documents", "tokens"]].max()
        counted = "; ".join(
            f"{row.Index} {row.documents:,} documents, {row.tokens:,} tokens"
            for row in counts.itertuples()
        )
        notes = [f"{given.threads} threads; {counted}."]
    shapes = [tuple(map(int, shape.split("x"))) for shape in given.shapes.split(",")]
    tables["Batches on one core: median (range) over the rounds"] = batch_rates(
        shapes, given.rounds, given.tokens
    )
    print(
        reporting.write_report(
            given.out,
            given.name,
            "The input pipeline",
            tables,
            notes=[*notes, "A batch's tokens count its special ones."],
            seconds=time.monotonic() - begun,
            formats={"ms a batch": "{:.2f}", "MB/s": "{:.1f}", "peak MB": "{:,.0f}"},
        )
    )


if __name__ == "__main__":
    main()
