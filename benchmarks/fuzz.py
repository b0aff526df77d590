"""Damage every kind of file that StackBERT reads, thousands of times, and see what it makes of it.

    python benchmarks/fuzz.py --cases 2000 --seed 0
    python benchmarks/fuzz.py --reader recipe --reader text --cases 500 --work fuzz

A case damages one file: bits flipped, pieces cut, doubled or inserted, and where a file has a
structure, values exchanged, renamed or dropped. The reader must take it or refuse it with a
StackBertError. Anything else is a failure: another exception (a traceback), a hang, the end of the
process, a program started, a connection or a pickle (code run), another file changed. Seed,
readers and number decide a case. Prints a table; exit code 1 if a case failed.
"""

import argparse
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
from collections.abc import Iterator
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
from stackbert.finetuning.data import official_tasks, own_data

SECONDS, MEMORY = 120, 4 << 30  # of a case; on an idle machine none takes five seconds
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
FORBIDDEN += ("socket.connect", "pickle.find_class")
ran: list[str] = []  # of these, what the present case did
PIECES = [
    *(b"\0", b"\n", b"\r\n", b"\t", b'"', b"\\", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b"\x80"),
    *(b"9" * 5000, b"1e400", b"NaN", b"-1", b"null", b"[" * 100_000, b'{"a":' * 5000, b"&a [*a]"),
    *("漢字🙂\u202e\u0301".encode(), b"\\ud800", b"../../etc/passwd", b"%s{0}", bytes(64)),
    *(b"!!python/object/apply:os.system ['id']", b"cos\nsystem\n(S'id'\ntR.", b"</script><b>"),
]
READERS = ("recipe", "set", "text", "tokenizer", "corpus", "run", "resume", "model")
READERS += ("comparison", "attention", "finetuning", "tables", "sst-2", "squad")
Json = Any
VALUES: list[Json] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../../x", "/etc/passwd", "a\0b", "x" * 10_000, "[MASK]", "\ud800", "漢字🙂"),
    *([], [[]], [None] * 3, {}, {"x": {}}, {"": 1}, [1e400, "a"], "!!python/name:os.system"),
]
TINY = [
    "model={type: bert, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}",
    "stages=[{depth: 1, steps: 2}, {depth: 2, steps: 2}]",
    *("batch={sequences: 4, sequence_length: 16}", "schedule.warmup_steps=1", "log_every=1"),
    *("evaluation.sequences=4", "checkpoint.every_steps=1", "checkpoint.keep=9"),
    *("precision=fp32", "compile=false", "optimizer.name=adamw"),
]
COMPRESSION: dict[str, Any] = {".gz": gzip, ".xz": lzma, ".zst": zstandard}


