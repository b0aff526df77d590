"""Seconds a step: StackBERT next to transformers' Trainer, on the same machine.

    python benchmarks/throughput.py --rounds 5
    python benchmarks/throughput.py --sizes 12x768 --depths 2,4,8,12 --rounds 3

The setups train the same BERT on the same number of random tokens with the same AdamW:

    trainer             transformers' Trainer as its masked-LM example runs it: fp32, dropout 0.1
    trainer-fast        the same with torch_compile, and bf16 where the machine is faster in it
    stackbert           as a long run of StackBERT is autotuned; no dropout, which is its default
    stackbert-eager     the same, never compiled
    stackbert-compiled  the same, always compiled

A Trainer's name with "-dropout0" behind it trains without dropout. Every setup is a process of its
own; they take turns, so that a machine whose speed drifts treats them alike. With --depths the last
setup is timed at these depths, and a straight line drawn through them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import reporting

if TYPE_CHECKING:
    from stackbert.recipe import Recipe

MASK_RATE = 0.15
SHAPE = ["depth", "width", "sequence"]


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", help="DEPTHxWIDTH,…; 6x256,12x512, on a GPU also 12x768,24x1024")
    add("--sequences", help="tokens a row; 128,512")
    add("--tokens", type=int, help="of a step; 2048 on a CPU, 65536 on a GPU")
    add("--vocab-size", type=int, default=30522)
    add("--setups", default="trainer,trainer-fast,stackbert")
    add("--depths", help="time the last setup at these depths, and draw a line")
    add("--rounds", type=int, default=5)
    add("--steps", type=int, default=10, help="timed in each process")
    add("--warmup", type=int, default=4, help="steps before them")
    add("--within", type=float, default=1e6, metavar="SECONDS", help="then stop, and say so")
    add("--out", type=Path, default=reporting.RESULTS, help="folder of the report")
    add("--name", help="of the report")
    add("--child", type=Path, help=argparse.SUPPRESS)
    given, begun = parser.parse_args(), time.monotonic()
    if given.child:
        child(given.child)
        return
    import torch

    gpu = torch.cuda.is_available()
    names = given.sizes or "6x256,12x512" + (",12x768,24x1024" if gpu else "")
    sizes = [tuple(map(int, size.split("x"))) for size in names.split(",")]
    setups = given.setups.split(",")
    if given.depths:
        widths = dict.fromkeys(width for _, width in sizes)
        sizes = [(int(depth), width) for width in widths for depth in given.depths.split(",")]
        setups = setups[-1:]
    sequences = [int(length) for length in (given.sequences or "128,512").split(",")]
    job = {
        "tokens": given.tokens or (65536 if gpu else 2048),
        "shapes": [[*size, sequence] for sequence in sequences for size in sizes],
        "device": "cuda" if gpu else "cpu",
        **{name: getattr(given, name) for name in ("vocab_size", "warmup", "steps")},
    }
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        for turn in range(given.rounds):
            place = turn % len(setups)  # each round begins with another setup
            for setup in setups[place:] + setups[:place]:
                left = given.within - (time.monotonic() - begun)
                found, error = run(job | {"setup": setup}, Path(folder), left)
                rows += [{"round": turn + 1, "setup": setup, **each} for each in found]
                if error:
                    missing.append(f"round {turn + 1}, {setup}: {error}.")
    if not rows:
        sys.exit("Nothing was measured: " + " ".join(missing))
    frame = pd.DataFrame([row for row in rows if "error" not in row])
    missing += [
        f"{row['setup']} at {row['depth']} × {row['width']}, sequence {row['sequence']}: "
        f"{row['error']}."
        for row in rows
        if "error" in row
    ]
    tables = {"Steps": summary(frame, job["tokens"])}
    if given.depths:
        tables["A line through the depths"] = lines(frame)
    options = {"notes": [*NOTES, *missing], "seconds": time.monotonic() - begun}
    name = given.name or f"throughput-{job['device']}"
    report = given.out, name, "Training throughput", tables
    print(reporting.write_report(*report, formats=FORMATS, **options))


NOTES = (
    "A step's time includes making its batch; on a GPU StackBERT's are made before, by a thread.",
    "its time ÷ StackBERT's: the median of the ratios within each round, with their range.",
    "MFU: the arithmetic of StackBERT's step as a share of a large matrix product's rate.",
    "Peak memory: of the GPU, or of the whole process. First step: tuning and compiling included.",
)
FORMATS = dict.fromkeys(("first step, s", "ms a layer", "intercept, ms"), "{:.1f}")
FORMATS |= {"tokens/s": "{:,.0f}", "MFU": "{:.0%}", "peak memory, GB": "{:.2f}"}
FORMATS["largest deviation"] = "{:.1%}"


def run(job: dict[str, Any], folder: Path, left: float) -> tuple[list[dict[str, Any]], str]:
    """A process that measures all shapes of a setup: its results, and why others are missing."""
    path, results = folder / "job.json", folder / "results.jsonl"
    path.write_text(json.dumps(job | {"results": str(results)}), encoding="utf-8")
    results.write_text("")
    # transformers' Trainer would share the batch among all GPUs that it sees.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": visible if job["device"] == "cuda" else ""}
    command, error = [sys.executable, __file__, "--child", str(path)], ""
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=max(left, 0.0)
        )
        if done.returncode:
            error = f"exit code {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])}"
    except subprocess.TimeoutExpired:
        error = "no time left"
    whole = results.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()], error


def summary(frame: pd.DataFrame, tokens: int) -> pd.DataFrame:
    """A row a shape and setup: medians over rounds, and the ratio to StackBERT's time."""
    frame = frame.assign(median=frame.seconds.map(statistics.median))
    by_round = frame.pivot_table(index=[*SHAPE, "round"], columns="setup", values="median")
    ours = next((name for name in by_round if name.startswith("stackbert")), None)
    rows = []
    for (*shape, setup), group in frame.groupby([*SHAPE, "setup"], sort=False):
        ratio = ""
        if ours is not None and setup != ours:
            ratios = (by_round[setup] / by_round[ours]).loc[tuple(shape)].dropna()
            ratio = reporting.spread(ratios) if len(ratios) else ""
        milliseconds = 1000 * group.seconds.explode().astype(float)
        last = group.iloc[-1]
        rows.append(
            {
                "model": f"{shape[0]} × {shape[1]}, sequence {shape[2]}",
                "setup": setup,
                "how": last.how,
                "ms a step": reporting.spread(milliseconds, "{:,.1f}"),
                "tokens/s": 1000 * tokens / milliseconds.median(),
                "its time ÷ StackBERT's": ratio,
                "MFU": group.mfu.median(),
                "peak memory, GB": group.peak_memory.max() / 1e9,
                "first step, s": group.first_step.median(),
            }
        )
    return pd.DataFrame(rows)


