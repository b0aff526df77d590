"""Attention, fine-tuning and comparisons give what they gave before they were rebuilt."""

import dataclasses
import gc
import os
from collections.abc import Iterator
from itertools import product, starmap
from pathlib import Path

import inputs
import numpy as np
import pandas as pd
import pytest
from golden_record import ANYWHERE, HERE, SAME_MACHINE, agree, agree_here, recipe_of
from inputs import DATA, summary

import stackbert as sb
from stackbert.attention.measures import PROFILE, WINDOWS
from stackbert.comparison import reference, statistics, variants
from stackbert.finetuning import sentences, squad, study
from stackbert.finetuning.models import Model
from stackbert.finetuning.tasks import Settings


def measures_of(heads: pd.DataFrame) -> dict:
    shape = int(heads["layer"].max()), int(heads["head"].max())
    grid = {name: heads[name].to_numpy().reshape(shape) for name in heads}
    names = ("first", "sep", "itself", "previous", "following", "entropy", "distance")
    return {
        **{name: summary(grid[name]) for name in names},
        "within": summary([grid[f"within_{window}"] for window in WINDOWS]),
        "near": summary([grid[f"near_{window}"] for window in WINDOWS]),
        "profile": summary(np.stack([grid[name] for name in PROFILE], axis=-1)),
        "classes": grid["class"].tolist(),
    }


def only(expected: dict, found: dict) -> dict:
    return {key: expected[key] for key in found}


@pytest.mark.parametrize("kind", DATA["attention"])
def test_attention_measures_the_same(kind: str) -> None:
    other, expected = DATA["attention"][kind], HERE["attention"][kind]
    result = sb.measure_attention(
        inputs.make_model(kind, 4, gain=2.0),
        text=inputs.SENTENCES,
        tokenizer=inputs.word_tokenizer(),
        compare=inputs.make_model(other, 2, gain=2.0) if other else None,
    )
    likeness = {"measured": (expected["likeness"], expected["contrast"], result.top_bottom)}
    if other:
        second = expected["other"]
        likeness["compared"] = second["likeness"], second["contrast"], result.shallow_deep
        found = measures_of(result.heads_of("compared"))
        agree_here(found, only(second["measures"], found), 1e-3, f"{kind}, {other}")
    found = measures_of(result.heads_of("measured"))
    agree_here(found, only(expected["measures"], found), 1e-3, kind)
    for name, (alike, contrast, conclusion) in likeness.items():
        agree_here(summary(result.arrays[f"likeness_{name}"]), alike["heads"], 1e-3, kind)
        found = dataclasses.asdict(conclusion)
        agree_here(found, only(contrast, found), 1e-3, kind)


def test_attention_follows_growth_in_the_same_way(make_run, place: Path) -> None:
    demo = make_run("demo-seed0")
    result = sb.measure_attention(demo, text=place / "text" / "one.txt", sentences=24, seed=3)
    for number, growth in enumerate(HERE["attention"][demo.name]["growths"]):
        rows = result.growth_heads[result.growth_heads["growth"] == number]
        for moment in growth["moments"][:3]:
            heads = rows[rows["moment"] == moment["name"]]
            found = measures_of(heads)
            agree_here(found, only(moment["measures"], found), 1e-3)
            shape = len(moment["origins"]), -1
            agree_here(
                summary(heads["divergence"].to_numpy().reshape(shape)), moment["divergence"], 1e-3
            )
        found = heads["outcome"].to_numpy().reshape(shape).tolist()
        assert found == growth["outcome"] or not SAME_MACHINE