def make_material(folder: Path) -> None:
    """One of everything, as small as it can be, in folders named as the readers are."""
    for name in ("text", "tables", "recipe", "set", "sst-2", "squad"):
        (folder / name).mkdir(parents=True)
    write_factbook(folder / "all.txt")
    articles = [part[:900] for part in (folder / "all.txt").read_text("utf-8").split("\n\n")[:40]]
    frame = pd.DataFrame({"text": [article[:60] for article in articles], "label": [0, 1] * 20})
    plain, text = "\n\n".join(articles).encode(), folder / "text"
    (text / "a.txt").write_bytes(plain)
    frame.to_json(text / "b.jsonl", orient="records", lines=True)
    frame.to_parquet(text / "c.parquet")
    for suffix in COMPRESSION:
        (text / f"d.txt{suffix}").write_bytes(COMPRESSION[suffix].compress(plain))
    corpus, run, recipe = folder / "corpus", folder / "run", sb.load_recipe("demo", TINY)
    sb.build_corpus(corpus, text=text / "a.txt", vocab_size=300, validation=0.2)
    sb.pretrain(recipe, corpus=corpus, out=run)
    shutil.copytree(corpus / "tokenizer", folder / "tokenizer")
    shutil.copytree(run / "model", folder / "model")
    shutil.copytree(run, folder / "resume")
    for done in ("model", "checkpoints/step-00000004"):
        shutil.rmtree(folder / "resume" / done)
    shutil.copyfile(run / "recipe.yaml", folder / "recipe" / "recipe.yaml")
    (folder / "set" / "override.txt").write_text("optimizer.betas=[0.9, 0.98]")
    sb.compare(recipe, corpus=corpus, out=folder / "comparison", seeds=1, budget="4steps")
    sb.measure_attention(run, text=text / "a.txt", out=folder / "attention", sentences=8)
    tables, glue, squad = folder / "tables", folder / "sst-2", folder / "squad"
    frame.to_csv(tables / "own.csv", index=False)
    frame.to_csv(tables / "own.tsv", index=False, sep="\t")
    for name in ("b.jsonl", "c.parquet"):
        shutil.copyfile(text / name, tables / name)
    settings = ["max_steps=2", "batch=4", "max_length=16", "precision=fp32"]
    data, out = tables / "own.csv", folder / "finetuning"
    sb.finetune(run / "model", task="own", data=data, out=out, seeds=1, settings=settings)
    question = {"id": "q", "question": "What?", "answers": [{"text": "a b", "answer_start": 2}]}
    articles = [{"title": "t", "paragraphs": [{"context": "x a b c", "qas": [question]}]}]
    for split in ("train", "dev"):
        frame.to_csv(glue / f"{split}.tsv", sep="\t", index=False, header=["sentence", "label"])
        (squad / f"{split}-v1.1.json").write_text(json.dumps({"data": articles}))


def read(name: str, folder: Path, file: Path, out: Path) -> None:
    """Read a folder in which a file is damaged; `out` is for what is made, and has the corpus."""
    match name:
        case "recipe":
            sb.load_recipe(file)
        case "set":
            sb.load_recipe("demo", [file.read_bytes().decode("utf-8", "surrogateescape")])
        case "text":
            list(open_files(file)[0][0].documents())
        case "tokenizer":
            load_tokenizer(folder)
        case "corpus":
            (corpus := sb.open_corpus(folder)).verify()
            corpus.vocabulary  # noqa: B018 (opened when it is asked for)
        case "resume":
            state = file.with_name("state.json")
            if state.is_file() and file != state:  # with the checksum of the damaged file
                fields = json.loads(state.read_bytes())
                fields["sha256"][file.name] = sha256(file)
                state.write_text(json.dumps(fields))
            sb.pretrain(sb.load_recipe("demo", TINY), corpus=out / "corpus", out=folder)
        case "model":
            sb.grow_folder(folder, out / "grown", 4)
            sb.measure_attention(folder, text=["The river runs to the sea."] * 2)
        case "tables":
            own_data({"train": file}, text="text", label="label")
        case "sst-2" | "squad":
            official_tasks(name, folder)
        case _:
            sb.report(folder, out / "report.html")


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to three times: flip a bit, or cut, double, exchange or insert a piece."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + draw.choice((1, 4, 200, len(data))))
        if a < b and draw.random() < 0.2:
            data = data[:a] + bytes([data[a] ^ 1 << draw.randrange(8)]) + data[a + 1 :]
        else:
            piece = draw.choice((b"", draw.choice(PIECES), draw.randbytes(b - a), 2 * data[a:b]))
            data = data[:a] + piece + data[draw.choice((a, b, b, len(data))) :]
    return data


def places_in(value: Json) -> Iterator[tuple[Any, Any]]:
    """Each container of a JSON value with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places_in(value[key])


def damage_value(value: Json, draw: random.Random) -> Json:
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
                container[key] = copy.deepcopy(other[place])
            case _:
                container[key] = copy.deepcopy(draw.choice(VALUES))
    return value


def damage(name: str, data: bytes, draw: random.Random) -> bytes:
    """A damaged copy of a file's content; in half of the cases it keeps its format."""
    suffix = Path(name).suffix
    if draw.random() < 0.5:
        return damage_bytes(data, draw)
    if suffix in COMPRESSION:
        library = COMPRESSION[suffix]
        return library.compress(damage(Path(name).stem, library.decompress(data), draw))
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
    """When each file was changed, and its size."""
    files = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {path: (s.st_mtime_ns, s.st_size) for path, s in files if path.name != ".lock"}


