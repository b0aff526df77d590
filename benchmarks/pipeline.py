"""The input pipeline: batches a second on one core, and what building a corpus costs.

    python benchmarks/pipeline.py --corpus corpus
    python benchmarks/pipeline.py --text my_articles/ --threads 2 --rounds 3

Batches: every shape, with and without sentence pairs, in turn; made-up tokens unless a corpus is
given. With --text also the building of a corpus from this text, three contenders in turn:

    build    build_corpus as a user calls it: a pass to learn the vocabulary, a pass to tokenise
    given    build_corpus with the tokenizer of the first build: the second pass alone
    encode   bare tokenizer.encode_batch of that tokenizer over the same documents, nothing else
             timed; its ids are thrown away

Every one is a process of its own with the same number of threads, so the peak memory is its own.
The report goes to benchmarks/results/ as JSON and Markdown.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import reporting
import stackbert as sb
from corpus_jobs import Job, time_builds
from made_up import made_up_stream, made_up_vocabulary, write_made_up_text
from reporting import Report, Table
from stackbert.batches import BatchPlan, StageShape
from stackbert.corpus.store import TokenStream
from stackbert.errors import UserError
from stackbert.vocabulary import Vocabulary, load_vocabulary

SHAPES = "48x64,32x128,320x384,256x512"
MASK_RATE = 0.15
_ENDLESS = 1 << 40


@dataclass(frozen=True)
class Pace:
    """One round's batches of one shape."""

    batches: int
    wall: float
    """Seconds for all of them."""
    cpu: float
    """Seconds of processor time, likewise."""


