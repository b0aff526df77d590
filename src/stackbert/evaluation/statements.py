"""An evaluation in words: what a probe's figure means, and what differs beyond noise."""

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from stackbert.evaluation.evaluate import EvaluationResult

SIGNIFICANT = 0.05
MEANING = (
    "A probe is a linear classifier on one frozen layer: its score says how much of the labels can "
    "be read off that layer. What it has above the embeddings, the layers took from the context; "
    "what it has above random weights of the same shape, pre-training put there."
)


def statements(result: "EvaluationResult") -> list[str]:
    """The meaning of a probe, then a sentence for each probe of a model and each other test."""
    lines = [MEANING] if (result.scores["kind"] == "probe").any() else []
    table = result.probe_table()
    for _, row in table.drop_duplicates(["test", "model"]).iterrows() if len(table) else ():
        tests = result.comparisons
        mine = tests[(tests["test"] == row["test"]) & (tests["model"] == row["model"])]
        mine = mine[mine["metric"] == row["metric"]].set_index("versus")
        lines.append(
            f"{row['test']}: the last layer of {row['model']} has {row['metric']} "
            f"{row['last']:.1f}, {_by(mine.loc['its embeddings'])} its embeddings and "
            f"{_by(mine.loc['random weights'])} random weights; the best is layer "
            f"{row['best layer']} with {row['best']:.1f}."
        )
    between = result.comparisons[result.comparisons["versus"] == result.models["name"][0]]
    for (test, model), rows in between.groupby(["test", "model"], sort=False):
        row = rows.iloc[0]
        is_loss = row["metric"].startswith("nats")
        size = f"{row['difference']:+.3f}" if is_loss else f"{100 * row['difference']:+.1f} points"
        noise = "beyond noise" if row["p"] < SIGNIFICANT else "within noise"
        lines.append(
            f"{test}, {row['metric']}: {model} differs from {row['versus']} by {size} (p = "
            f"{row['p']:.2g}), {noise}."
        )
    return lines


def _by(row: "pd.Series[float]") -> str:
    """ "3.1 points (± 0.3) above"."""
    points = 100 * row["difference"]
    side = "above" if points >= 0 else "below"
    return f"{abs(points):.1f} points (± {100 * row['error']:.1f}) {side}"
