"""Every step of small runs computed again, by code that shares nothing with StackBERT.

    python benchmarks/independent/training.py

Four runs with a growth are trained by the command line, with a checkpoint after each step. From
these files plain torch and transformers compute, in float64, what each step should have given:
loss over all positions, gradient norm, updated weights, learning rate, validation loss, and FLOPs
as torch counts them. Depth map, schedule, AdamW and Muon are written out by hand here. From the
package come the batches alone, which epochs.py checks. Prints the largest deviations; ends with 1
if one of them is more than rounding.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from stackbert.batches.batches import Batch, training_plan, validation_batch
from stackbert.corpus.build import build_corpus
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.demo import write_factbook
from stackbert.recipe import Recipe
from stackbert.recipes import load_recipe

WARMUP, REWARMUP, SHALLOW, STEPS, SEED = 3, 2, 6, 12, 5
RECIPE = f"""
name: independent
objective: {{mask_rate: 0.3}}
stages:
  - {{depth: 2, steps: {SHALLOW}, sequence_length: 24, sequences: 12}}
  - {{depth: 4, steps: {STEPS - SHALLOW}}}
batch: {{sequences: 8, sequence_length: 32, micro_batch: 3}}
schedule: {{name: linear, warmup_steps: {WARMUP}, rewarmup_steps: {REWARMUP}}}
evaluation: {{every_steps: 1, sequences: 8}}
checkpoint: {{every_steps: 1, every_minutes: null, keep: 99}}
precision: fp32
compile: false
log_every: 1
seed: {SEED}
model: {{hidden_size: 32, num_attention_heads: 2, intermediate_size: 64}}
optimizer: {{lr: 0.004, betas: [0.9, 0.98], weight_decay: 0.1}}
"""
CASES = {
    "BertForPreTraining": ["objective.next_sentence=true", "optimizer.clip_norm=0.5"],
    "MegatronBertForMaskedLM": ["model.type=megatron-bert", "optimizer.name=muon"],
    "RobertaPreLayerNormForMaskedLM": [
        "model.type=roberta-prelayernorm",
        "growth.optimizer_state=copy",
    ],
    "ModernBertForMaskedLM": ["model.type=modernbert", "model.local_attention=8"],
}
LIMITS = {
    **{"loss": 1e-6, "gradient norm": 2e-6, "update": 1e-4, "learning rate": 1e-12},
    **{"validation loss": 1e-6, "FLOPs": 1e-12},
}
"""Largest relative deviations that float32 explains."""
KEYS = ("step", "exp_avg", "exp_avg_sq")


def source_of(name: str) -> str:
    """The parameter that a grown model's parameter was copied from: layer i from layer i mod 2."""
    parts = name.split(".")
    return ".".join(str(int(part) % 2) if part.isdigit() else part for part in parts)


