"""Every step of small runs computed again, by code that shares nothing with StackBERT.

    python benchmarks/independent/training.py

Four runs with a growth are trained by the command line, with a checkpoint after each step. From
these files plain torch and transformers compute, in float64, what each step should have given:
loss over all positions, gradient norm, updated weights, learning rate, validation loss, and FLOPs
as torch counts them. Depth map, schedule, AdamW and Muon are written out by hand here. From the
package come the batches alone; that each token of an epoch is in exactly one row is counted at the
end. Prints the largest deviations; ends with 1 if one of them is more than rounding.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from stackbert.batches.batches import Batch, BatchPlan, training_plan, validation_batch
from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.demo import write_factbook
from stackbert.recipe import Stage
from stackbert.recipes import load_recipe

WARMUP, REWARMUP, SHALLOW, STEPS = 3, 2, 6, 12
BASE: dict[str, Any] = {
    "name": "independent",
    "stages": [
        {"depth": 2, "steps": SHALLOW, "sequence_length": 24, "sequences": 12},
        {"depth": 4, "steps": STEPS - SHALLOW},
    ],
    "batch": {"sequences": 8, "sequence_length": 32, "micro_batch": 3},
    "schedule": {"name": "linear", "warmup_steps": WARMUP, "rewarmup_steps": REWARMUP},
    "evaluation": {"every_steps": 1, "sequences": 8},
    "checkpoint": {"every_steps": 1, "every_minutes": None, "keep": 99},
    **{"precision": "fp32", "compile": False, "log_every": 1, "seed": 5},
}
SHAPE = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
CASES: dict[str, dict[str, Any]] = {
    "BertForPreTraining": {
        "model": {"type": "bert"},
        "objective": {"next_sentence": True},
        "optimizer": {"lr": 0.004, "clip_norm": 0.5, "weight_decay": 0.1},
    },
    "MegatronBertForMaskedLM": {
        "model": {"type": "megatron-bert"},
        "objective": {"mask_rate": 0.3},
        "optimizer": {"name": "muon", "lr": 0.004, "muon_lr": 0.02, "betas": [0.9, 0.98]},
    },
    "RobertaPreLayerNormForMaskedLM": {
        "model": {"type": "roberta-prelayernorm"},
        "growth": {"optimizer_state": "copy"},
        "optimizer": {"lr": 0.004, "betas": [0.9, 0.95]},
    },
    "ModernBertForMaskedLM": {
        "model": {"type": "modernbert", "local_attention": 8},
        "optimizer": {"lr": 0.004},
    },
}
LIMITS = {
    **{"loss": 2e-6, "gradient norm": 2e-5, "update": 2e-3, "learning rate": 1e-12},
    **{"validation loss": 2e-6, "FLOPs": 1e-12},
}
"""Largest relative deviations that float32 explains. AdamW divides by the gradient's own size, so
an update magnifies the rounding of small gradients."""


def source_of(name: str) -> str:
    """The parameter that a grown model's parameter was copied from: layer i from layer i mod 2."""
    parts = name.split(".")
    return ".".join(str(int(part) % 2) if part.isdigit() else part for part in parts)


