"""Readers of others' data sets to fine-tune on."""

import csv
import io
import json
from pathlib import Path
from typing import Any, ClassVar

import fuzz_structure as structure
from fuzz_cases import Reader, WrongResult

TEXTS = (
    "The mill burnt in 1901.",
    'He said "no" – twice.',
    "Ça va? 東京",
    "a 'n' b\u2028c",
    "שלום",
)


def rows_of(data: bytes) -> list[list[str]] | None:
    """The cells of a file parted by tabs; None if it is no text."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError:
        return None
    if b"\0" in data:
        return None
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    while rows and rows[-1] == [""]:
        rows.pop()
    return rows


class Glue(Reader):
    """GLUE's official files."""

    name = "glue"
    reads = "GLUE: CoLA, MRPC, STS-B, MNLI, QQP, .tsv"
    _TABLES: ClassVar[dict[str, tuple[str, list[str], list[str]]]] = {
        "cola": ("CoLA/train.tsv", [], ["src", "{01}", "*", "{text}"]),
        "mrpc": (
            "MRPC/dev.tsv",
            ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            ["{01}", "{n}", "{n}", "{text}", "{text}"],
        ),
        "sts-b": (
            "STS-B/dev.tsv",
            ["index", "genre", "sentence1", "sentence2", "score"],
            ["{n}", "news", "{text}", "{text}", "3.{n}"],
        ),
        "mnli": (
            "MNLI/dev_matched.tsv",
            ["index", "sentence1", "sentence2", "gold_label"],
            ["{n}", "{text}", "{text}", "{nli}"],
        ),
        "qqp": (
            "QQP/train.tsv",
            ["id", "question1", "question2", "is_duplicate"],
            ["{n}", "{text}", "{text}", "{01}"],
        ),
    }
    damages: ClassVar = {f"glue/{file}": structure.of_table for file, _, _ in _TABLES.values()}
    named = ("glue",)

    def prepare(self, folder: Path) -> None:
        """Some rows of each."""
        classes = ("entailment", "neutral", "contradiction")
        for file, header, cells in self._TABLES.values():
            rows = [header] if header else []
            for n in range(8):
                fill = {"n": str(n), "01": str(n % 2), "nli": classes[n % 3]}
                fill["text"] = TEXTS[n % len(TEXTS)]
                rows.append([_filled(cell, fill) for cell in cells])
            path = folder / "glue" / file
            path.parent.mkdir(parents=True)
            path.write_bytes("".join("\t".join(row) + "\n" for row in rows).encode())

    def read(self, folder: Path, damaged: str) -> None:
        """The texts and labels of every row, as they stand there."""
        from stackbert.finetuning.glue_files import read_glue
        from stackbert.finetuning.tasks import GLUE

        file = damaged.removeprefix("glue/")
        name = next(one for one, table in self._TABLES.items() if table[0] == file)
        (split,) = read_glue(GLUE[name], folder / "glue").values()
        rows = rows_of((folder / damaged).read_bytes())
        if rows is None:
            raise WrongResult("it reads what is no text")
        header = rows.pop(0) if self._TABLES[name][1] else []
        if not header:
            header = ["source", "label", "mark", "sentence"]
        first = {"mrpc": "#1 String", "qqp": "question1", "cola": "sentence"}.get(name, "sentence1")
        at = header.index(first)
        found = [one.first for one in split.examples]
        if found != [row[at] for row in rows]:
            raise WrongResult(f"{len(found)} texts of {len(rows)} rows, or others")
        labels = {one.label for one in split.examples}
        if any(not isinstance(label, int | float) for label in labels):
            raise WrongResult(f"labels {labels}")


def _filled(cell: str, fill: dict[str, str]) -> str:
    for name, value in fill.items():
        cell = cell.replace("{" + name + "}", value)
    return cell


