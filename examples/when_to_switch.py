"""When to switch: how long should the shallow model train before it grows?

    python examples/when_to_switch.py small-cpu --corpus corpus --out when --shares 0.2,0.4,0.6

Gong et al. (ICML 2019, Fig. 7) switch after several numbers of steps and train on for a fixed
number. Here every growth of a recipe gets a comparison on one budget: both depths from scratch,
and variants of two stages that spend a share of their steps on the shallow model. Each decays its
learning rate over its own steps, which the paper's losses in mid-schedule do not.
"""

import argparse
import itertools
from pathlib import Path

import pandas as pd
import yaml

import stackbert as sb
from stackbert.progress import Progress, console_progress
from stackbert.tables import table_text


def when_to_switch(
    recipe: sb.Recipe,
    *,
    corpus: str | Path,
    out: str | Path,
    shares: list[float],
    seeds: int = 1,
    budget: str | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Compare switching after several shares of the steps, for every growth of a recipe.

    Args:
        recipe: its growths, model and optimiser.
        corpus: a folder that `build_corpus` made.
        out: a comparison for each growth is made below it, and can be reported by itself.
        shares: of the steps that the shallow model trains, between 0 and 1.
        seeds: runs of each variant.
        budget: of each run; by default what the deep model takes for the steps of both stages.
        jobs: runs side by side.
        progress: hears of every run that ends.

    Returns:
        layers ("2 → 4"), share, loss, scratch (the deep model's loss), difference, low, high (the
        95 % interval), seeds.
    """
    tables = []
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for shallow, deep in itertools.pairwise(recipe.stages):
        if deep.depth == shallow.depth:
            continue
        growth = recipe.scaled(max(shallow.steps + deep.steps, len(recipe.stages)))
        growth = growth.model_copy(update={"stages": (shallow, deep)})
        variants = {
            f"switch-{share:g}": {
                "stages": [
                    {"depth": shallow.depth, "steps": round(1000 * share)},
                    {"depth": deep.depth, "steps": round(1000 * (1 - share))},
                ]
            }
            for share in shares
        }
        name = f"{shallow.depth}-to-{deep.depth}"
        file = out / f"{name}.yaml"
        file.write_text(yaml.safe_dump(variants, sort_keys=False), encoding="utf-8")
        comparison = sb.compare(
            growth,
            corpus=corpus,
            out=out / name,
            variants=[str(file)],
            seeds=seeds,
            budget=budget,
            jobs=jobs,
            progress=progress,
        )
        table = comparison.standings().rename(columns={"reference": "scratch"})
        table = table[table["variant"].str.startswith("switch-")]  # without the controls
        share = table["variant"].str.removeprefix("switch-").astype(float)
        layers = f"{shallow.depth} → {deep.depth}"
        tables.append(table.assign(layers=layers, share=share).sort_values("share"))
    columns = ["layers", "share", "loss", "scratch", "difference", "low", "high", "seeds"]
    return pd.concat(tables, ignore_index=True)[columns]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a shipped recipe's name, or a YAML file")
    parser.add_argument("--corpus", required=True, help="from 'stackbert corpus'")
    parser.add_argument("--out", required=True, help="folder; unfinished comparisons are resumed")
    parser.add_argument("--shares", default="0.2,0.4,0.6", help="of the steps before the growth")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--budget", help="of each run: 30m, 2000steps, 4e15flops")
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    with console_progress() as progress:
        table = when_to_switch(
            sb.load_recipe(given.recipe),
            corpus=given.corpus,
            out=given.out,
            shares=[float(share) for share in given.shares.split(",")],
            seeds=given.seeds,
            budget=given.budget,
            jobs=given.jobs,
            progress=progress,
        )
    formats = dict.fromkeys(["loss", "scratch", "difference", "low", "high"], "{:.3f}")
    print(table_text(table, "Share of the steps before the growth", formats))


if __name__ == "__main__":
    main()