class Step:
    """One step of a run, from the files before and after it."""

    def __init__(self, run: Path, number: int, kind: str, recipe: dict[str, Any]) -> None:
        before, after = (run / "checkpoints" / f"step-{n:08d}" for n in (number, number + 1))
        model_class = getattr(transformers, kind)
        config = model_class.config_class.from_pretrained(after, attn_implementation="eager")
        torch.manual_seed(recipe["seed"])
        self.model = model_class(config).double().train()
        self.state: dict[str, torch.Tensor] = {}
        if number:
            self.state = load_file(before / "optimizer.safetensors")
            old = model_class.from_pretrained(before).state_dict()
            weights = self.model.state_dict()
            grown = number == SHALLOW
            with torch.no_grad():
                for name, tensor in weights.items():
                    # A layer's first norm in ModernBERT has no source: a fresh one is all ones.
                    source = source_of(name) if grown else name
                    tensor.copy_(old[source] if source in old else torch.ones_like(tensor))
            if grown and recipe["growth"]["optimizer_state"] == "reset":
                self.state = {}
            elif grown:
                self.state = {
                    f"{name}|{key}": self.state[f"{source_of(name)}|{key}"]
                    for name, _ in self.model.named_parameters()
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.after = dict(model_class.from_pretrained(after).named_parameters())
        self.evaluated = model_class.from_pretrained(after).double().eval()
        self.spec = recipe["optimizer"]
        self.factor = (number + 1) / WARMUP
        if number >= WARMUP:
            self.factor = 1 - (number - WARMUP) / (STEPS - WARMUP)
        if number >= SHALLOW:
            self.factor *= min(1, (number - SHALLOW + 1) / (REWARMUP + 1))

    def updated(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """A weight after the step: AdamW, or Muon for the encoder's matrices."""
        spec, layer = self.spec, any(part.isdigit() for part in name.split("."))
        held = {k: v.double() for k, v in self.state.items() if k.startswith(f"{name}|")}
        decay = spec["weight_decay"] if weight.ndim > 1 else 0.0
        if spec["name"] == "muon" and layer and weight.ndim == 2:
            rate, momentum = spec["muon_lr"] * self.factor, spec["muon_momentum"]
            buffer = held.get(f"{name}|momentum_buffer", 0) * momentum + gradient * (1 - momentum)
            x = gradient * (1 - momentum) + buffer * momentum
            x = x / x.norm()
            tall = x.shape[0] > x.shape[1]
            x = x.T if tall else x
            for _ in range(5):
                gram = x @ x.T
                x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
            x = (x.T if tall else x) * max(1, weight.shape[0] / weight.shape[1]) ** 0.5
            return weight * (1 - rate * decay) - rate * x
        (b1, b2), rate = spec["betas"], spec["lr"] * self.factor
        count = held.get(f"{name}|step", torch.zeros(())) + 1
        mean = held.get(f"{name}|exp_avg", 0) * b1 + gradient * (1 - b1)
        square = held.get(f"{name}|exp_avg_sq", 0) * b2 + gradient**2 * (1 - b2)
        size = (square / (1 - b2**count)).sqrt() + spec["eps"]
        return weight * (1 - rate * decay) - rate * mean / (1 - b1**count) / size


def dense(batch: Batch) -> dict[str, Any]:
    """A batch as transformers takes it, with a label or -100 at each position."""
    labels = torch.full_like(batch.input_ids_BS, -100)
    labels.scatter_(1, batch.columns_BK, batch.labels_BK)
    found = {"input_ids": batch.input_ids_BS, "labels": labels}
    if batch.is_random_B is not None:
        found |= {"token_type_ids": batch.token_types_BS, "next_sentence_label": batch.is_random_B}
    return found


def needed_flops(model: Any, batch: Batch) -> float:
    """FLOPs of a step by torch's counter, without the positions that StackBERT leaves out.

    The head is needed at the masked positions only; so is, but for ModernBERT, everything in the
    last layer that is no key or value (and at [CLS], where a pooler looks).
    """
    with FlopCounterMode(display=False, depth=None) as counter, torch.no_grad():
        model(**dense(batch) | {"labels": None, "next_sentence_label": None})
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    top, base = type(model).__name__, f"{type(model).__name__}.{model.base_model_prefix}"
    in_rope = sum(n for name, n in counts.items() if name.endswith("rotary_emb"))
    rows, masked = len(batch), batch.columns_BK.numel()
    every = batch.input_ids_BS.numel()
    pooled = f"{base}.pooler" in counts
    relation = counts.get(f"{top}.cls.seq_relationship", 0)
    head = counts[top] - counts[base] - relation
    total = counts[base] - in_rope + relation + head * masked / every
    if "Modern" not in top:
        last = max(n for n in counts if n.rpartition(".")[2].isdigit() and "layer" in n)
        kept = sum(counts[f"{last}.attention.self.{part}"] for part in ("key", "value"))
        total -= (counts[last] - kept) * (1 - (masked + rows * pooled) / every)
    return 3 * total


def check_run(kind: str, corpus: Corpus, folder: Path) -> dict[str, float]:
    """Train, compute each step again; the largest deviations, relative to the run's figures."""
    path, run = folder / f"{kind}.yaml", folder / kind
    fields = BASE | CASES[kind]
    path.write_text(yaml.safe_dump(fields | {"model": SHAPE | fields["model"]}), "utf-8")
    command = [sys.executable, "-m", "stackbert", "pretrain", str(path), "--out", str(run)]
    subprocess.run([*command, "--corpus", str(corpus.folder)], check=True, capture_output=True)
    recipe = load_recipe(path)
    plan, validation = training_plan(recipe, corpus), validation_batch(recipe, corpus)
    ledger = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in ledger if line["kind"] == "step"]
    evaluations = {line["step"]: line["loss"] for line in ledger if line["kind"] == "evaluation"}
    worst = dict.fromkeys(LIMITS, 0.0)

    def compare(what: str, ours: float, theirs: float) -> None:
        worst[what] = max(worst[what], abs(ours - theirs) / abs(theirs))

    for number, (line, previous) in enumerate(zip(steps, [{"flops": 0}, *steps], strict=False)):
        step = Step(run, number, kind, recipe.model_dump(mode="json"))
        batch = plan.batch(number)
        loss = step.model(**dense(batch)).loss
        loss.backward()
        gradients = {n: p.grad for n, p in step.model.named_parameters()}
        norm = float(sum((g**2).sum() for g in gradients.values()) ** 0.5)
        clip = min(1.0, step.spec["clip_norm"] / norm) if step.spec["clip_norm"] else 1.0
        off = length = 0.0
        for name, weight in step.model.named_parameters():
            new = step.updated(name, weight.detach(), gradients[name] * clip)
            off += float(((step.after[name] - new) ** 2).sum())
            length += float(((new - weight) ** 2).sum())
        worst["update"] = max(worst["update"], (off / length) ** 0.5)
        compare("loss", loss.item(), line["loss"])
        compare("gradient norm", norm, line["gradient_norm"])
        compare("learning rate", step.factor * step.spec["lr"], line["lr"])
        compare("FLOPs", needed_flops(step.model, batch), line["flops"] - previous["flops"])
        with torch.no_grad():
            evaluated = step.evaluated(**dense(validation)).loss.item()
        compare("validation loss", evaluated, evaluations[number + 1])
    return worst


class Different:
    """A text whose every token is another one, as a stream of token ids."""

    special, count = 5, 5003

    def __len__(self) -> int:
        return self.count

    def read_many(self, starts: Any, lengths: Any) -> Any:
        ids = [np.arange(s, s + n, dtype=np.uint32) for s, n in zip(starts, lengths, strict=True)]
        return np.concatenate(ids) + np.uint32(self.special)


def once_an_epoch(corpus: Corpus, epochs: int = 3) -> bool:
    """Whether two ranks, whose rows change their length, see each token once in each epoch."""
    size, special = Different.special + Different.count, tuple(range(Different.special))
    ids = {"size": size, "tokenizer_size": size, "special": special, "mask": 4}
    vocabulary = replace(corpus.vocabulary, **ids, pad=0, cls=2, sep=3)
    stages = [Stage(1, 40, 12, 24, 0.15, "auto"), Stage(2, 40, 8, 33, 0.3, "auto")]
    stream: Any = Different()
    plan, seen = BatchPlan(stream, vocabulary, stages, seed=7), []
    for step in itertools.takewhile(
        lambda _: sum(map(len, seen)) < epochs * Different.count, itertools.count()
    ):
        for rank in (0, 1):
            batch = plan.batch(step, rank, 2)
            rows = batch.input_ids_BS.scatter(1, batch.columns_BK, batch.labels_BK)
            seen.append(rows[:, 1:-1].flatten().numpy())
    told = np.concatenate(seen)[: epochs * Different.count].reshape(epochs, -1)
    counts = [np.bincount(epoch - Different.special, minlength=Different.count) for epoch in told]
    return all((count == 1).all() for count in counts)


def main() -> None:
    """Check all runs and the epochs; see the module's text."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="independent-") as name:
        folder = Path(name)
        write_factbook(folder / "text.txt")
        build_corpus(folder / "corpus", text=folder / "text.txt", vocab_size=512, validation=0.05)
        corpus = open_corpus(folder / "corpus")
        once = once_an_epoch(corpus)
        found = pd.DataFrame({kind: check_run(kind, corpus, folder) for kind in CASES})
    found["limit"] = pd.Series(LIMITS)
    print(f"Largest relative deviations of {STEPS} steps:")
    print(found.to_string(float_format="{:.1e}".format))
    print(f"Each token of an epoch is seen {'once' if once else 'NOT ONCE'}.")
    sys.exit(not once or bool((found.drop(columns="limit").max(axis=1) > found.limit).any()))


if __name__ == "__main__":
    main()