class Squad(Reader):
    """SQuAD's official files."""

    name = "squad"
    reads = "SQuAD: v1.1 and v2.0, .json"
    damages: ClassVar = {"dev-v1.1.json": structure.of_json, "dev-v2.0.json": structure.of_json}

    def prepare(self, folder: Path) -> None:
        """Two paragraphs each."""
        context = "  The old mill in Łódź 🙂 was built in 1829 by Ann Lee."
        for version in ("1.1", "2.0"):
            data: list[dict[str, Any]] = []
            for number in range(2):
                answers = [
                    {"text": text, "answer_start": context.index(text)}
                    for text in ("1829", "in 1829")
                ]
                asked: list[dict[str, Any]] = [
                    {"id": f"q{number}", "question": "When?", "answers": answers}
                ]
                if version == "2.0":
                    asked[0]["is_impossible"] = False
                    asked.append(
                        {"id": f"n{number}", "question": "?", "answers": [], "is_impossible": True}
                    )
                paragraph = {"context": context, "qas": asked}
                data.append({"title": f"Mill {number}", "paragraphs": [paragraph]})
            text = json.dumps({"version": version, "data": data}, ensure_ascii=False)
            (folder / f"dev-v{version}.json").write_text(text, encoding="utf-8")

    def read(self, folder: Path, damaged: str) -> None:
        """Every question, and every answer where it says."""
        from stackbert.finetuning.squad_files import read_squad

        split = read_squad(folder / damaged)
        content = (folder / damaged).read_bytes().removeprefix(b"\xef\xbb\xbf")
        raw = json.loads(content.decode("utf-8"))
        asked = [
            question["id"]
            for article in raw["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
        if len(asked) != len(split.examples):
            raise WrongResult(f"{len(split.examples)} of {len(asked)} questions")
        for one in split.examples:
            for answer, start in zip(one.answers, one.starts, strict=True):
                if one.context[start : start + len(answer)] != answer:
                    raise WrongResult(f"an answer that is not at {start}")
            if one.impossible == bool(one.answers):
                raise WrongResult("a question both with and without an answer")
            "".join((one.key, one.context, one.question, *one.answers)).encode("utf-8")


class Table(Reader):
    """A user's own table."""

    name = "table"
    reads = "a user's .csv, .tsv, .jsonl"
    damages: ClassVar = {
        "own.csv": structure.of_table,
        "own.tsv": structure.of_table,
        "own.jsonl": structure.of_json_lines,
    }

    def prepare(self, folder: Path) -> None:
        """The same rows three times."""
        rows = [(f"k{n}", TEXTS[n % 5] + f" {n}", ("good", "bad", "odd")[n % 3]) for n in range(24)]
        with (folder / "own.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("key", "text", "label"), *rows])
        tabs = "".join("\t".join(row) + "\n" for row in [("key", "text", "label"), *rows])
        (folder / "own.tsv").write_text(tabs, encoding="utf-8")
        names = ("key", "text", "label")
        lines = (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
        (folder / "own.jsonl").write_text("".join(lines), encoding="utf-8")

    def read(self, folder: Path, damaged: str) -> None:
        """Each row once, on one side; every label a class."""
        from stackbert.finetuning.table_files import own_task

        path = folder / damaged
        task, splits = own_task(path, first="text", label="label", key="key")
        found = {one.key: one for split in splits.values() for one in split.examples}
        wanted = _rows_by_key(path)
        if wanted is None:
            raise WrongResult("it reads what is no table")
        if {key: one.first for key, one in found.items()} != wanted:
            raise WrongResult(f"{len(found)} rows for {len(wanted)}, or others")
        for one in found.values():
            if task.kind == "classification" and not 0 <= int(one.label or 0) < len(task.labels):
                raise WrongResult(f"a label {one.label}")
            json.dumps(one.first, ensure_ascii=False).encode("utf-8")


def _rows_by_key(path: Path) -> dict[str, str] | None:
    data = path.read_bytes()
    if path.suffix == ".tsv":
        rows = rows_of(data)
    elif path.suffix == ".csv":
        text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "strict")
        # Only a line feed ends a line; a carriage return within quotation marks is text.
        lines = (line + "\n" for line in text.removesuffix("\n").split("\n"))
        limit = csv.field_size_limit(1 << 30)
        try:
            rows = [row for row in csv.reader(lines, strict=True) if row]
        except csv.Error:
            return None
        finally:
            csv.field_size_limit(limit)
    else:
        rows = [["key", "text"]]
        for line in io.BytesIO(data.removeprefix(b"\xef\xbb\xbf")):
            if line.strip():
                value = json.loads(line)
                rows.append([_cell(value["key"]), _cell(value["text"])])
    if rows is None:
        return None
    at = [rows[0].index(name) for name in ("key", "text")]
    return {row[at[0]]: row[at[1]] for row in rows[1:]}


def _cell(value: structure.Value) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
