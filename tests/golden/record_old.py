"""Make the golden record again, from the code as it was before it was rebuilt (commit a669411):

    git worktree add /tmp/old a669411 && PYTHONPATH=/tmp/old/src OMP_NUM_THREADS=1 \
        TOKENIZERS_PARALLELISM=false python tests/golden/record_old.py

It takes three minutes or so and writes expected.json beside this file. What stands under "anywhere"
is the same on every machine with the same libraries, what stands under "here" only where
`inputs.fingerprint` says the same; "sentences" may be reworded.
"""

import dataclasses
import json
import tempfile
import warnings
from itertools import product, starmap
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import torch
from inputs import DATA, digest, json_digest, summary, tensor_digest
from safetensors.torch import load_file
from stackbert.finetuning.results import FinetuneResults, Run
from stackbert.finetuning.runs import Result
from stackbert.finetuning.settings import FinetuneSettings
from stackbert.planning.rehearsal import stand_in_vocabulary
from stackbert.planning.table import plan_table
from stackbert.pretraining.budget import Timing, evaluations_by_stage, scaled_to
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.start import batch_plan
from stackbert.reporting.content import Point
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert import models, recipe_files
from stackbert.attention.statements import statements as attention_sentences
from stackbert.batches import Batch
from stackbert.comparison import costs, folder, results, statistics, variants
from stackbert.comparison.calibration import Settings
from stackbert.comparison.verdict import judge
from stackbert.finetuning import folder as study
from stackbert.finetuning import metrics, squad_metrics
from stackbert.finetuning.verdict import statements as finetuning_sentences
from stackbert.growth import grow_optimizer_state, grow_with_origins
from stackbert.pretraining.schedule import learning_rate_factor

RECORD: dict[str, dict[str, Any]] = {"anywhere": {}, "here": {}, "sentences": {}}
ANYWHERE, HERE, SENTENCES = RECORD.values()


def recipe_of(raw: dict[str, Any]) -> sb.Recipe:
    return recipe_files.parse_recipe(raw, "golden")


def record_recipes() -> None:
    ANYWHERE["recipes"] = {n: r.model_dump(mode="json") for n, r in sb.shipped_recipes().items()}
    ANYWHERE["schedule"] = {
        name: [learning_rate_factor(recipe_of(raw), step) for step in range(42)]
        for name, raw in inputs.schedules().items()
    }
    wanted, timing = DATA["budgets"], Timing(**DATA["timing"])
    ANYWHERE["budget"] = {}
    for name, every, seconds in product(*wanted.values()):
        recipe = sb.load_recipe(name, [f"evaluation.every_steps={every}"])
        found = scaled_to(recipe, timing, seconds)
        ANYWHERE["budget"][f"{name} {every} {seconds}"] = {
            "steps": [stage.steps for stage in found.stages],
            "every": found.evaluation.every_steps,
            "warmup": found.schedule.warmup_steps,
            "evaluations": evaluations_by_stage(found),
        }
    ANYWHERE["plan"], SENTENCES["plan"] = {}, {}
    for name, (recipe_name, arguments) in DATA["plans"].items():
        plan = sb.plan(sb.load_recipe(recipe_name), **arguments)
        stages = [dataclasses.asdict(stage) for stage in (*plan.stages, plan.scratch)]
        ANYWHERE["plan"][name] = {"stages": stages, "saving": plan.saving, "cost": plan.cost}
        SENTENCES["plan"][name] = plan_table(plan)


def record_models() -> None:
    vocabulary, flops, weights = stand_in_vocabulary(500), {}, {}
    for kind, pairs, depth in product(models.FAMILIES, (False, True), (1, 3)):
        if pairs and models.FAMILIES[kind].next_sentence is None:
            continue
        name, spec = f"{kind} {pairs} {depth}", recipe_of(inputs.recipe(model={"type": kind})).model
        model = models.create_model(
            spec, depth=depth, vocabulary=vocabulary, sequence_length=64, next_sentence=pairs
        )
        weights[name] = tensor_digest(model.state_dict())
        flops[name] = [models.parameter_count(model)] + [
            count(model, rows=rows, sequence_length=length, masked=masked)
            for rows, length, masked in DATA["flop_shapes"]
            for count in (models.forward_flops, models.training_flops)
        ]
    ANYWHERE["flops"], HERE["initial weights"] = flops, weights