def run_case(name: str, material: Path, draw: random.Random | None) -> tuple[str, str]:
    """(refused, accepted or failed, what was said); without `draw` nothing is damaged."""
    with tempfile.TemporaryDirectory(prefix="fuzz-case-") as out:
        folder = shutil.copytree(material / name, Path(out) / name)
        if name == "resume":
            shutil.copytree(material / "corpus", Path(out) / "corpus")
        files = sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)
        top = [path for path in files if path.parent == folder]  # what is read, mostly
        file = files[0]
        if draw:
            file = draw.choice(top if top and draw.random() < 0.7 else files)
            file.write_bytes(damage(file.name, file.read_bytes(), draw))
        watched = material if name == "resume" else folder  # a run writes its folder
        (found, what), seen = ("accepted", ""), stamps(watched)
        ran.clear()
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            with writing("running the command"):  # as the command line does
                read(name, folder, file, Path(out))
        except StackBertError as error:
            found, what = "refused" if draw else "failed", str(error)
        except BaseException:
            found, what = "failed", traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        if ran or stamps(watched) != seen:
            found, what = "failed", f"{ran or 'another file was changed'}\n{what}"
        return found, f"{file.relative_to(folder)}: {what}".encode("utf-8", "replace").decode()


def work(readers: list[str], given: argparse.Namespace) -> None:
    """Run the cases from `first` on, in turn for each reader; a line in the journal after each."""
    sys.addaudithook(lambda event, _: ran.append(event) if event in FORBIDDEN else None)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    with given.journal.open("a") as file:
        for number in range(given.first, given.cases):
            name = readers[number % len(readers)]
            draw = (
                random.Random(f"{given.seed} {name} {number}") if number >= len(readers) else None
            )
            print(json.dumps([name, *run_case(name, given.work, draw)]), file=file, flush=True)


def fuzz(readers: list[str], given: argparse.Namespace, material: Path, journal: Path) -> None:
    """All cases, in a process that is started again where a case ends it."""
    command = [sys.executable, __file__, *(f"--reader={name}" for name in readers)]
    command += [f"--cases={given.cases}", f"--seed={given.seed}", f"--work={material}"]
    journal.write_text("")
    while (first := len(journal.read_text().splitlines())) < given.cases:
        more = [f"--first={first}", f"--journal={journal}"]
        ended = subprocess.run([*command, *more], stderr=subprocess.PIPE, text=True)
        number = len(journal.read_text().splitlines())
        if number < given.cases:
            row = [readers[number % len(readers)], "failed", ended.stderr[-3000:]]
            journal.write_text(f"{journal.read_text()}{json.dumps(row)}\n")


def main() -> None:
    """Run it all; see the module's text."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--cases", type=int, default=2000, help="in all; the readers take turns")
    add("--seed", type=int, default=0)
    add("--reader", action="append", choices=READERS, help="by default all")
    add("--work", type=Path, help="keep the undamaged files here, or use those that are here")
    add("--journal", type=Path, help=argparse.SUPPRESS)
    add("--first", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    readers = given.reader or list(READERS)
    if given.journal:
        return work(readers, given)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        material, journal = given.work or Path(name) / "material", Path(name) / "journal.jsonl"
        if not material.exists():
            make_material(material)
        fuzz(readers, given, material, journal)
        rows = [json.loads(line) for line in journal.read_text().splitlines()]
    found = pd.DataFrame(rows, columns=["reader", "outcome", "what"])
    for number, reader, _, what in (failed := found[found.outcome == "failed"]).itertuples():
        print(f"--- {reader}, case {number}: {what}\n")
    print(pd.crosstab(found.reader, found.outcome, margins=True, margins_name="cases").to_string())
    sys.exit(len(failed) > 0)


if __name__ == "__main__":
    main()