def lines(frame: pd.DataFrame) -> pd.DataFrame:
    """The straight line of least squares through the depths of each width and sequence."""
    frame = frame.assign(median=1000 * frame.seconds.map(statistics.median))
    rows = []
    for (width, sequence), group in frame.groupby(["width", "sequence"]):
        medians = group.groupby("depth")["median"].median()
        slope, intercept = np.polyfit(medians.index, medians, 1)
        off = (medians / (intercept + slope * medians.index) - 1).abs().max()
        shape = {"width": width, "sequence": sequence, "ms a layer": slope}
        rows.append(shape | {"intercept, ms": intercept, "largest deviation": off})
    return pd.DataFrame(rows)


class Clock:
    """Seconds a step, read after waiting for the device: on a GPU twice, else after every step."""

    def __init__(self, job: dict[str, Any]) -> None:
        from stackbert.machine import pick_device, synchronise

        self.device = pick_device()
        self.wait = lambda: synchronise(self.device)
        self.block = max(1, job["steps"] // 2) if self.device.type == "cuda" else 1
        self.warmup, self.done = job["warmup"], 0
        self.seconds: list[float] = []
        self.first_step = 0.0
        self.at = time.perf_counter()

    def tick(self) -> None:
        """Call at the end of every step."""
        self.done += 1
        timed = self.done - self.warmup
        if self.done > 1 and (timed < 0 or timed % self.block):
            return
        self.wait()
        now = time.perf_counter()
        if self.done == 1:
            self.first_step = now - self.at
        if timed > 0:
            self.seconds.append((now - self.at) / self.block)
        self.at = now


def child(path: Path) -> None:
    """Measure every shape of a job, and write each result as soon as it is there."""
    import gc
    import resource

    import torch

    from stackbert.machine import keep_memory

    job = json.loads(path.read_text(encoding="utf-8"))
    ours = job["setup"].startswith("stackbert")
    if ours:
        keep_memory()  # as `pretrain` does
    with Path(job["results"]).open("a", encoding="utf-8") as file:
        for depth, width, sequence in job["shapes"]:
            rows = max(1, job["tokens"] // sequence)
            result: dict[str, Any] = {"error": "out of memory"}
            # A batch that does not fit is cut into parts for the Trainer, as its user would do.
            for parts in (1,) if ours else (1, 2, 4, 8, 16):
                gc.collect()
                torch.compiler.reset()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                train = with_stackbert if ours else with_transformers
                try:
                    result = train(job, depth, width, sequence, rows, parts)
                except torch.OutOfMemoryError:
                    continue
                memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                if torch.cuda.is_available():
                    memory = torch.cuda.max_memory_allocated()
                result["peak_memory"] = memory
                break
            shape = {"depth": depth, "width": width, "sequence": sequence}
            file.write(json.dumps(shape | result) + "\n")
            file.flush()


def make_recipe(depths: Iterable[int], width: int, steps: int, **fields: Any) -> "Recipe":  # noqa: ANN401
    """As many steps at every depth of a BERT with heads of 64 units."""
    from stackbert.recipes import parse_recipe

    heads = {"num_attention_heads": max(1, width // 64), "intermediate_size": 4 * width}
    model = {"hidden_size": width, "type": fields.pop("type", "bert"), **heads}
    stages = [{"depth": depth, "steps": steps} for depth in depths]
    usual = {"name": "benchmark", "precision": "bf16", "compile": False}
    return parse_recipe({**usual, "model": model, "stages": stages, **fields}, "the benchmark")


def with_transformers(
    job: dict[str, Any], depth: int, width: int, sequence: int, rows: int, parts: int
) -> dict[str, Any]:
    """transformers' Trainer on full blocks of tokens, as its masked-LM example sets it up."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    from stackbert.corpus.tokenizer import SPECIAL
    from stackbert.machine import fastest_precision

    clock, fast = Clock(job), "-fast" in job["setup"]
    bf16 = fast and fastest_precision(clock.device) == "bf16"
    dropout = 0.0 if job["setup"].endswith("-dropout0") else 0.1
    steps = job["warmup"] + job["steps"]

    class Ticking(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            clock.tick()

    set_seed(0)
    draw = np.random.default_rng(0)
    blocks = draw.integers(len(SPECIAL), job["vocab_size"], (rows * steps, sequence)).tolist()
    plain = {"token_type_ids": [0] * sequence, "attention_mask": [1] * sequence}
    words = [*SPECIAL, *(f"w{n}" for n in range(job["vocab_size"] - len(SPECIAL)))]
    pieces = WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    roles: dict[str, Any] = dict(zip(names, SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(pieces), **roles)
    config = BertConfig(
        vocab_size=job["vocab_size"],
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=max(512, sequence),
    )
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        trainer = Trainer(
            model=BertForMaskedLM(config),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=rows // parts,
                gradient_accumulation_steps=parts,
                bf16=bf16,
                torch_compile=fast,
                use_cpu=clock.device.type == "cpu",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=[{"input_ids": block, **plain} for block in blocks],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASK_RATE),
            callbacks=[Ticking()],
        )
        loss = trainer.train().training_loss
    how = ["bf16" if bf16 else "fp32", *(["compiled"] if fast else [])]
    how += [f"batch in {parts} parts"] if parts > 1 else []
    return _result(clock, loss, how)


def with_stackbert(
    job: dict[str, Any], depth: int, width: int, sequence: int, rows: int, parts: int
) -> dict[str, Any]:
    """StackBERT's batches and steps, autotuned as for a long run."""
    from stackbert.batches.batches import training_plan
    from stackbert.pretraining.autotune import autotune
    from stackbert.pretraining.synthetic import SyntheticCorpus
    from stackbert.pretraining.trainer import Trainer, recipe_model, rows_at_once, stage_flops

    steps = job["warmup"] + job["steps"]
    compile = {"stackbert-eager": False, "stackbert-compiled": True}.get(job["setup"], "auto")
    # What TrainingArguments sets by default.
    adamw = {"lr": 5e-5, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}
    shape = {"sequences": rows, "sequence_length": sequence}
    fields = {"objective": {"mask_rate": MASK_RATE}, "optimizer": adamw, "precision": "auto"}
    recipe = make_recipe([depth], width, steps, batch=shape, compile=compile, **fields)
    corpus = SyntheticCorpus(job["vocab_size"])
    clock = Clock(job)
    recipe, rate = autotune(recipe, corpus, device=clock.device, seconds=1e6)
    plan = training_plan(recipe, corpus)
    trainer = Trainer(recipe_model(recipe, corpus.vocabulary, depth), recipe, device=clock.device)
    trainer.micro_batch = recipe.stage(0).micro_batch
    batches = map(plan.batch, range(steps))
    for number, batch in enumerate(list(batches) if clock.device.type == "cuda" else batches):
        result = trainer.step(number, batch, 1.0 - number / steps)
        clock.tick()
    how = [recipe.precision, "compiled" if recipe.compile else "not compiled"]
    at_once = rows_at_once(trainer.micro_batch, rows, sequence, clock.device)
    how.append(f"{at_once} rows at once")
    (flops,) = stage_flops(recipe, corpus)
    mfu = flops / statistics.median(clock.seconds) / rate
    return _result(clock, float(result[0]), how, mfu)


def _result(clock: Clock, loss: float, how: list[str], mfu: float = np.nan) -> dict[str, Any]:
    return {
        "seconds": clock.seconds,
        "first_step": clock.first_step,
        "loss": loss,
        "how": ", ".join(how),
        "mfu": mfu,
    }


if __name__ == "__main__":
    main()