def record_growth() -> None:
    found, whole, refused = {}, {}, {}
    for kind, (operator, depth) in product(inputs.MODELS, inputs.OPERATORS.items()):
        model, name = inputs.make_model(kind), f"{kind} {operator}"
        try:
            growth = grow_with_origins(model, depth, operator, seed=5)
        except sb.UserError as error:
            refused[name] = str(error)
            continue
        state, moments = growth.model.state_dict(), inputs.optimizer_state(model)
        assert grow_optimizer_state(moments, growth, "reset") == {}
        moved = grow_optimizer_state(moments, growth, "copy")
        found[name] = {
            "copies": tensor_digest(
                {n: state[n] for n, origin in growth.origins.items() if origin}
            ),
            "origins": json_digest(dict(growth.origins)),
            "tensors": len(state),
            "moments": tensor_digest({f"{n} {k}": t for n in moved for k, t in moved[n].items()}),
            "layer_types": growth.model.config.to_dict().get("layer_types"),
        }
        whole[name] = tensor_digest(state)
    half = grow_with_origins(inputs.make_model("bert").bfloat16(), 4, "stack").model
    found["bert in bf16"] = tensor_digest(half.state_dict())
    ANYWHERE["growth"], HERE["growth"], SENTENCES["growth refused"] = found, whole, refused


def record_corpora(place: Path) -> dict[str, sb.Corpus]:
    ANYWHERE["corpus"], kept = {}, {}
    for name, arguments in inputs.corpora(place / "text").items():
        corpus = kept[name] = sb.build_corpus(place / name, **arguments)
        manifest = corpus.manifest
        tokenizer = json.loads((corpus.tokenizer_folder / "tokenizer.json").read_text("utf-8"))
        found = ANYWHERE["corpus"][name] = {
            "vocabulary": json_digest(tokenizer["model"]["vocab"]),
            "tokenizer": json_digest(tokenizer),
            "ids": dataclasses.asdict(load_vocabulary(corpus)),
            "duplicates": manifest.duplicate_documents,
            "empty": manifest.empty_documents,
            "source documents": [source.documents for source in manifest.sources],
        }
        for side in ("train", "validation"):
            stream, split = getattr(corpus, side), getattr(manifest, side)
            found[side] = {
                "tokens": digest(stream.read(0, len(stream))),
                "documents": digest(stream.document_starts),
                "sentences": digest(stream.sentence_starts(0, len(stream))),
                "counts": [split.tokens, split.documents, split.sentences, split.words],
                "entropy": split.unigram_entropy,
            }
    return kept


def batch_digest(*parts: Batch) -> str:
    names = ("input_ids", "columns", "labels", "token_types", "is_random")
    arrays = [[getattr(part, name) for part in parts] for name in names]
    return digest(*(None if some[0] is None else np.concatenate(some) for some in arrays))


def record_batches(corpora: dict[str, sb.Corpus]) -> None:
    found = ANYWHERE["batches"] = {}
    for name, (shape, raw) in product(("main", "bytes"), inputs.BATCHES.items()):
        recipe, corpus, key = recipe_of(raw), corpora[name], f"{shape} of {name}"
        plan = batch_plan(recipe, corpus, load_vocabulary(corpus))
        for size in inputs.WORLD_SIZES:
            steps = [
                batch_digest(*(plan.batch(step, rank, size) for rank in range(size)))
                for step in range(inputs.STEPS)
            ]
            assert found.setdefault(key, steps) == steps
        validation = evaluation_batch(recipe, corpus, load_vocabulary(corpus))
        found[f"{key}, validation"] = [batch_digest(validation)]


LEDGER = {
    "step": ("loss", "masked_lm", "next_sentence", "lr", "gradient_norm", "tokens", "flops"),
    "evaluation": ("step", "stage", "depth", "loss", "masked_lm", "next_sentence"),
    "growth": ("step", "source_depth", "target_depth", "loss_before", "loss_after"),
}


def record_runs(corpus: sb.Corpus, place: Path) -> None:
    HERE["runs"] = {}
    for name, raw in inputs.RUNS.items():
        result = sb.pretrain(recipe_of(raw), corpus=corpus, out=place / name)
        rows = sb.read_ledger(place / name)
        config = json.loads((result.model_folder / "config.json").read_text())
        del config["transformers_version"]
        HERE["runs"][name] = {
            **{
                kind: [[row[field] for field in fields] for row in rows if row["kind"] == kind]
                for kind, fields in LEDGER.items()
            },
            "order": " ".join(row["kind"][0] for row in rows),
            "weights": tensor_digest(load_file(result.model_folder / "model.safetensors")),
            "config": json_digest(config),
        }


