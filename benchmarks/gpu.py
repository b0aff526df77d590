"""The first thing to run on a GPU: is it right, how fast is it, and where does the time go?

    PYTHONPATH=src python benchmarks/gpu.py --corpus corpus     # everything, some ten minutes
    PYTHONPATH=src python benchmarks/gpu.py mfu kernels         # two of its parts
    PYTHONPATH=src python benchmarks/gpu.py --cpu --tiny        # to see that it runs

Every part ends within a minute and names what is left of it; stacking takes three runs of 75 s.
"""

import argparse
import itertools
import signal
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import throughput
from stackbert import encoder
from stackbert.batches.batches import Batch, training_plan
from stackbert.machine import gpu_settings, matrix_rate, synchronise
from stackbert.pretraining.run import pretrain
from stackbert.pretraining.synthetic import SyntheticCorpus
from stackbert.pretraining.trainer import Trainer, recipe_model, stage_flops
from stackbert.recipe import Recipe

MINUTE, RUN = 58, 75  # seconds
ADAMW = {"name": "adamw", "clip_norm": 1.0, "lr": 1e-3}
MUON = {"name": "muon", "betas": (0.9, 0.98), "weight_decay": 0.1, "lr": 2e-3}
begun, left = time.monotonic(), list[str]()


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - begun:4.0f}] {text}", flush=True)


def each(cases: Iterable[Any]) -> Iterator[Any]:
    """The cases in turn; what a part has not finished is in `left`."""
    cases = list(cases)
    for place, case in enumerate(cases):
        left[:] = map(str, cases[place:])
        yield case


def start(recipe: Recipe, device: str, words: int, tokens: int) -> tuple[Trainer, list[Batch], int]:
    """A trainer, its batches of random tokens, and the FLOPs of a step of its first stage."""
    corpus = SyntheticCorpus(words, tokens)
    model = recipe_model(recipe, corpus.vocabulary, recipe.stages[0].depth)
    batches = map(training_plan(recipe, corpus).batch, range(recipe.total_steps))
    trainer = Trainer(model, recipe, device=torch.device(device))
    return trainer, list(batches), stage_flops(recipe, corpus)[0]


def seconds(device: str, work: Callable[..., object], *inputs: Any) -> float:  # noqa: ANN401
    """The median of five turns, after two that do not count."""
    found = []
    for _ in range(7):
        synchronise(torch.device(device))
        at = time.perf_counter()
        work(*inputs)
        synchronise(torch.device(device))
        found.append(time.perf_counter() - at)
    return statistics.median(found[2:])


def short_run(device: str, **fields: object) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of ten steps at 2 × 128 and ten at 4 × 128."""
    batch = {"sequences": 8, "sequence_length": 64}
    recipe = throughput.make_recipe((2, 4), 128, 10, batch=batch, **fields)
    trainer, batches, _ = start(recipe, device, 512, 512)
    losses = []
    for step, rows in enumerate(batches):
        if step == 10:
            trainer.grow(4, step)
        losses.append(trainer.step(step, rows, 1.0)[0])
    return list(map(float, losses)), trainer.model.state_dict()


def timed(given: Any, depth: int, width: int, **how: object) -> tuple[Trainer, Batch]:  # noqa: ANN401
    """A line about the steps of one shape."""
    rows, length, words = (4, 32, 512) if given.tiny else (512, 128, 32768)
    batch = {"sequences": rows, "sequence_length": length}
    recipe = throughput.make_recipe([depth], width, 1, batch=batch, **how)
    trainer, (part,), flops = start(recipe, given.device, words, 1 << 20)
    at = time.perf_counter()
    float(trainer.step(0, part, 0.1)[0])
    first = time.perf_counter() - at
    taken = seconds(given.device, trainer.step, 1, part, 0.1)
    line = f"{1e3 * taken:.1f} ms, {rows * length / taken:,.0f} tokens/s, MFU "
    line += f"{flops / taken / given.rate:.1%}, first step {first:.1f} s"
    if given.device == "cuda":
        line += f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
        torch.cuda.reset_peak_memory_stats()
    say(f"{depth} × {width} {how or ''}: {line}")
    return trainer, part


def right(given: argparse.Namespace) -> None:
    """Twenty losses with a growth, against the CPU's."""
    kinds = (("bert", ADAMW), ("roberta-prelayernorm", MUON), ("modernbert", MUON))
    for kind, optimizer in each(kinds[: 1 if given.tiny else 3]):
        fields = {"type": kind, "optimizer": optimizer}
        expected, _ = short_run("cpu", **fields, precision="fp32")
        ways = ("fp32", False, 1e-3), ("bf16", False, 1e-2), ("bf16", True, 1e-2)
        for precision, compile, allowed in ways[given.tiny : 2 if given.cpu else 3]:
            losses, _ = short_run(given.device, **fields, precision=precision, compile=compile)
            off = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
            how = f"{kind}, {precision}, compile={compile}: {losses[0]:.3f} to {losses[-1]:.3f}"
            say(f"{how}, {off:.1e} off: {'the same' if off < allowed else 'NOT THE SAME'}")


