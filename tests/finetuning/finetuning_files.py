"""Made data in the official layouts: GLUE's files, Microsoft's of MRPC, SQuAD's JSON."""

import json
from pathlib import Path

FOLDERS = {
    "cola": "CoLA",
    "sst-2": "SST-2",
    "mrpc": "MRPC",
    "sts-b": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
    "ax": "diagnostic",
}
FILES = {
    "train": "train.tsv",
    "dev": "dev.tsv",
    "test": "test.tsv",
}
MNLI_FILES = {
    "train": "train.tsv",
    "dev": "dev_matched.tsv",
    "dev_mismatched": "dev_mismatched.tsv",
    "test": "test_matched.tsv",
    "test_mismatched": "test_mismatched.tsv",
}
CLASSES = {
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "rte": ("entailment", "not_entailment"),
}
TEXTS = {
    "cola": ("sentence",),
    "sst-2": ("sentence",),
    "mrpc": ("#1 String", "#2 String"),
    "sts-b": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
    "ax": ("sentence1", "sentence2"),
}
LABELS = {"mrpc": "Quality", "sts-b": "score", "qqp": "is_duplicate", "mnli": "gold_label"}
_STS = ["genre", "filename", "year", "old_index", "source1", "source2"]
_MNLI = [
    "promptID",
    "pairID",
    "genre",
    "sentence1_binary_parse",
    "sentence2_binary_parse",
    "sentence1_parse",
    "sentence2_parse",
]
# What readers of lines and of quoted cells stumble over.
TRICKY = (' "', ' "" ', "\u2028", "\x85", " 'n ' roll ", "  ", " \\t", " é 漢 🙂 ")


def glue_file(folder: Path, task: str, split: str) -> Path:
    """Where a made split lies below the folder that `write_glue` filled."""
    if task == "ax":
        return folder / "diagnostic" / "diagnostic.tsv"
    return folder / FOLDERS[task] / (MNLI_FILES if task == "mnli" else FILES)[split]


def header(task: str, split: str) -> list[str]:
    """The columns of the official file; CoLA's train and dev files have no such line."""
    test = split.startswith("test")
    label = [] if test else [LABELS.get(task, "label")]
    key = ["index"] if test or task not in ("cola", "sst-2", "mrpc") else []
    match task:
        case "cola" if not test:
            return ["source", "label", "mark", "sentence"]
        case "mrpc":
            return [*label, *key, "#1 ID", "#2 ID", *TEXTS[task]]
        case "sts-b":
            return [*key, *_STS, *TEXTS[task], *label]
        case "qqp":
            return ["id", *([] if test else ["qid1", "qid2"]), *TEXTS[task], *label]
        case "mnli":
            votes = {"train": 1, "dev": 5, "dev_mismatched": 5}.get(split, 0)
            return [*key, *_MNLI, *TEXTS[task], *(f"label{n + 1}" for n in range(votes)), *label]
    return [*key, *TEXTS[task], *label]


def label_of(task: str, row: int) -> str:
    """The label of a made row as the file spells it."""
    if task == "sts-b":
        return f"{row % 11 / 2:.3f}"
    classes = CLASSES.get(task, ("0", "1"))
    return classes[row % len(classes)]


def text_of(task: str, row: int, place: int) -> str:
    """A made sentence; that of the label is in it, so that a model has something to learn."""
    word = ("good", "bad", "odd")[row % 3 if task == "mnli" else row % 2]
    return f"the {word} thing {row} of part {place}{TRICKY[row % len(TRICKY)]}."


def made_row(task: str, split: str, row: int) -> list[str]:
    """The cells of a made row."""
    cells = []
    for column in header(task, split):
        if column in TEXTS[task]:
            cells.append(text_of(task, row, TEXTS[task].index(column)))
        elif column in ("index", "id"):
            cells.append(str(row))
        elif column == LABELS.get(task, "label"):
            cells.append(label_of(task, row))
        elif column.startswith("label"):
            cells.append("neutral")  # one voter's, not the label
        else:
            cells.append(f"{column}{row}")
    return cells


def write_glue(folder: Path, rows: int = 12) -> Path:
    """Every task with every split of as many rows; dev files end without a line feed."""
    for task in FOLDERS:
        for split in ("test",) if task == "ax" else MNLI_FILES if task == "mnli" else FILES:
            lines = [made_row(task, split, row) for row in range(rows)]
            if not (task == "cola" and split != "test"):
                lines.insert(0, header(task, split))
            path = glue_file(folder, task, split)
            path.parent.mkdir(parents=True, exist_ok=True)
            end = "" if split == "dev" else "\n"
            path.write_bytes(("\n".join("\t".join(cells) for cells in lines) + end).encode())
    return folder


def write_microsoft_mrpc(folder: Path, rows: int = 12) -> Path:
    """MRPC as Microsoft has it, which is GLUE's training file with every fourth row set aside."""
    folder.mkdir(parents=True)
    columns = header("mrpc", "train")
    lines = [columns, *(made_row("mrpc", "train", row) for row in range(rows))]
    text = "\r\n".join("\t".join(cells) for cells in lines) + "\r\n"
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    pairs = [(f"#1 ID{row}", f"#2 ID{row}") for row in range(0, rows, 4)]
    (folder / "dev_ids.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs), "utf-8")
    return folder


CONTEXT = "  The old mill in Ely was built in 1829 by Ann Lee, a miller. The mill burnt in 1901."


def squad_value(version: str, articles: int = 2) -> dict:
    """SQuAD's JSON; every article asks three questions, of which in v2.0 the last has no answer."""
    data = []
    for number in range(articles):
        context = f"{CONTEXT} That is note {number}."
        questions = [
            _question(f"q{number}-when", "When was the mill built?", context, ("1829", "in 1829")),
            _question(f"q{number}-who", "Who built it?", context, ("Ann Lee", "Ann Lee, a miller")),
        ]
        if version != "1.1":
            for question in questions:
                question["is_impossible"] = False
            questions.append(
                {
                    "id": f"q{number}-none",
                    "question": "Who burnt the mill?",
                    "answers": [],
                    "is_impossible": True,
                    "plausible_answers": [{"text": "Ann Lee", "answer_start": 1}],
                }
            )
        paragraph = {"context": context, "qas": questions}
        data.append({"title": f"Mill {number}", "paragraphs": [paragraph]})
    return {"version": version, "data": data}


def _question(key: str, text: str, context: str, answers: tuple[str, ...]) -> dict:
    found = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"id": key, "question": text, "answers": found}


def write_squad(path: Path, value: dict) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    return path