@dataclass
class Shape:
    """Batches of one shape, and how fast they were made."""

    rows: int
    sequence: int
    pairs: bool
    rounds: list[Pace] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Of a batch, special tokens included."""
        return self.rows * self.sequence

    def tokens_per_second(self, clock: str) -> list[float]:
        """One a round; `clock` is "wall" or "cpu"."""
        return [self.tokens * one.batches / getattr(one, clock) for one in self.rounds]

    def plain(self) -> dict[str, Any]:
        """For the JSON report."""
        return asdict(self) | {
            f"{name}_per_{clock}_second": _spread([rate / unit for rate in rates])
            for clock in ("wall", "cpu")
            for rates in [self.tokens_per_second(clock)]
            for name, unit in (("tokens", 1), ("batches", self.tokens))
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _shown(values: Sequence[float], digits: int = 2) -> str:
    found = _spread(values)
    median, least, most = (f"{found[name]:,.{digits}f}" for name in ("median", "least", "most"))
    return f"{median} ({least}–{most})"


# --- Batches --------------------------------------------------------------------------------------


def time_batches(
    stream: TokenStream, vocabulary: Vocabulary, shapes: Sequence[Shape], rounds: int, tokens: int
) -> None:
    """Fill in the shapes' rounds: so many tokens a round and shape, the shapes in turn."""
    plans = [
        BatchPlan(
            stream,
            vocabulary,
            [StageShape(_ENDLESS, shape.rows, shape.sequence, MASK_RATE)],
            seed=0,
            next_sentence=shape.pairs,
        )
        for shape in shapes
    ]
    for turn in range(rounds + 1):  # the first warms up and is not counted
        for shape, plan in zip(shapes, plans, strict=True):
            count = max(3, tokens // shape.tokens)
            steps = range(turn * count, (turn + 1) * count)
            wall, cpu = time.perf_counter(), time.process_time()
            for step in steps:
                plan.batch(step)
            pace = Pace(count, time.perf_counter() - wall, time.process_time() - cpu)
            if turn:
                shape.rounds.append(pace)


def batches_table(shapes: Sequence[Shape]) -> Table:
    """Tokens and batches a second."""
    rows = []
    for shape in shapes:
        wall, cpu = shape.tokens_per_second("wall"), shape.tokens_per_second("cpu")
        rows.append(
            (
                f"{shape.rows} × {shape.sequence}{', pairs' if shape.pairs else ''}",
                _shown([rate / shape.tokens for rate in wall], 0),
                _shown([rate / 1e6 for rate in wall]),
                _shown([rate / 1e6 for rate in cpu]),
                f"{1000 * shape.tokens / statistics.median(wall):.2f}",
            )
        )
    columns = (
        "rows × positions",
        "batches/s",
        "M tokens/s",
        "M tokens/s of CPU time",
        "ms a batch",
    )
    return Table("Batches on one core: median (least–most) of the rounds", columns, tuple(rows))


# --- Building a corpus ----------------------------------------------------------------------------


def builds_tables(found: dict[str, list[dict[str, Any]]]) -> tuple[Table, Table]:
    """Seconds and memory of the contenders, and the phases of the build."""
    megabytes = found["build"][0]["bytes"] / 1e6
    rows = []
    for contender, rounds in found.items():
        seconds = [one["seconds"] for one in rounds]
        rows.append(
            (
                contender,
                _shown(seconds),
                _shown([one["cpu"] for one in rounds]),
                f"{megabytes / statistics.median(seconds):.1f}",
                _shown(ratios(found, contender)),
                _shown(ratios(found, contender, "cpu")),
                f"{max(one['peak_memory'] for one in rounds) / 1e6:,.0f}",
            )
        )
    columns = ("", "seconds", "CPU seconds", "MB/s", "times encode", "of CPU time", "peak MB")
    contenders = Table("A corpus: median (least–most) of the rounds", columns, tuple(rows))
    phases = [
        (f"{contender}: {phase}", _shown([one["phases"][phase] for one in found[contender]]))
        for contender in ("build", "given")
        for phase in found[contender][0]["phases"]
    ]
    return contenders, Table("Phases", ("", "seconds"), tuple(phases))


def ratios(
    found: dict[str, list[dict[str, Any]]], contender: str, clock: str = "seconds"
) -> list[float]:
    """A contender's seconds (or "cpu" seconds) over those of `encode` in the same round."""
    both = zip(found[contender], found["encode"], strict=True)
    return [one[clock] / bare[clock] for one, bare in both]


# --- The command ----------------------------------------------------------------------------------


def shapes_of(words: str) -> list[Shape]:
    """`"48x64,32x128"` → these shapes, each without and with pairs.

    Raises:
        ValueError: it is not of this form.
    """
    pairs = [tuple(int(number) for number in word.split("x")) for word in words.split(",")]
    return [
        Shape(rows, length, with_pairs) for rows, length in pairs for with_pairs in (False, True)
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, help="to draw batches from; by default made up")
    parser.add_argument("--text", nargs="+", type=Path, default=[], help="to build a corpus from")
    parser.add_argument("--vocab-size", type=int, help="by default as `stackbert corpus` chooses")
    parser.add_argument("--threads", type=int, default=1, help="for building; batches take one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", type=shapes_of, default=SHAPES, metavar="ROWSxLENGTH,…")
    parser.add_argument(
        "--tokens", type=int, default=2_000_000, help="of batches, a round and shape"
    )
    parser.add_argument("--out", type=Path, default=reporting.RESULTS)
    parser.add_argument("--smoke", action="store_true", help="tiny, to see that it runs")
    return parser.parse_args()


def main() -> None:
    """Run it all; see the module's text."""
    given = arguments()
    begun, machine = time.monotonic(), reporting.machine()
    tables: list[Table] = []
    results: dict[str, Any] = {}
    validation, made_up_tokens = 0.005, 20_000_000
    with tempfile.TemporaryDirectory(prefix="pipeline-") as name:
        folder = Path(name)
        if given.smoke:
            given.shapes, given.tokens, given.rounds = shapes_of("4x16,2x64"), 1000, 2
            given.text, given.vocab_size = [folder / "made-up.txt"], 700
            validation, made_up_tokens = 0.2, 20_000
            write_made_up_text(given.text[0], 30)
        if given.text:
            job = Job("", tuple(map(str, given.text)), given.vocab_size, validation, name, "")
            found = time_builds(job, given.rounds, given.threads)
            tables += builds_tables(found)
            results["builds"] = found
            results["times_encode"] = {one: _spread(ratios(found, one)) for one in found}
        if given.corpus:
            stream, vocabulary = _opened(given.corpus)
        else:
            vocabulary = made_up_vocabulary(32_768)
            stream = made_up_stream(folder / "made-up", vocabulary, made_up_tokens)
        time_batches(stream, vocabulary, given.shapes, given.rounds, given.tokens)
        tables.append(batches_table(given.shapes))
        results["batches"] = [shape.plain() for shape in given.shapes]
    report = Report(
        benchmark="pipeline-smoke" if given.smoke else "pipeline",
        title="The input pipeline",
        tables=tuple(tables),
        results=results,
        settings={
            "rounds": given.rounds,
            "threads": given.threads,
            "corpus_tokens": len(stream),
            "vocabulary": vocabulary.size,
            "mask_rate": MASK_RATE,
        },
        machine=machine,
        notes=(
            f"Batches from {'a corpus' if given.corpus else 'made-up text'} of {len(stream):,} "
            f"tokens; a batch's tokens count its special ones.",
            *(_build_notes(results["builds"], given.threads) if given.text else ()),
        ),
        seconds=time.monotonic() - begun,
        smoke=given.smoke,
    )
    print(report.markdown())
    print(f"Written to {report.write(given.out).name} and .md.")


def _opened(folder: Path) -> tuple[TokenStream, Vocabulary]:
    try:
        corpus = sb.open_corpus(folder)
        return corpus.train, load_vocabulary(corpus)
    except UserError as error:
        sys.exit(str(error))


def _build_notes(found: dict[str, list[dict[str, Any]]], threads: int) -> tuple[str, ...]:
    one, bare = found["build"][0], found["encode"][0]
    return (
        f"Text: {one['bytes'] / 1e6:,.1f} MB as stored, {one['documents']:,} documents, "
        f"{one['tokens']:,} tokens ({bare['tokens']:,} by encode); {threads} thread(s).",
        "encode's seconds are those of encode_batch alone; build and given also read, split into "
        "sentences, look for duplicates, count and write.",
    )


if __name__ == "__main__":
    main()
