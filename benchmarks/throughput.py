"""Seconds a step: StackBERT beside what a user would otherwise run, on the same machine.

    python benchmarks/throughput.py --rounds 5
    python benchmarks/throughput.py --sizes 12x768 --depths 2,4,8,12 --rounds 3

The contenders, same model, same batch, same AdamW:

    (a)           transformers' Trainer as its masked-LM example runs it: fp32, dropout 0.1
    (b)           the same with bf16 and torch_compile; bf16 only where the machine has it
    (c)           StackBERT with precision, micro-batch and compilation as a long run settles them
    (c-eager)     the same, never compiled
    (c-compiled)  the same, always compiled
    (a-dropout0)  (a) without dropout
    (b-dropout0)  (b) without dropout

Every measurement is a process of its own and they take turns, one at a time, so that a machine
whose speed drifts treats them alike. With --depths, StackBERT is timed at these depths instead and
a straight line is drawn through them. The report goes to benchmarks/results/ as JSON and Markdown.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import reporting
from comparison import comparison, lines, notes
from contenders import Contender, Job, Shape
from reporting import Report
from turns import Processes, measure

TRAINER = "transformers' Trainer"
CONTENDERS = ("a", "b", "c", "c-eager", "c-compiled", "a-dropout0", "b-dropout0")


def contenders(given: argparse.Namespace, *, bf16: bool, gpu: bool) -> list[Contender]:
    """Those asked for, in the order of the table.

    Args:
        given: the command line.
        bf16: whether the machine has it.
        gpu: whether it is one.
    """
    fast = "bf16, torch_compile" if bf16 else "fp32, torch_compile"
    known = {
        "a": Contender("a", "trainer", f"{TRAINER}, fp32"),
        "b": Contender("b", "trainer", f"{TRAINER}, {fast}", bf16=bf16, compile=True),
        "c": Contender("c", "stackbert", "StackBERT", dropout=0.0, compile="auto"),
        "c-eager": Contender("c-eager", "stackbert", "StackBERT", dropout=0.0),
        "c-compiled": Contender("c-compiled", "stackbert", "StackBERT", dropout=0.0, compile=True),
        "a-dropout0": Contender(
            "a-dropout0", "trainer", f"{TRAINER}, fp32, without dropout", dropout=0.0
        ),
        "b-dropout0": Contender(
            "b-dropout0",
            "trainer",
            f"{TRAINER}, {fast}, without dropout",
            dropout=0.0,
            bf16=bf16,
            compile=True,
        ),
    }
    # Of a line through depths all must be compiled or none, as in a run; a run on a CPU seldom is.
    asked = given.contenders or ["a", "b", "c"]
    if given.depths and not given.contenders:
        asked = ["c-compiled" if gpu and not given.smoke else "c-eager"]
    elif given.smoke and not given.contenders:
        asked = ["a", "b", "c-eager"]  # settling takes a while, also on tiny shapes
    if given.depths:
        asked = [name for name in asked if known[name].kind == "stackbert"]
    elif given.also_without_dropout:
        asked = [*asked, "a-dropout0", "b-dropout0"]
    return [known[name] for name in CONTENDERS if name in asked]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--sizes", type=_list(_size), help="DEPTHxWIDTH,…; 6x256,12x512, on a GPU also two larger")
    add("--sequences", type=_list(int), help="tokens a row; 128,512")
    add("--tokens", type=int, help="a step's; 2048 on a CPU, 65536 on a GPU")
    add("--vocab-size", type=int, help="30522, or the corpus'")
    add("--corpus", type=Path, help="from 'stackbert corpus'; by default tokens are made up")
    add("--contenders", type=_list(str), help=f"of {','.join(CONTENDERS)}; a,b,c")
    add("--also-without-dropout", action="store_true", help="(a) and (b) without dropout, too")
    add("--depths", type=_list(int), help="time StackBERT at these depths, draw a line")
    add("--rounds", type=int, help="processes of each contender; 5")
    add("--steps", type=int, help="timed in each process; 10")
    add("--warmup", type=int, help="steps before them; 4")
    add("--device", choices=("cpu", "cuda"), help="by default a GPU where there is one")
    add("--threads", type=int, help="OMP_NUM_THREADS of the contenders")
    add("--shapes-per-process", type=int, default=1, help="to save start-ups, several in a process")
    add("--within", type=float, default=1e9, metavar="SECONDS", help="then stop, and say so")
    add("--out", type=Path, default=reporting.RESULTS, help="folder of the report")
    add("--name", help="of the report's two files; throughput-DEVICE or depths-DEVICE")
    add("--smoke", action="store_true", help="tiny shapes on one thread, to see that it runs")
    given = parser.parse_args()
    unknown = set(given.contenders or ()) - set(CONTENDERS)
    if unknown:
        parser.error(f"there is no contender {', '.join(sorted(unknown))}")
    given.backend = "inductor"
    if given.smoke:
        _make_small(given)
    return given


def _make_small(given: argparse.Namespace) -> None:
    """Fill in what --smoke runs; what was asked for stays."""
    small = {
        "sizes": [(2, 64)],
        "sequences": [32],
        "tokens": 128,
        "rounds": 1,
        "steps": 2,
        "warmup": 1,
        "threads": 1,
        "device": "cpu",
    }
    for name, value in small.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if given.vocab_size is None and given.corpus is None:
        given.vocab_size = 1000
    # Kernels take half a minute to make; the way there is the same without.
    given.backend = "eager"


def _list(kind: Any) -> Any:  # noqa: ANN401 (a type or a function, for argparse)
    def parse(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = "list"  # argparse's error names it
    return parse


def _size(text: str) -> tuple[int, int]:
    depth, hidden = text.lower().split("x")
    return int(depth), int(hidden)


def main() -> None:
    """Measure, and write the report."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # and end what was started
    begun = time.monotonic()
    machine = reporting.machine()
    with tempfile.TemporaryDirectory(prefix="throughput-") as name:
        device = given.device or "cuda"
        processes = Processes(Path(name), device, given.threads, given.within)
        probe = processes.probe()
        if given.device and probe["device"] != given.device:
            sys.exit(f"There is no device '{given.device}' here.")
        gpu = probe["device"] == "cuda"
        sizes = given.sizes or [(6, 256), (12, 512), *([(12, 768), (24, 1024)] if gpu else [])]
        if given.depths:
            widths = dict.fromkeys(hidden for _, hidden in sizes)
            sizes = [(depth, hidden) for hidden in widths for depth in given.depths]
        tokens = given.tokens or (65536 if gpu else 2048)
        sequences = given.sequences or [128, 512]
        # All sizes at one sequence length, then at the next: --within cuts off the end.
        shapes = tuple(
            Shape(size[0], size[1], sequence, tokens) for sequence in sequences for size in sizes
        )
        steps = given.steps or 10
        jobs = [
            Job(
                contender,
                shapes,
                given.vocab_size or (None if given.corpus else 30522),
                str(given.corpus) if given.corpus else None,
                warmup=given.warmup or 4,
                steps=steps,
                block=max(1, steps // 2) if gpu else 1,
                compile_backend=given.backend,
            )
            for contender in contenders(
                given, bf16=probe["rates"]["bf16"] > probe["rates"]["fp32"], gpu=gpu
            )
        ]
        figures = measure(processes, jobs, given.rounds or 5, given.shapes_per_process)
    figures.sort(key=lambda each: shapes.index(each.shape))
    table, ratios = comparison(figures)
    results = {"machine": probe, "figures": [each.plain() for each in figures], "ratios": ratios}
    tables = [table]
    text = given.corpus.name if given.corpus else "made up, tokens evenly drawn"
    said = notes(probe, figures, text=text, backend=given.backend)
    if given.depths:
        tables, results["lines"], fitted = lines(figures)
        said = [*fitted, *said]
    kind = "smoke" if given.smoke else probe["device"]
    report = Report(
        given.name or f"{'depths' if given.depths else 'throughput'}-{kind}",
        "Cost of a step by depth" if given.depths else "Training throughput",
        tuple(tables),
        results,
        settings={
            "tokens_a_step": tokens,
            "vocab_size": jobs[0].vocab_size,
            "mask_rate": 0.15,
            "warmup": jobs[0].warmup,
            "steps": steps,
            "steps_a_reading": jobs[0].block,
            "rounds": given.rounds or 5,
            "shapes_a_process": given.shapes_per_process,
        },
        machine=machine,
        notes=tuple(said),
        seconds=time.monotonic() - begun,
        smoke=given.smoke,
    )
    path = report.write(given.out)
    print(f"\n{report.markdown()}\n{path}")


if __name__ == "__main__":
    main()
