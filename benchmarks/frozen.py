"""What a model's layers know of a task before any fine-tuning.

    python benchmarks/frozen.py scratch stack --task sst-2 --data glue --rows 8000

Each layer's outputs, averaged over a sentence's tokens, go into a logistic regression on random
training rows (features standardised, C = 0.1), which is scored on dev; beside the models stands the
first one with random weights. And the length of a token's vector, layer by layer. The report goes
to benchmarks/results/ as JSON and Markdown.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import reporting
from reporting import Report, Table
from stackbert.finetuning.encoding import collate
from stackbert.finetuning.gather import gather
from stackbert.finetuning.heads import Opened, Source, find_source, open_model, untrained
from stackbert.finetuning.settings import settings_for
from stackbert.finetuning.work import Row, Work

BATCH = 64


def layers_of(opened: Opened, rows: Sequence[Row]) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Features of rows (layers + 1, rows, hidden) and the median length of a token's vector."""
    import torch

    plain = [{name: row[name] for name in row if name != "labels"} for row in rows]
    encoder = opened.model.base_model.eval()
    means, lengths = [], []
    for begin in range(0, len(plain), BATCH):
        batch = collate(plain[begin : begin + BATCH], padding=opened.tokenizer.pad_token_id)
        with torch.no_grad():
            outputs = encoder(**batch, output_hidden_states=True)
        there_BS = batch["attention_mask"].bool()
        x_LBSH = torch.stack(outputs.hidden_states)
        count_B1 = there_BS.sum(1, keepdim=True)
        means.append(((x_LBSH * there_BS[..., None]).sum(2) / count_B1).numpy())
        lengths.append(x_LBSH.norm(dim=-1)[:, there_BS].median(1).values.numpy())
    middle = np.median(np.stack(lengths), axis=0)
    return np.concatenate(means, axis=1), [float(each) for each in middle]


def probe(source: Source, work: Work, rows: int) -> dict[str, Any]:
    """Every layer's score on dev, in the task's headline metric."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    opened = open_model(source, work.head, seed=0, dropout=None)
    encoded = work.encode(opened, settings_for(work.name, ()), ("dev",))
    places = np.random.default_rng(0).permutation(len(encoded.train))[:rows]
    train = [encoded.train[place] for place in places]
    labels = [row["labels"] for row in train]
    ours, lengths = layers_of(opened, train)
    theirs, _ = layers_of(opened, encoded.splits["dev"])
    scores = []
    for known, unknown in zip(ours, theirs, strict=True):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        fitted.fit(known, labels)
        judged = encoded.judge("dev", [fitted.predict_proba(unknown)])
        scores.append(judged.scores[work.metrics[0]])
    return {"model": source.name, "scores": scores, "lengths": lengths, "rows": len(train)}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders or runs")
    parser.add_argument("--task", default="sst-2", help="a classification task of GLUE")
    parser.add_argument("--data", required=True, type=Path, help="GLUE's folder")
    parser.add_argument("--rows", type=int, default=8000, help="training rows")
    parser.add_argument("--out", type=Path, default=reporting.RESULTS)
    given = parser.parse_args()
    machine, begun = reporting.machine(), time.perf_counter()

    (work,) = gather(given.task, given.data).works
    if work.head.kind != "classes":
        parser.error(f"{work.title} has no classes; name a task that has.")
    sources = [find_source(path) for path in given.models]
    found = [probe(each, work, given.rows) for each in (*sources, untrained(sources[0], "random"))]
    deepest = max(len(each["scores"]) for each in found)
    columns = ("model", "embeddings", *(f"layer {n}" for n in range(1, deepest)))

    def table(title: str, cells: str, scale: float) -> Table:
        rows = [[each["model"], *(f"{scale * x:.1f}" for x in each[cells])] for each in found]
        return Table(title, columns, tuple((*r, *[""] * (len(columns) - len(r))) for r in rows))

    guess = work.guess["dev"][work.metrics[0]]
    report = Report(
        benchmark=f"frozen-{work.name}",
        title=f"What frozen layers know of {work.title}",
        tables=(
            table(f"{work.metrics[0]} on dev, points (guessing: {100 * guess:.1f})", "scores", 100),
            table("Length of a token's vector, median", "lengths", 1),
        ),
        results=found,
        settings={"task": work.name, "rows": given.rows},
        machine=machine,
        notes=(f"Dev has {work.sizes['dev']:,} rows.",),
        seconds=time.perf_counter() - begun,
    )
    report.write(given.out)
    print(report.markdown())


if __name__ == "__main__":
    main()
