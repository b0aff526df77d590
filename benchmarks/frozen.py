"""What a model's layers know of a task before any fine-tuning.

    python benchmarks/frozen.py scratch stack --task sst-2 --data glue --rows 8000

Each layer's outputs, averaged over a sentence's tokens, go into a logistic regression on random
training rows (features standardised, C = 0.1), which is scored on dev; the last row is the first
model with random weights. The report goes to benchmarks/results/ as JSON and Markdown.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import DataCollatorWithPadding

import reporting
from stackbert.finetuning import sentences
from stackbert.finetuning.data import official_tasks
from stackbert.finetuning.models import Model, Opened, control_of, find_models, open_with_head
from stackbert.finetuning.tasks import Settings, TaskData

BATCH = 64


def layers_of(opened: Opened, rows: list[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """Features of rows: (layers + 1, rows, hidden)."""
    collate = DataCollatorWithPadding(opened.tokenizer)
    encoder: Any = opened.model.base_model.eval()
    plain = [{name: row[name] for name in row if name != "labels"} for row in rows]
    means = []
    for begin in range(0, len(rows), BATCH):
        batch = collate(plain[begin : begin + BATCH])
        with torch.no_grad():
            x_LBSH = torch.stack(encoder(**batch, output_hidden_states=True).hidden_states)
        there_BS1 = batch["attention_mask"].bool()[..., None]
        means.append(((x_LBSH * there_BS1).sum(2) / there_BS1.sum(1)).numpy())
    return np.concatenate(means, axis=1)


def probe(model: Model, data: TaskData, rows: int) -> list[float]:
    """Every layer's score on dev, in the task's headline metric."""
    opened = open_with_head(model, data.task, Settings(), seed=0)
    train = sentences.encode(data, "train", opened, Settings()).rows
    dev = sentences.encode(data, "dev", opened, Settings())
    train = [train[n] for n in np.random.default_rng(0).permutation(len(train))[:rows]]
    scores = []
    for known, unknown in zip(layers_of(opened, train), layers_of(opened, dev.rows), strict=True):
        fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        fitted.fit(known, [row["labels"] for row in train])
        found, _ = sentences.judge(data, "dev", dev, [fitted.predict_proba(unknown)])
        scores.append(100 * found[data.task.metrics[0]])
    return scores


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="checkpoint folders or runs")
    parser.add_argument("--task", default="sst-2", help="a classification task of GLUE")
    parser.add_argument("--data", required=True, type=Path, help="GLUE's folder")
    parser.add_argument("--rows", type=int, default=8000, help="training rows")
    parser.add_argument("--out", type=Path, default=reporting.RESULTS)
    given = parser.parse_args()
    begun = time.perf_counter()
    (data,) = official_tasks(given.task, given.data)
    models = find_models(given.models)
    found = {m.name: probe(m, data, given.rows) for m in (*models, control_of(models[0]))}
    metric = data.task.metrics[0]
    table = pd.DataFrame.from_dict(found, orient="index")
    table.columns = ["embeddings", *(f"layer {n}" for n in table.columns[1:])]
    guessed = 100 * sentences.guess(data, "dev")[metric]
    print(
        reporting.write_report(
            given.out,
            f"frozen-{data.task.name}",
            f"What frozen layers know of {data.task.title}",
            {f"{metric} on dev": table.reset_index(names="model")},
            notes=[f"{given.rows:,} training rows. Guessing scores {guessed:.1f}."],
            seconds=time.perf_counter() - begun,
            formats=dict.fromkeys(table.columns, "{:.1f}"),
        )
    )


if __name__ == "__main__":
    main()