class Step:
    """One step of a run, from the files before and after it."""

    def __init__(self, run: Path, number: int, kind: str, recipe: Recipe) -> None:
        before, after = (run / "checkpoints" / f"step-{n:08d}" for n in (number, number + 1))
        model_class = getattr(transformers, kind)
        config = model_class.config_class.from_pretrained(after, attn_implementation="eager")
        torch.manual_seed(SEED)
        self.model = model_class(config).double().train()
        self.state, grown = {}, number == SHALLOW
        if number:
            old = model_class.from_pretrained(before).state_dict()
            for name, tensor in self.model.state_dict().items():
                source = source_of(name) if grown else name
                # The first layer of ModernBERT has no norm to copy; a fresh one is all ones.
                tensor.copy_(old[source] if source in old else torch.ones_like(tensor))
            stored = load_file(before / "optimizer.safetensors")
            if not grown:
                self.state = stored
            elif recipe.growth.optimizer_state == "copy":
                names = dict(self.model.named_parameters())
                wanted = (f"{name}|{key}" for name in names for key in KEYS)
                self.state = {name: stored[source_of(name)] for name in wanted}
        self.after = model_class.from_pretrained(after)
        self.spec, self.factor = recipe.optimizer, (number + 1) / WARMUP
        if number >= WARMUP:
            self.factor = 1 - (number - WARMUP) / (STEPS - WARMUP)
        if number >= SHALLOW:
            self.factor *= min(1, (number - SHALLOW + 1) / (REWARMUP + 1))

    def updated(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """A weight after the step: AdamW, or Muon for the encoder's matrices."""
        spec, layer = self.spec, any(part.isdigit() for part in name.split("."))
        held = {k: v.double() for k, v in self.state.items() if k.startswith(f"{name}|")}
        decay = spec.weight_decay if weight.ndim > 1 else 0.0
        if spec.name == "muon" and layer and weight.ndim == 2:
            rate, momentum = spec.muon_lr * self.factor, spec.muon_momentum
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
        (b1, b2), rate = spec.betas, spec.lr * self.factor
        count = held.get(f"{name}|step", torch.zeros(())) + 1
        mean = held.get(f"{name}|exp_avg", 0) * b1 + gradient * (1 - b1)
        square = held.get(f"{name}|exp_avg_sq", 0) * b2 + gradient**2 * (1 - b2)
        size = (square / (1 - b2**count)).sqrt() + spec.eps
        return weight * (1 - rate * decay) - rate * mean / (1 - b1**count) / size


def dense(batch: Batch) -> dict[str, Any]:
    """A batch as transformers takes it, with a label or -100 at each position."""
    labels = torch.full_like(batch.input_ids_BS, -100)
    labels.scatter_(1, batch.columns_BK, batch.labels_BK)
    found = {"input_ids": batch.input_ids_BS, "labels": labels}
    if batch.is_random_B is not None:
        found |= {"token_type_ids": batch.token_types_BS, "next_sentence_label": batch.is_random_B}
    return found


def needed_flops(model: torch.nn.Module, batch: Batch) -> float:
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
    run, path = folder / kind, folder / "recipe.yaml"
    path.write_text(RECIPE, "utf-8")
    command = [sys.executable, "-m", "stackbert", "pretrain", str(path), "--out", str(run)]
    command += [f"--corpus={corpus.folder}", *(f"--set={change}" for change in CASES[kind])]
    subprocess.run(command, check=True, capture_output=True)
    recipe = load_recipe(path, CASES[kind])
    plan, validation = training_plan(recipe, corpus), validation_batch(recipe, corpus)
    ledger = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in ledger if line["kind"] == "step"]
    evaluations = {line["step"]: line["loss"] for line in ledger if line["kind"] == "evaluation"}
    worst = dict.fromkeys(LIMITS, 0.0)

    def compare(what: str, ours: float, theirs: float) -> None:
        worst[what] = max(worst[what], abs(ours - theirs) / abs(theirs))

    for number, (line, previous) in enumerate(zip(steps, [{"flops": 0}, *steps], strict=False)):
        step = Step(run, number, kind, recipe)
        batch = plan.batch(number)
        loss = step.model(**dense(batch)).loss
        loss.backward()
        gradients = {n: p.grad for n, p in step.model.named_parameters()}
        norm = float(sum((g**2).sum() for g in gradients.values()) ** 0.5)
        clip = min(1.0, step.spec.clip_norm / norm) if step.spec.clip_norm else 1.0
        off, length, after = 0.0, 0.0, step.after.state_dict()
        for name, weight in step.model.named_parameters():
            new = step.updated(name, weight.detach(), gradients[name] * clip)
            off += float(((after[name] - new) ** 2).sum())
            length += float(((new - weight.detach()) ** 2).sum())
        worst["update"] = max(worst["update"], (off / length) ** 0.5)
        compare("loss", loss.item(), line["loss"])
        compare("gradient norm", norm, line["gradient_norm"])
        compare("learning rate", step.factor * step.spec.lr, line["lr"])
        compare("FLOPs", needed_flops(step.model, batch), line["flops"] - previous["flops"])
        with torch.no_grad():
            evaluated = step.after.double().eval()(**dense(validation)).loss.item()
        compare("validation loss", evaluated, evaluations[number + 1])
    return worst


def main() -> None:
    """Check all runs and the epochs; see the module's text."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="independent-") as name:
        folder = Path(name)
        write_factbook(folder / "text.txt")
        build_corpus(folder / "corpus", text=folder / "text.txt", vocab_size=512, validation=0.05)
        corpus = open_corpus(folder / "corpus")
        found = pd.DataFrame({kind: check_run(kind, corpus, folder) for kind in CASES})
    found["limit"] = pd.Series(LIMITS)
    print(f"Largest relative deviations of {STEPS} steps:")
    print(found.to_string(float_format="{:.1e}".format))
    sys.exit(bool((found.drop(columns="limit").max(axis=1) > found.limit).any()))


if __name__ == "__main__":
    main()
