"""Does it pay to deepen a model that you already have? Grown and trained on, or only trained on.

    python benchmarks/continue_from.py MODEL --corpus CORPUS --data TESTS --out OUT

The model is trained on at its own depth first, so that one without a masked-LM head learns it. From
there on, in the same schedule: twice the depth by each operator, and the unchanged depth for as
many processor seconds. Run the same command again to resume.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd

import reporting
import stackbert as sb
from stackbert.model_files import read_config
from stackbert.pretraining.ledger import read_ledger
from stackbert.recipes import load_recipe

SETTINGS = (
    *("batch.sequences=8", "schedule.warmup_steps=50", "evaluation.sequences=256"),
    *("evaluation.every_steps=250", "checkpoint.every_minutes=1", "compile=false"),
)
"""The recipe is small-cpu's but for these."""
NOTES = (
    "Validation losses in nats. `at start` is before the first step: of a grown model, right after "
    "growth; of the unchanged depth, the loss before growth.",
    "`seconds` are the processor's, of training alone.",
)


def train(name: str, start: Path, steps: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the model of a folder at its own depth: its losses and seconds."""
    depth, run = read_config(start)["num_hidden_layers"], arguments.out / name
    stages = f"stages=[{{depth: {depth}, steps: {steps}}}]"
    recipe = load_recipe("small-cpu", [*SETTINGS, *arguments.settings, stages])
    result = sb.pretrain(recipe, corpus=arguments.corpus, out=run, start=start)
    losses = read_ledger(run).query("kind == 'evaluation'").loss
    row = {"model": name, "depth": depth, "steps": steps, "seconds": result.seconds}
    return row | {"at start": losses.iloc[0], "at the end": losses.iloc[-1]}


def probes(runs: list[str], arguments: argparse.Namespace) -> pd.DataFrame:
    """A column for each test."""
    few = {"train": arguments.train, "test": arguments.test, "pairs": arguments.pairs}
    models = [arguments.out / name / "model" for name in runs]
    scores = sb.evaluate(models, data=arguments.data, **few).scores
    scores["test"] += ", " + scores["metric"]
    return scores.pivot(index="model", columns="test", values="score")


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--corpus", required=True, help="made with the model's tokenizer")
    parser.add_argument("--data", required=True, help="tests, as 'stackbert evaluate' takes them")
    parser.add_argument("--out", type=Path, required=True, help="for the runs")
    parser.add_argument("--prepare", type=int, default=500, help="steps before growth")
    parser.add_argument("--steps", type=int, default=1000, help="of a grown model")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="of the recipe")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--results", type=Path, default=reporting.RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    # A run's ledger then counts the processor's seconds, which other processes do not lengthen.
    time.perf_counter = time.process_time

    rows = [train("before", arguments.model, arguments.prepare, arguments)]
    prepared = arguments.out / "before" / "model"
    for operator in ("identity-copy", "stack"):
        grown = arguments.out / f"grown-{operator}"
        if not grown.exists():
            sb.grow_folder(prepared, grown, 2 * rows[0]["depth"], operator)
        rows.append(train(operator, grown, arguments.steps, arguments))
    seconds = (rows[1]["seconds"] + rows[2]["seconds"]) / 2
    steps = round(seconds / rows[0]["seconds"] * arguments.prepare)
    rows.append(train("unchanged", prepared, steps, arguments))
    table = pd.DataFrame(rows)
    scores = probes(table["model"].tolist(), arguments)
    losses = dict.fromkeys(("at start", "at the end"), "{:.4f}")
    report = reporting.write_report(
        arguments.results,
        f"continue_from-{arguments.out.name}",
        f"{arguments.out.name}: twice as deep, or trained on as it is",
        {"Models": table.merge(scores, left_on="model", right_index=True)},
        notes=NOTES,
        seconds=table["seconds"].sum(),
        formats={"steps": "{:,}", "seconds": "{:,.0f}", **losses}
        | dict.fromkeys(scores.columns, "{:.1f}"),
    )
    print(report)


if __name__ == "__main__":
    main()
