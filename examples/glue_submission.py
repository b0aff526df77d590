"""Predictions of GLUE's test splits as the zip that its server takes, one a model.

    stackbert finetune run --task glue --data glue --predict --out finetuned
    python examples/glue_submission.py finetuned --fill

Of a task's seeds the one with the best dev score is sent in, as the server takes only one. That is
a choice on dev, so the dev score of that run flatters; its test score does not. The server takes
only whole submissions: --fill gives one answer throughout for tasks without predictions, whose
scores then mean nothing.
"""

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

from stackbert.errors import UserError
from stackbert.finetuning.models import Model
from stackbert.finetuning.result import FinetuneResult, predictions_path, read_finetune
from stackbert.finetuning.tasks import TASKS

FILES = {
    "CoLA.tsv": ("cola", "test", 1063),
    "SST-2.tsv": ("sst-2", "test", 1821),
    "MRPC.tsv": ("mrpc", "test", 1725),
    "STS-B.tsv": ("sts-b", "test", 1379),
    "QQP.tsv": ("qqp", "test", 390965),
    "MNLI-m.tsv": ("mnli", "test", 9796),
    "MNLI-mm.tsv": ("mnli", "test_mismatched", 9847),
    "QNLI.tsv": ("qnli", "test", 5463),
    "RTE.tsv": ("rte", "test", 3000),
    "WNLI.tsv": ("wnli", "test", 146),
    "AX.tsv": ("mnli", "test_ax", 1104),
}
"""What the server wants: file, task, split, rows."""


def predictions(
    folder: Path, result: FinetuneResult, model: Model, task: str, split: str
) -> list[dict[str, Any]]:
    """What the best run of a model on a task says of a test split; empty if nothing."""
    if task not in result.tasks:
        return []
    scores = result.scores.query(
        "task == @task and model == @model.name and split == 'dev'"
        " and metric == @result.tasks[@task].metrics[0] and not diverged"
    )
    if scores.empty:
        return []
    best = scores.loc[scores["score"].idxmax(), "seed"]
    path = predictions_path(folder, task, model, int(best))
    rows = (json.loads(line) for line in path.read_text("utf-8").split("\n") if line)
    return [row for row in rows if row["split"] == split]


def table(task: str, rows: list[dict[str, Any]]) -> str:
    """A file of the server: index and prediction, in the order of the index."""
    lines = ["index\tprediction"]
    for row in sorted(rows, key=lambda row: int(row["key"])):
        said = row["prediction"]
        shown = said if TASKS[task].labels else f"{min(5.0, max(0.0, said)):.3f}"
        lines.append(f"{row['key']}\t{shown}")
    return "\n".join(lines) + "\n"


def write_submission(
    folder: Path, result: FinetuneResult, model: Model, fill: bool
) -> tuple[Path, list[str]]:
    """Write a model's zip into the folder; returns where it is and what the server will not like.

    Raises:
        UserError: no test split of GLUE was predicted.
    """
    texts, notes = {}, []
    for name, (task, split, size) in FILES.items():
        rows = predictions(folder, result, model, task, split)
        if rows and len(rows) != size:
            notes.append(f"{name} has {len(rows):,} rows; the server expects {size:,}.")
        if not rows:
            notes.append(f"{name} has no predictions" + (" and is filled in." if fill else "."))
        if rows or fill:
            answer = (TASKS[task].labels or (0.0,))[0]
            filled = [{"key": key, "prediction": answer} for key in range(size)]
            texts[name] = table(task, rows or filled)
    if len(notes) - sum("expects" in note for note in notes) == len(FILES):
        raise UserError(f"{folder} holds no predictions of GLUE's test splits: use --predict.")
    path = folder / "submission" / f"{model.key}.zip"
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            # A fixed date, so that the same predictions give the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return path, notes


def main() -> None:
    """Write a zip for every model of a folder that `stackbert finetune` wrote."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fill", action="store_true")
    given = parser.parse_args()
    result = read_finetune(given.folder)
    for model in result.models:
        path, notes = write_submission(given.folder, result, model, given.fill)
        print(f"{model.name}: {path}", *notes, sep="\n  ")


if __name__ == "__main__":
    main()