@pytest.fixture
def quick_collection() -> Iterator[None]:
    """Each Trainer collects garbage, which takes half a second where torch is loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("quick_collection")
def test_fine_tuning_scores_the_same(place: Path) -> None:
    files, expected = inputs.write_study(place / "study"), HERE["finetuning"]
    result = sb.finetune(
        files["one"],
        task="own",
        data=files["train.csv"],
        dev=files["dev.csv"],
        out=place / "study" / "out",
        seeds=2,
        settings=DATA["finetuning"]["settings"],
        control=True,
    )
    for (model, seed), rows in result.scores.groupby(["model", "seed"]):
        scores, losses = expected[f"{model} {seed}"]
        found = dict(zip(rows["metric"], rows["score"], strict=True))
        agree_here(found, scores["dev"], 0.2)
        assert rows["loss"].iloc[0] == pytest.approx(losses[-1], abs=1e-6 if SAME_MACHINE else 0.5)


def differences(result: study.FinetuneResult) -> list:
    table = result.table()
    if "outcome" not in table:  # of one model
        return []
    table = table[table["outcome"].notna() & (table["task"] != "GLUE average")]
    numbers = ["difference", "difference_low", "difference_high", "pairs", "outcome"]
    return table.sort_values("model")[["task", "model", *numbers]].values.tolist()


@pytest.mark.parametrize("name", DATA["studies"])
def test_planted_scores_give_the_same_verdict(name: str) -> None:
    rows, tasks, names = [], {}, {}
    for task, by_model in DATA["studies"][name].items():
        guess, sizes = DATA["finetuning"]["tasks"][task], {"train": 100, "dev": 50}
        for (model, values), metric in product(by_model.items(), guess):
            names[model] = None
            for seed, value in enumerate(values):
                score = guess[metric] if value is None else value
                end = (7, 0.1, 1.0, 1.0, value is None, False)
                rows.append((task, model, 0, seed, "dev", metric, score, guess[metric], *end))
        tasks[task] = study.TaskRecord(
            title=task.upper(),
            metrics=tuple(guess),
            settings=Settings(precision="fp32"),
            sizes=sizes,
            fingerprints={},
            seeds=len(values),
            notes=(),
        )
    models = [
        Model(name=each, folder=each, fingerprint=each, untrained=each == "untrained")
        for each in names
    ]
    result = study.FinetuneResult(
        machine={},
        models=tuple(models),
        tasks=tasks,
        scores=pd.DataFrame(
            rows, columns=study.FinetuneResult.model_fields["scores"].default.columns
        ),
    )
    expected = [
        [
            task.upper(),
            model,
            *(100.0 * x if x is not None else None for x in gap[:3]),
            gap[3],
            outcome,
        ]
        for task, model, gap, outcome in ANYWHERE["studies"][name]
    ]
    agree(differences(result), expected, 1e-9)
    assert result.verdict()


def test_metrics_and_statistics_are_the_same() -> None:
    data, expected = DATA["finetuning"], ANYWHERE["metrics"]
    labels, guesses = np.array(data["labels"]), np.array(data["guesses"])
    numbers = np.array(data["numbers"]), np.array(data["estimates"])
    agree(sentences.score(tuple(expected["classes"]), labels, guesses), expected["classes"], 1e-12)
    agree(sentences.score(("pearson", "spearman"), *numbers), expected["numbers"], 1e-12)
    assert squad.f1("The cat, a Dog!", "cat dog dog") == expected["squad"][0]
    data, expected = DATA["comparison"], ANYWHERE["statistics"]
    intervals = [dataclasses.astuple(statistics.interval(each)) for each in data["intervals"]]
    agree(intervals, expected["intervals"], 1e-12)
    shares = [dataclasses.astuple(each) for each in starmap(statistics.share_for, data["shares"])]
    agree(shares, expected["shares"], 1e-12)


def test_a_comparisons_budget_buys_the_same_steps() -> None:
    data, recipe = DATA["comparison"], recipe_of(inputs.COMPARED)
    recipes = {"scratch": variants.at_depth(recipe, 4), "stack": recipe}
    kinds = dict.fromkeys(kind for each in recipes.values() for kind in reference.step_kinds(each))
    seconds, flops = data["step_seconds"], data["step_flops"]
    steps = [
        {**k._asdict(), "micro_batch": 8, "flops": flops[k.depth], "seconds": seconds[k.depth]}
        for k in kinds
    ]
    pairs = [(*pair, data["growth_seconds"]) for pair in variants.growths_of(recipe)]
    table = reference.Reference(
        machine={},
        threads=1,
        precision="fp32",
        compile=False,
        steps=pd.DataFrame(steps),
        growths=pd.DataFrame(pairs, columns=["source_depth", "target_depth", "seconds"]),
    )
    for name, budget, share in product(recipes, data["budgets"], data["fractions"]):
        filled = reference.filling(recipes[name], table, reference.parse_budget(budget), share)
        found = [[stage.steps for stage in filled.stages], table.cost(filled, "seconds")]
        agree(found, ANYWHERE["comparison budgets"][f"{name} {budget} {share}"], 1e-12)


@pytest.mark.parametrize("name", DATA["planted"])
def test_planted_losses_give_the_same_standings(name: str) -> None:
    case, expected, rows = DATA["planted"][name], ANYWHERE["verdicts"][name], []
    for variant, share, seed, loss in inputs.planted_runs(case):
        curve = [*case.get("curves", {}).get(variant, [(0.0, 7.0)]), (share, loss)]
        rows += [
            (
                variant,
                share,
                seed,
                50.0 * at,
                100.0 * at,
                1e9 * at,
                each,
                case.get("masked_lm", each),
            )
            for at, each in curve
            if loss is not None
        ]
    columns = ["variant", "fraction", "seed", "step", "seconds", "flops", "loss", "masked_lm"]
    results = pd.DataFrame(rows, columns=columns)
    table = statistics.standings(results)
    found = [
        [r.variant, r.fraction, r.own, r.reference, r.difference, r.low, r.high, r.pairs, r.outcome]
        for r in table[1:].itertuples()
    ]
    wanted = [
        [r["variant"], r["fraction"], *r["pair"], *r["difference"].values(), r["outcome"]]
        for r in expected["standings"]
    ]
    agree(found, wanted, 1e-12, name)
    for row in statistics.speeds(results).itertuples():
        (speed,) = (each for each in expected["speeds"] if each["variant"] == row.variant)
        agree(dataclasses.asdict(row.share), speed["by_seed"][str(row.seed)], 1e-12, name)
    if len(table):
        gap = statistics.plateau_gap(results, case.get("entropy", 6.0))
        assert (gap < statistics.PLATEAU) == expected["on_plateau"]


@pytest.mark.skipif(
    "STACKBERT_GOLDEN" not in os.environ, reason="takes minutes: STACKBERT_GOLDEN=1"
)
def test_a_comparison_makes_the_same_runs(corpora, place: Path) -> None:
    recipe, arguments = recipe_of(inputs.COMPARED), DATA["comparison"]["real"]
    result = sb.compare(recipe, corpus=corpora["main"], out=place / "comparison", **arguments)
    without_controls = result.results[~result.results["variant"].str.startswith("depth-")]
    for (variant, share, seed), rows in without_controls.groupby(["variant", "fraction", "seed"]):
        expected = HERE["comparison"][f"{variant} {share:g} {seed}"]
        agree_here(rows[["step", "loss"]].to_numpy().tolist(), expected, 1e-3)
