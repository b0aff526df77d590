"""Building a corpus and bare encoding, timed in processes of their own for pipeline.py."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import stackbert as sb
from stackbert.corpus.documents import Documents
from stackbert.corpus.manifest import TOKENIZER
from stackbert.corpus.readers import MAX_DOCUMENT_BYTES, open_files
from stackbert.errors import StackBertError

CONTENDERS = ("build", "given", "encode")
"""What they are, pipeline.py says."""
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1000, 4 << 20


@dataclass(frozen=True)
class Job:
    """What a contender has to do, in a process of its own."""

    contender: str
    text: tuple[str, ...]
    vocab_size: int | None
    validation: float
    folder: str
    """To work in."""
    tokenizer: str
    """The first build's; there is none yet when that runs."""


def peak_memory() -> int:
    """Bytes that this process held at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # rusage would count the parent's as well: it survives fork and exec
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def build(job: Job) -> dict[str, Any]:
    """Build a corpus; seconds in all and of each phase."""
    given = job.contender == "given"
    marks: dict[str, float] = {}

    def progress(phase: str, done: int, total: int) -> None:
        marks.setdefault(phase, time.perf_counter())

    begun, cpu = time.perf_counter(), time.process_time()
    corpus = sb.build_corpus(
        Path(job.folder) / "corpus",
        text=job.text,
        tokenizer=job.tokenizer if given else None,
        vocab_size=None if given else job.vocab_size,
        validation=job.validation,
        on_progress=progress,
    )
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    edges = itertools.pairwise([begun, *marks.values(), ended])
    spans = [later - earlier for earlier, later in edges]
    phases = dict(zip(["opening", *marks], spans, strict=True))
    sides = (corpus.manifest.train, corpus.manifest.validation)
    documents = sum(side.documents for side in sides)
    tokens = sum(side.tokens for side in sides) - documents  # without the separators
    return {"seconds": ended - begun, "cpu": cpu, "phases": phases} | {
        "tokens": tokens,
        "documents": documents,
        "bytes": sum(source.bytes for source in corpus.manifest.sources),
    }


def encode(job: Job) -> dict[str, Any]:
    """Encode the documents and count the ids; reading them is not timed."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job.tokenizer) / "tokenizer.json"))
    seconds = cpu = 0.0
    tokens = documents = 0
    for texts in _in_batches(_documents(job)):
        wall, processor = time.perf_counter(), time.process_time()
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        seconds += time.perf_counter() - wall
        cpu += time.process_time() - processor
        documents += len(texts)
        tokens += sum(map(len, encodings))
    return {"seconds": seconds, "cpu": cpu, "tokens": tokens, "documents": documents}


def _documents(job: Job) -> Iterator[str]:
    """The documents that the build keeps, in its order."""
    seen = set()
    inputs = open_files(job.text, "text", MAX_DOCUMENT_BYTES)
    for document in Documents(inputs, job.validation, lambda *_: None).read("reading"):
        if document.digest not in seen:
            seen.add(document.digest)
            yield document.text


def _in_batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def time_builds(job: Job, rounds: int, threads: int) -> dict[str, list[dict[str, Any]]]:
    """Every contender's rounds.

    Args:
        job: its folder, which must exist, is where all work; contender and tokenizer are set here.
        rounds: of all contenders in turn.
        threads: of the tokenizer and of numpy.

    Raises:
        SystemExit: one of them failed.
    """
    count = str(threads)
    counts = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS"), count)
    environment = os.environ | counts | {"TOKENIZERS_PARALLELISM": "true"}
    folder = Path(job.folder)
    found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in CONTENDERS}
    for turn in range(rounds):
        for contender in CONTENDERS:
            work = folder / f"{contender}-{turn}"
            work.mkdir()
            tokenizer = folder / "build-0" / "corpus" / TOKENIZER
            one = replace(job, contender=contender, folder=str(work), tokenizer=str(tokenizer))
            done = subprocess.run(
                [sys.executable, __file__, json.dumps(asdict(one))],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{contender} failed.")
            found[contender].append(json.loads(done.stdout))
            for shard in work.glob("corpus/t*/*.npy"):
                shard.unlink()
    return found


def main() -> None:
    """Do one job, given as JSON, and print what it took."""
    job = Job(**json.loads(sys.argv[1]))
    work: Callable[[Job], dict[str, Any]] = encode if job.contender == "encode" else build
    try:
        result = work(job)
    except StackBertError as error:
        sys.exit(str(error))
    print(json.dumps(result | {"peak_memory": peak_memory()}))


if __name__ == "__main__":
    main()