def ceilings(given: argparse.Namespace) -> None:
    """Rates of copies, of the models' products and of attention."""
    rows, options = 256 if given.tiny else 65536, {"device": given.device, "dtype": torch.bfloat16}
    x, y = torch.empty(2, rows << 13, **options)
    say(f"copies {4e-12 * x.numel() / seconds(given.device, x.copy_, y):.2f} TB/s")
    shapes = ((768, 768), (768, 2304), (768, 3072), (3072, 768), (1024, 4096))
    for inner, outer in each(shapes[: 1 if given.tiny else 5]):
        x, w = torch.randn(rows, inner, **options), torch.randn(outer, inner, **options)
        y, line = F.linear(x, w), f"{rows} × {inner} → {outer}, TFLOP/s:"
        for name, a, b in (("forward", x, w.T), ("dW", y.T, x), ("dX", y, w)):
            rate = 2e-12 * rows * inner * outer / seconds(given.device, torch.mm, a, b)
            line += f" {name} {rate:.1f}"
        say(line)
    attention = F.scaled_dot_product_attention
    for length in each((64,) if given.tiny else (128, 512)):
        parts = torch.randn(3, rows // length, 12, length, 64, requires_grad=True, **options)
        taken = 1e3 * seconds(given.device, lambda qkv: attention(*qkv).sum().backward(), parts)
        say(f"attention, {rows // length} × 12 × {length} × 64, and back: {taken:.2f} ms")


def mfu(given: argparse.Namespace) -> None:
    """Steps of several shapes, eager and compiled, with bf16 norms, Muon, and q, k, v apart."""
    sizes = ((2, 64),) if given.tiny else ((12, 768), (3, 768), (6, 768), (12, 1024), (24, 1024))
    ways: list[dict[str, Any]] = [{"compile": compile} for compile in given.compiles]
    variants = [ways[0] | {"bf16_norms": True}, {"optimizer": MUON}]
    for size, how in each([*itertools.product(sizes, ways), *((sizes[0], v) for v in variants)]):
        timed(given, *size, **how)
    together, encoder._linear = encoder._linear, lambda x, *maps: [linear(x) for linear in maps]
    say("q, k and v in three products:")
    timed(given, *sizes[0])
    encoder._linear = together


def waits(given: argparse.Namespace) -> None:
    """Whether a step waits for the GPU."""
    for optimizer, compile in each(itertools.product((ADAMW, MUON), given.compiles)):
        trainer, rows = timed(given, 3, 64, optimizer=optimizer, compile=compile)
        if given.cpu:
            continue
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.step(9, rows, 0.1)
            say("does not wait")
        except RuntimeError as error:
            say(f"WAITS: {error} {traceback.extract_tb(error.__traceback__)[-3:]}")
        torch.cuda.set_sync_debug_mode(0)


def repeats(given: argparse.Namespace) -> None:
    """Whether a run repeats to the bit."""
    ways = itertools.product(given.compiles, (False, True)[given.tiny :])
    for compile, deterministic in each(ways):
        with gpu_settings(torch.device(given.device), deterministic=deterministic):
            one, two = (short_run(given.device, optimizer=MUON, compile=compile)[1] for _ in "ab")
        same = "equal" if all(torch.equal(one[name], two[name]) for name in one) else "DIFFER"
        say(f"compile={compile}, deterministic={deterministic}: two runs {same}")


def kernels(given: argparse.Namespace) -> None:
    """What a step's time goes to."""
    kind = "self_cpu_time_total" if given.cpu else "self_device_time_total"
    for compile in each(given.compiles):
        trainer, rows = timed(given, *((2, 64) if given.tiny else (12, 768)), compile=compile)
        with torch.profiler.profile() as profile:
            trainer.step(9, rows, 0.1)
            synchronise(torch.device(given.device))
        print(profile.key_averages().table(sort_by=kind, row_limit=15, max_name_column_width=60))


def trainer(given: argparse.Namespace) -> None:
    """transformers' Trainer beside it."""
    shape = (2, 64, 32, 4, 1) if given.tiny else (12, 768, 128, 256, 1)
    job = {"vocab_size": 30522, "warmup": 3, "steps": 6}
    setups = ("stackbert-eager", "trainer", "stackbert-compiled", "trainer-fast")
    for setup in each(setups[: 2 if given.cpu else 4]):
        train = throughput.with_stackbert if "stack" in setup else throughput.with_transformers
        found = train({**job, "setup": setup}, *shape)
        say(f"{setup}: {1e3 * statistics.median(found['seconds']):.1f} ms a step, {found['how']}")


def stacking(given: argparse.Namespace) -> None:
    """Stack, shallow and scratch, 75 s of training each."""
    if given.corpus is None:
        say("left out, as it needs --corpus, a folder that `stackbert corpus` has made")
        return
    depths, width, rows, warmup = ((1, 2), 64, 8, 1) if given.tiny else ((3, 6, 12), 768, 256, 30)
    length: dict[str, Any] = {"steps": 4} if given.tiny else {"budget": f"{RUN}s"}
    fields = {"type": "roberta-prelayernorm", "optimizer": MUON, "objective": {"mask_rate": 0.3}}
    fields["schedule"] = {"warmup_steps": warmup, "rewarmup_steps": warmup}
    fields["evaluation"] = {"sequences": 2 * rows}
    fields |= {"batch": {"sequences": rows, "sequence_length": 128}, "compile": not given.cpu}
    runs = {"stack": depths, "shallow": depths[:1], "scratch": depths[-1:]}
    with tempfile.TemporaryDirectory() as folder:
        for name in each(runs):
            recipe = throughput.make_recipe(runs[name], width, 300, **fields)
            result = pretrain(recipe, corpus=given.corpus, out=Path(folder) / name, **length)
            say(f"{name}: loss {result.loss:.3f}\n{result.table()}")


PARTS = {p.__name__: p for p in (right, ceilings, mfu, waits, repeats, kernels, trainer, stacking)}


def main(words: list[str] | None = None) -> None:
    """Run the parts, each within its time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = "; ".join(f"{name}: {part.__doc__}" for name, part in PARTS.items())
    parser.add_argument("parts", nargs="*", metavar="PART", help=parts)
    parser.add_argument("--corpus", type=Path, help="for stacking")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, to see that it runs")
    given = parser.parse_args(words)
    given.device, name = ("cpu", "CPU") if given.cpu else ("cuda", torch.cuda.get_device_name())
    given.compiles = (False,) if given.cpu else (True, False)
    given.rate = matrix_rate(torch.device(given.device), "bf16")
    say(f"torch {torch.__version__}, {name}, {given.rate / 1e12:.1f} TFLOP/s in bf16")
    for part in given.parts or PARTS:
        say(f"== {part}: {PARTS[part].__doc__}")
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.alarm(3 * (RUN + MINUTE) if part == "stacking" else MINUTE)
        try:
            PARTS[part](given)
        except KeyboardInterrupt:
            say(f"no time is left for {', '.join(left)}")
        except Exception:  # the other parts are worth their minute all the same
            say(f"FAILED: {traceback.format_exc(limit=-4)}")
        signal.alarm(0)


if __name__ == "__main__":
    main()