def summarised(value: Any) -> Any:
    """Plain values of a result; arrays of floats by their digest and mean."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name != "weights"]
        return {name: summarised(getattr(value, name)) for name in names}
    if isinstance(value, np.ndarray):
        return summary(value) if value.dtype.kind == "f" else value.tolist()
    return [summarised(each) for each in value] if isinstance(value, tuple) else value


def record_attention(place: Path) -> None:
    found = {
        kind: sb.measure_attention(
            inputs.make_model(kind, 4, gain=2.0),
            text=inputs.SENTENCES,
            tokenizer=inputs.word_tokenizer(),
            compare=inputs.make_model(other, 2, gain=2.0) if other else None,
        )
        for kind, other in DATA["attention"].items()
    }
    found["demo-seed0"] = sb.measure_attention(
        place / "runs" / "demo-seed0", text=place / "text" / "one.txt", sentences=24, seed=3
    )
    HERE["attention"] = {name: summarised(result) for name, result in found.items()}
    SENTENCES["attention"] = {name: attention_sentences(each) for name, each in found.items()}


def made_study(scores: dict[str, dict[str, list[float | None]]]) -> FinetuneResults:
    members, tasks, runs = {}, {}, []
    for task, by_model in scores.items():
        guess, sizes = DATA["finetuning"]["tasks"][task], {"train": 100, "dev": 50}
        for name, values in by_model.items():
            member = members.setdefault(name, study.Member(name, f"/{name}", name, name))
            for seed, value in enumerate(values):
                found = {} if value is None else {"dev": dict.fromkeys(guess, value)}
                result = Result("", seed, found, {}, 1.0, 1.0, 7, (), value is None, ())
                runs.append(Run(task, member, seed, result))
        settings = FinetuneSettings(precision="fp32")
        tasks[task] = study.TaskRecord(
            task, task.upper(), tuple(guess), settings, sizes, {}, {"dev": guess}, len(values), ()
        )
    models = {name: study.Contender(name, (member,)) for name, member in members.items()}
    control = models.pop("untrained", None)
    record = study.Record("models", tuple(models.values()), tasks, {}, {}, control)
    return FinetuneResults(Path(), record, tuple(runs), 0)


def differences(found: FinetuneResults) -> list[Any]:
    base, *others = found.contenders
    pairs = [found.difference(other, base, m) for other in others for m in found.measures()]
    return [
        [pair.measure.task, pair.contender.name, dataclasses.astuple(pair.interval), pair.outcome]
        for pair in pairs
        if pair is not None
    ]


def record_finetuning(place: Path) -> None:
    files, data = inputs.write_study(place), DATA["finetuning"]
    real = sb.finetune(
        [files["one"], files["two"]],
        task=sb.OwnData(files["train.csv"], "text", "label", dev=files["dev.csv"]),
        out=place / "out",
        seeds=2,
        settings=data["settings"],
        control=True,
    )
    written = sorted((place / "out" / "results").rglob("*.jsonl"))
    rows = [list(map(json.loads, path.read_text("utf-8").splitlines())) for path in written]
    HERE["finetuning"] = {
        f"{r.member.name} {r.seed}": [r.result.scores, r.result.losses] for r in real.runs
    } | {
        "predictions": json_digest(sorted([row["prediction"] for row in some] for some in rows)),
        "differences": differences(real),
    }
    made = {name: made_study(scores) for name, scores in DATA["studies"].items()}
    ANYWHERE["studies"] = {name: differences(found) for name, found in made.items()}
    SENTENCES["finetuning"] = {
        name: [
            sentence.replace(f"{place}/", "")
            for sentence in finetuning_sentences(found)
            if "of training and predicting" not in sentence
        ]
        for name, found in {**made, "of real runs": real}.items()
    }
    labels, pair = data["labels"], ("The cat, a Dog!", "cat dog dog")
    names = [name for name in metrics.METRICS if name not in ("pearson", "spearman")]
    ANYWHERE["metrics"] = {
        "classes": metrics.score(names, labels, data["guesses"]),
        "numbers": metrics.score(("pearson", "spearman"), data["numbers"], data["estimates"]),
        "guess": metrics.majority(names, labels),
        "squad": [squad_metrics.f1(*pair), squad_metrics.exact_match("The Cat.", "a cat")],
    }


def planted(case: dict[str, Any]) -> results.Results:
    def point(share: float, loss: float) -> Point:
        return Point(100.0 * share, 1e9 * share, 1e6 * share, 50.0 * share, loss)

    recipe, runs, entries, missing = recipe_of(inputs.COMPARED), [], [], []
    for variant, share, seed, loss in inputs.planted_runs(case):
        entries.append(folder.Entry(variant, share, seed, "0" * 12))
        if loss is None:
            missing.append(f"{variant}, {share:g}, seed {seed}: not begun")
            continue
        curve = [*case.get("curves", {}).get(variant, [(0.0, 7.0)]), (share, loss)]
        points, last = tuple(starmap(point, curve)), case.get("masked_lm", loss)
        runs.append(results.Run(variant, share, seed, Path(), recipe, points, (), last))
    recipes = dict.fromkeys(case["losses"], recipe)
    recipes |= {name: recipe_of(inputs.UNDECAYED) for name in case.get("undecayed", ())}
    units = {"seconds": "100s", "flops": "1e9flops", "steps": "50steps"}
    record = folder.Record(
        folder.Question("variants", recipe, "f" * 8, None, 1, (1.0,)),
        corpus_folder="corpus",
        entropy=case.get("entropy", 6.0),
        machine={},
        threads=1,
        settings=Settings("fp32", False, ()),
        reference=costs.Reference((), ()),
        budget=costs.parse_budget(units[case.get("unit", "seconds")]),
        rate=case.get("rate", 1.0),
        tried=tuple(starmap(folder.Tried, case.get("tried", ()))),
        entries=tuple(entries),
        recipes={name: each.model_dump(mode="json") for name, each in recipes.items()},
    )
    return results.Results(Path(), record, tuple(runs), tuple(missing))


def record_costs() -> None:
    data, recipe = DATA["comparison"], recipe_of(inputs.COMPARED)
    recipes = {"scratch": variants.scratch_of(recipe), "stack": recipe}
    seconds, flops = data["step_seconds"], data["step_flops"]
    steps = [
        costs.StepCost(kind, seconds[kind.depth], (), flops[kind.depth])
        for kind in costs.all_kinds(list(recipes.values()))
    ]
    pairs = variants.depth_pairs(recipe)
    growths = [costs.GrowthCost(*pair, data["growth_seconds"]) for pair in pairs]
    reference = costs.Reference(tuple(steps), tuple(growths))
    found = ANYWHERE["comparison budgets"] = {}
    for name, budget, share in product(recipes, data["budgets"], data["fractions"]):
        filled = costs.filling(recipes[name], reference, costs.parse_budget(budget), share)
        steps_taken = [stage.steps for stage in filled.stages]
        found[f"{name} {budget} {share}"] = [steps_taken, reference.cost(filled, "seconds")]
    ANYWHERE["statistics"] = {
        "intervals": [dataclasses.astuple(statistics.interval(v)) for v in data["intervals"]],
        "shares": [dataclasses.astuple(statistics.share_for(*case)) for case in data["shares"]],
    }


def record_comparison(corpus: sb.Corpus, place: Path) -> None:
    recipe, arguments = recipe_of(inputs.COMPARED), DATA["comparison"]["real"]
    real = sb.compare(recipe, corpus=corpus, out=place, **arguments)
    assert not real.missing, real.missing
    HERE["comparison"] = {
        f"{run.variant} {run.fraction:g} {run.seed}": [[p.steps, p.loss] for p in run.points]
        for run in real.runs
    }
    ANYWHERE["verdicts"], SENTENCES["comparison"] = {}, {}
    made = {name: planted(case) for name, case in DATA["planted"].items()}
    for name, found in {**made, "of real runs": real}.items():
        verdict = judge(found)
        (HERE["comparison"] if found is real else ANYWHERE["verdicts"])[name] = {
            "standings": [dataclasses.asdict(each) for each in verdict.standings],
            "speeds": [dataclasses.asdict(each) for each in verdict.speeds],
            "on_plateau": verdict.on_plateau,
        }
        SENTENCES["comparison"][name] = verdict.sentences


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        record_recipes()
        record_models()
        record_growth()
        corpora = record_corpora(place)
        record_batches(corpora)
        record_runs(corpora["main"], place / "runs")
        record_attention(place)
        record_finetuning(place / "finetuning")
        record_costs()
        record_comparison(corpora["main"], place / "comparison")
    record = {"commit": "a669411", "fingerprint": inputs.fingerprint(), **RECORD}
    path = Path(__file__).with_name("expected.json")
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
