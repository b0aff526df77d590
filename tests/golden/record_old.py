"""Make the golden record again, from the code as it was before it was rebuilt (commit a669411):

    git worktree add /tmp/old a669411 && PYTHONPATH=/tmp/old/src:tests OMP_NUM_THREADS=1 \
        TOKENIZERS_PARALLELISM=false python tests/golden/record_old.py

It takes a minute and writes expected.json into this folder. What stands under "anywhere" is the
same on every machine with the same libraries, what stands under "here" only where
`inputs.fingerprint` says the same. Since then numbers have moved on purpose: FLOPs of ModernBERT
and Muon (868211e), and losses by rounding, 3e-6 at most (868211e, 1241c0f).
"""

import json
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import inputs
import parts
import torch
from inputs import DATA, summary
from stackbert.planning.rehearsal import stand_in_vocabulary
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.start import batch_plan
from stackbert.vocabulary import load_vocabulary

import stackbert as sb
from stackbert import growth, models, recipe_files

CODE = SimpleNamespace(
    **{name: getattr(models, name) for name in ("create_model", "parameter_count")},
    **{name: getattr(models, name) for name in ("forward_flops", "training_flops")},
    **{name: getattr(growth, name) for name in ("grow_with_origins", "grow_optimizer_state")},
    UserError=sb.UserError,
    synthetic_vocabulary=stand_in_vocabulary,
    parse_recipe=recipe_files.parse_recipe,
    vocabulary_of=load_vocabulary,
    sentence_starts=lambda stream: stream.sentence_starts(0, len(stream)),
    training_plan=lambda recipe, corpus: batch_plan(recipe, corpus, load_vocabulary(corpus)),
    validation_batch=lambda recipe, corpus: evaluation_batch(
        recipe, corpus, load_vocabulary(corpus)
    ),
    batch_fields=("input_ids", "columns", "labels", "token_types", "is_random"),
)


def attention(kind: str) -> dict[str, list]:
    """Each measure of each head, and how alike the layers are."""
    model = inputs.make_model(kind, 4, gain=2.0)
    result = sb.measure_attention(model, text=inputs.SENTENCES, tokenizer=inputs.TOKENIZER)
    measures = {name: summary(getattr(result.measures, name)) for name in inputs.MEASURES}
    return {**measures, "likeness": summary(result.likeness.heads)}


def finetuning(place: Path) -> dict[str, list]:
    """Scores on the dev table and the last training loss, by model and seed."""
    files = inputs.write_study(place)
    result = sb.finetune(
        files / "model",
        task=sb.OwnData(files / "train.csv", "text", "label", dev=files / "dev.csv"),
        out=place / "out",
        seeds=2,
        settings=DATA["finetuning"]["settings"],
        control=True,
    )
    runs = {f"{run.member.name} {run.seed}": run.result for run in result.runs}
    return {name: [run.scores["dev"], run.losses[-1]] for name, run in runs.items()}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    flops, weights = parts.models(CODE)
    grown = {kind: parts.growth(CODE, kind) for kind in inputs.MODELS}
    anywhere = {
        "flops": flops,
        "growth": {kind: copied for kind, (copied, _) in grown.items()},
    }
    here = {
        "weights": weights,
        "growth": {kind: whole for kind, (_, whole) in grown.items()},
        "attention": {kind: attention(kind) for kind in inputs.ATTENTION},
    }
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        wanted = inputs.corpora(place / "text")
        corpora = {name: sb.build_corpus(place / name, **wanted[name]) for name in wanted}
        anywhere["corpus"] = {name: parts.corpus(CODE, built) for name, built in corpora.items()}
        anywhere["batches"] = {
            shape: parts.batches(CODE, corpora["main"], shape) for shape in inputs.BATCHES
        }
        here["runs"] = {}
        for name, raw in inputs.RUNS.items():
            recipe = CODE.parse_recipe(raw, "golden")
            sb.pretrain(recipe, corpus=corpora["main"], out=place / "runs" / name)
            here["runs"][name] = parts.run(place / "runs" / name)
        here["finetuning"] = finetuning(place / "finetuning")
    record = {"commit": "a669411", "fingerprint": inputs.fingerprint()}
    record |= {"anywhere": anywhere, "here": here}
    path = Path(__file__).with_name("expected.json")
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
