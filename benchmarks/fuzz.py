"""Damage every kind of file that StackBERT reads, thousands of times, and see what it makes of it.

    python benchmarks/fuzz.py --cases 2000 --seed 0
    python benchmarks/fuzz.py --reader recipe --reader text --cases 500 --work fuzz

A case damages one file: bits flipped, pieces cut out, doubled or inserted, and where a file has a
structure, values exchanged for others, renamed or dropped. The reader must take it or refuse it
with a StackBertError. Anything else is a failure: another exception (a traceback), more than
SECONDS (a hang), the end of the process, a program started, a connection or a pickle (code run),
or another file changed. Seed, reader and number decide a case. Prints a table; exit code 1 if a
case failed, whose files are then kept in `fuzz-failures/`.
"""

import argparse
import bz2
import copy
import faulthandler
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
import zstandard

import stackbert as sb
from stackbert.corpus.text import open_files
from stackbert.corpus.tokenizer import load_tokenizer
from stackbert.demo import write_factbook
from stackbert.errors import StackBertError
from stackbert.files import sha256, writing
from stackbert.finetuning.data import official_tasks, own_data, read_tables

SECONDS = 30
"""A case that takes longer counts as a hang; on an idle machine none takes five."""
MEMORY = 4 << 30
"""Bytes a reader may allocate beyond what its libraries have."""
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
FORBIDDEN += ("socket.connect", "pickle.find_class")
PIECES = [
    *(b"\0", b"\n", b"\r\n", b"\t", b'"', b"\\", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b"\x80"),
    *(b"9" * 5000, b"1e400", b"NaN", b"-1", b"null", b"[" * 100_000, b'{"a":' * 5000, b"&a [*a]"),
    *("漢字🙂\u202e\u0301".encode(), b"\\ud800", b"../../etc/passwd", b"%s{0}", bytes(64)),
    *(b"!!python/object/apply:os.system ['id']", b"cos\nsystem\n(S'id'\ntR.", b"</script><b>"),
]
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../../x", "/etc/passwd", "a\0b", "x" * 10_000, "[MASK]", "\ud800", "漢字🙂"),
    *([], [[]], [None] * 3, {}, {"x": {}}, {"": 1}, [1e400, "a"], "!!python/name:os.system"),
]
TINY = [
    "model={type: bert, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}",
    "stages=[{depth: 1, steps: 2}, {depth: 2, steps: 2}]",
    "batch={sequences: 4, sequence_length: 16, micro_batch: 4}",
    "schedule={warmup_steps: 1}",
    "evaluation={sequences: 4, every_steps: 2}",
    "checkpoint={every_steps: 1, every_minutes: null, keep: 9}",
    *("precision=fp32", "compile=false", "log_every=1", "optimizer.name=adamw"),
]
COMPRESS: dict[str, tuple[Callable[..., bytes], Callable[..., bytes]]] = {
    ".gz": (gzip.compress, gzip.decompress),
    ".xz": (lzma.compress, lzma.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".zst": (zstandard.compress, zstandard.decompress),
}


def make_material(folder: Path) -> None:
    """One of everything, as small as it can be, in folders named for what they hold."""
    text, tables = folder / "text", folder / "tables"
    text.mkdir(parents=True)
    tables.mkdir()
    write_factbook(folder / "all.txt")
    articles = [part[:900] for part in (folder / "all.txt").read_text("utf-8").split("\n\n")[:40]]
    (folder / "all.txt").unlink()
    plain = "\n\n".join(articles).encode()
    rows = "".join(json.dumps({"text": each, "id": 1}) + "\n" for each in articles).encode()
    (text / "a.txt").write_bytes(plain)
    (text / "b.jsonl").write_bytes(rows)
    pd.DataFrame({"text": articles}).to_parquet(text / "c.parquet")
    for suffix, (compress, _) in COMPRESS.items():
        (text / f"d.txt{suffix}").write_bytes(compress(plain))
        (text / f"e.jsonl{suffix}").write_bytes(compress(rows))
    corpus, run = folder / "corpus", folder / "run"
    sb.build_corpus(corpus, text=text / "a.txt", vocab_size=300, validation=0.2)
    shutil.copytree(corpus / "tokenizer", folder / "tokenizer")
    recipe = sb.load_recipe("demo", TINY)
    sb.pretrain(recipe, corpus=corpus, out=run)
    (folder / "recipe").mkdir()
    shutil.copyfile(run / "recipe.yaml", folder / "recipe" / "recipe.yaml")
    (folder / "set").mkdir()
    (folder / "set" / "override.txt").write_text("optimizer.betas=[0.9, 0.98]")
    (folder / "resume").mkdir()
    shutil.copytree(run, folder / "resume" / "run")
    for done in ("model", "checkpoints/step-00000004"):
        shutil.rmtree(folder / "resume" / "run" / done)
    shutil.copytree(run / "model", folder / "model")
    sb.compare(recipe, corpus=corpus, out=folder / "comparison", seeds=1, budget="4steps")
    sb.measure_attention(run, text=text / "a.txt", out=folder / "attention", sentences=8)
    frame = pd.DataFrame({"text": [a[:60] for a in articles], "label": [0, 1] * 20})
    frame.to_csv(tables / "own.csv", index=False)
    frame.to_csv(tables / "own.tsv", index=False, sep="\t")
    frame.to_json(tables / "own.jsonl", orient="records", lines=True)
    frame.to_parquet(tables / "own.parquet")
    settings = ["max_steps=2", "batch=4", "max_length=16", "precision=fp32"]
    study = {"task": "own", "data": tables / "own.csv", "seeds": 1, "settings": settings}
    sb.finetune(run / "model", out=folder / "finetuning", **study)
    glue, squad = folder / "glue" / "SST-2", folder / "squad"
    glue.mkdir(parents=True)
    squad.mkdir()
    question = {"id": "q", "question": "What?", "answers": [{"text": "a b", "answer_start": 2}]}
    paragraph = {"context": "x a b c", "qas": [question]}
    for split in ("train", "dev"):
        frame.to_csv(glue / f"{split}.tsv", sep="\t", index=False, header=["sentence", "label"])
        data = {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}
        (squad / f"{split}-v1.1.json").write_text(json.dumps(data))


def resume(folder: Path, corpus: Path, damaged: Path) -> None:
    """Resume the run; its checksums are those of the damaged files, so that they are opened."""
    state = damaged.parent / "state.json"
    if damaged.parent.name.startswith("step-") and damaged != state:
        fields = json.loads(state.read_bytes())
        fields["sha256"][damaged.name] = sha256(damaged)
        state.write_text(json.dumps(fields))
    sb.pretrain(sb.load_recipe("demo", TINY), corpus=corpus, out=folder / "run")


def read_tables_of(path: Path) -> None:
    raw, name, notes = read_tables({"train": path, "dev": None, "test": None}, None)
    own_data(raw, name, notes, text="text", label="label")


def open_whole_corpus(folder: Path) -> None:
    corpus = sb.open_corpus(folder)
    corpus.verify()
    corpus.vocabulary  # noqa: B018 (opened when it is asked for)


def grow_and_measure(folder: Path, out: Path) -> None:
    sb.grow_folder(folder, out / "grown", 4)
    sb.measure_attention(folder, text=["The river runs to the sea."] * 2)


Reader = Callable[[Path, Path, Path], Any]
"""Reads a folder of the material, in which a file is damaged: (folder, file, empty folder)."""
READERS: dict[str, tuple[str, Reader]] = {  # the files it reads, and how
    "recipe": ("*", lambda folder, file, out: sb.load_recipe(file)),
    "set": ("*", lambda folder, file, out: sb.load_recipe("demo", [file.read_bytes().decode("utf-8", "surrogateescape")])),
    "text": ("*", lambda folder, file, out: [list(t.documents()) for t in open_files(file)]),
    "tokenizer": ("*", lambda folder, file, out: load_tokenizer(folder)),
    "corpus": ("**/*", lambda folder, file, out: open_whole_corpus(folder)),
    "run": ("*", lambda folder, file, out: sb.report(folder, out / "report.html")),
    "resume": (
        "run/**/*",
        lambda folder, file, out: resume(folder, folder.parent / "corpus", file),
    ),
    "model": ("*", lambda folder, file, out: grow_and_measure(folder, out)),
    "comparison": ("*.json", lambda folder, file, out: sb.report(folder, out / "report.html")),
    "attention": ("*", lambda folder, file, out: sb.report(folder, out / "report.html")),
    "finetuning": ("*.json", lambda folder, file, out: sb.report(folder, out / "report.html")),
    "tables": ("*", lambda folder, file, out: read_tables_of(file)),
    "glue": ("**/*", lambda folder, file, out: official_tasks("sst-2", folder, None)),
    "squad": ("*", lambda folder, file, out: official_tasks("squad", folder, None)),
}


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to three of the things that can happen to any file."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + draw.choice((1, 4, 200, len(data))))
        match draw.randrange(7):
            case 0 if data:
                place = draw.randrange(len(data))
                data = (
                    data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
                )
            case 1:
                data = data[:a]
            case 2:
                data = data[:a] + data[b:]
            case 3:
                data = data[:b] + data[a:]
            case 4:
                data = data[:a] + draw.randbytes(b - a) + data[b:]
            case 5:
                data = data[:a] + draw.choice(PIECES) + data[b:]
            case _:
                data = data[:a] + draw.choice(PIECES) + data[a:]
    return data


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each container of a JSON value with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places_in(value[key])


def damage_value(value: Any, draw: random.Random) -> Any:
    """Exchange, rename or drop one to three parts of a JSON value."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(places_in(value)) if isinstance(value, dict | list) else []
        if not places or draw.random() < 0.02:
            return copy.deepcopy(draw.choice(VALUES))
        container, key = draw.choice(places)
        match draw.randrange(5):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[draw.choice(("x", f"{key}x", ""))] = container.pop(key)
            case 2:
                other, place = draw.choice(places)
                if place in other if isinstance(other, dict) else place < len(other):
                    container[key] = copy.deepcopy(other[place])
            case _:
                container[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def damage(name: str, data: bytes, draw: random.Random) -> bytes:
    """A damaged copy of a file's content; in half of the cases it keeps its format."""
    suffix = Path(name).suffix
    if draw.random() < 0.5:
        return damage_bytes(data, draw)
    if suffix in COMPRESS:
        compress, decompress = COMPRESS[suffix]
        return compress(damage(Path(name).stem, decompress(data), draw))
    if suffix == ".json":
        return json.dumps(damage_value(json.loads(data), draw)).encode()
    if suffix == ".jsonl":
        lines = data.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(damage_value(json.loads(lines[place]), draw)).encode()
        return b"\n".join(lines) + b"\n"
    if suffix == ".yaml":
        return yaml.safe_dump(damage_value(yaml.safe_load(data), draw)).encode()
    if suffix == ".safetensors":
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.dumps(damage_value(json.loads(data[8:end]), draw)).encode()
        return len(header).to_bytes(8, "little") + header + data[end:]
    return damage_bytes(data, draw)


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {path: (s.st_mtime_ns, s.st_size) for path, s in files if path.name != ".lock"}


def run_case(name: str, number: int, seed: int, material: Path, kept: Path) -> tuple[str, str]:
    """(refused, accepted or failed, what was said)."""
    draw = random.Random(f"{seed} {name} {number}")
    pattern, read = READERS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-case-") as out:
        folder = material / name
        if name == "resume":  # which writes into its folder
            folder = shutil.copytree(folder, Path(out) / name)
            shutil.copytree(material / "corpus", Path(out) / "corpus")
        (Path(out) / "out").mkdir()
        files = sorted(p for p in folder.glob(pattern) if p.is_file() and p.name != ".lock")
        file = draw.choice([path for path in files if path.stat().st_size])
        before = file.read_bytes()
        file.write_bytes(damage(file.name, before, draw))
        found, what, seen = "accepted", "", stamps(material)
        kept.write_bytes(file.read_bytes())
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        ran.clear()
        try:
            with writing("running the command"):  # as the command line does
                read(folder, file, Path(out) / "out")
        except StackBertError as error:
            found, what = "refused", str(error)
        except BaseException:
            found, what = "failed", traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        if ran or stamps(material) != seen:
            found, what = "failed", f"{ran or 'another file was changed'}\n{what}"
        file.write_bytes(before)
        return found, f"{file.relative_to(folder)}: {what}"


ran: list[str] = []
"""Forbidden things that the present case did."""


def work(name: str, first: int, cases: int, seed: int, material: Path, journal: Path) -> None:
    """Run the cases first … cases - 1; a line in the journal before and after each."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.addaudithook(lambda event, _: ran.append(event) if event in FORBIDDEN else None)
    kept = journal.with_suffix(".case")
    with journal.open("w") as file:
        for number in range(first, cases):
            print(json.dumps([number]), file=file, flush=True)
            row = [number, *run_case(name, number, seed, material, kept)]
            print(json.dumps(row), file=file, flush=True)
            if row[1] == "failed":
                shutil.copyfile(kept, journal.parent / f"{name}-{number}")


def fuzz(name: str, given: argparse.Namespace, material: Path, folder: Path) -> pd.DataFrame:
    """All cases of a reader, in a process that is started again where a case ends it."""
    journal, log, found, first = folder / f"{name}.jsonl", folder / f"{name}.log", [], 0
    command = [sys.executable, __file__, "--cases", str(given.cases), "--seed", str(given.seed)]
    command += ["--reader", name, "--work", str(material), "--journal", str(journal)]
    while first < given.cases:
        with log.open("wb") as file:
            subprocess.run([*command, "--first", str(first)], stdout=file, stderr=file)
        rows = [json.loads(line) for line in journal.read_text().splitlines()]
        found += [row for row in rows if len(row) > 1]
        if len(rows[-1]) == 1:
            found.append([*rows[-1], "failed", log.read_text("utf-8", "replace")[-3000:]])
            shutil.copyfile(journal.with_suffix(".case"), folder / f"{name}-{rows[-1][0]}")
        first = found[-1][0] + 1
    return pd.DataFrame(found, columns=["case", "outcome", "what"]).assign(reader=name)


def main() -> None:
    """Run it all; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--cases", type=int, default=2000, help="in all; the readers share them")
    add("--seed", type=int, default=0)
    add("--reader", action="append", choices=list(READERS), help="by default all")
    add("--work", type=Path, help="keep the undamaged files here, or use those that are here")
    add("--journal", type=Path, help=argparse.SUPPRESS)
    add("--first", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    if given.journal:
        work(given.reader[0], given.first, given.cases, given.seed, given.work, given.journal)
        return
    readers = given.reader or list(READERS)
    given.cases = -(-given.cases // len(readers))
    failures = Path("fuzz-failures")
    failures.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        material = given.work or Path(name) / "material"
        if not material.exists():
            make_material(material)
        found = pd.concat([fuzz(reader, given, material, failures) for reader in readers])
    for row in found[found.outcome == "failed"].itertuples():
        print(f"--- {row.reader}, case {row.case}: {row.what}\n")
    counts = pd.crosstab(found.reader, found.outcome, margins=True, margins_name="all")
    columns = ["all", "refused", "accepted", "failed"]
    print(counts.reindex(columns=columns, fill_value=0).to_string())
    sys.exit(bool((found.outcome == "failed").any()))


if __name__ == "__main__":
    main()
