"""One contender of throughput.py, as a process of its own: from its start to its figures.

    python benchmarks/one_contender.py JOB.json RESULTS.jsonl

Each kind trains a BERT with a masked-LM head, on the same text with the same AdamW, as its user
would have it run. A step's time is the whole period from the end of one step to the end of the
next, the making of its batch included, whoever makes it and wherever.
"""

import contextlib
import gc
import itertools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from contenders import Clock, Job, Shape

MASK_RATE = 0.15
MADE_UP_TOKENS = 1 << 20
_MOST_ACCUMULATION = 16
_A_LONG_RUN = 1e6
"""Seconds: StackBERT settles what a run that long would."""


class Bench:
    """A process' device and text, shared by the shapes that it measures."""

    def __init__(self, job: Job, folder: Path) -> None:
        import made_up
        import stackbert as sb
        from stackbert.vocabulary import load_vocabulary

        self.job = job
        self.tokenizer_folder: Path | None = None
        if job.corpus is None:
            self.vocabulary = made_up.made_up_vocabulary(job.vocab_size or 30522)
            self.stream = made_up.made_up_stream(folder / "split", self.vocabulary, MADE_UP_TOKENS)
        else:
            corpus = sb.open_corpus(job.corpus)
            self.stream, self.vocabulary = corpus.train, load_vocabulary(corpus)
            self.tokenizer_folder = corpus.tokenizer_folder
        self.vocab_size = job.vocab_size or self.vocabulary.tokenizer_size
        if self.vocab_size < self.vocabulary.tokenizer_size:
            raise SystemExit(
                f"--vocab-size {self.vocab_size} is below the corpus' "
                f"{self.vocabulary.tokenizer_size} tokens."
            )
        # StackBERT rounds the embedding up to a multiple of 64 rows, its users' models have that.
        self.vocabulary = replace(self.vocabulary, size=-(-self.vocab_size // 64) * 64)
        import torch

        from stackbert.pretraining.machine import pick_device

        self.device = pick_device()
        if self.device.type == "cuda":
            torch.cuda.init()  # type: ignore[no-untyped-call]  # before its memory is asked

    def clock(self) -> Clock:
        """A clock that waits for this device."""
        from stackbert.pretraining.machine import synchronise

        return Clock(self.job, lambda: synchronise(self.device))

    def forget(self) -> None:
        """Give back what the last shape took."""
        import torch

        gc.collect()
        if self.job.contender.kind == "trainer":  # StackBERT's graphs serve every depth
            torch.compiler.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> int:
        """Bytes: of the GPU since `forget`, or of this process."""
        import torch

        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


def train_with_transformers(bench: Bench, shape: Shape, accumulation: int) -> dict[str, Any]:
    """transformers' Trainer on full blocks of text, as its masked-LM example sets it up.

    Args:
        bench: device and text.
        shape: model and batch.
        accumulation: parts that a batch is cut into; 1 unless it does not fit.
    """
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    job, contender, clock = bench.job, bench.job.contender, bench.clock()

    class Timer(TrainerCallback):
        """Reads the clock around the steps."""

        def __init__(self) -> None:
            self.inside: list[float] = []
            self._begun = 0.0

        def on_train_begin(self, *_: object, **__: object) -> None:
            clock.start()

        def on_step_begin(self, *_: object, **__: object) -> None:
            self._begun = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            before = len(clock.seconds)
            clock.tick()
            if len(clock.seconds) > before and job.block == 1:
                self.inside.append(time.perf_counter() - self._begun)

    set_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=bench.vocab_size,
            hidden_size=shape.hidden,
            num_hidden_layers=shape.depth,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.hidden,
            hidden_dropout_prob=contender.dropout,
            attention_probs_dropout_prob=contender.dropout,
            max_position_embeddings=max(512, shape.sequence),
        )
    )
    timer = Timer()
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=job.warmup + job.steps,
                per_device_train_batch_size=shape.rows // accumulation,
                gradient_accumulation_steps=accumulation,
                bf16=contender.bf16,
                torch_compile=contender.compile is True,
                torch_compile_backend=job.compile_backend if contender.compile is True else None,
                use_cpu=bench.device.type == "cpu",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=_blocks(bench, shape),
            data_collator=DataCollatorForLanguageModeling(
                tokenizer=_tokenizer(bench), mlm_probability=MASK_RATE
            ),
            callbacks=[timer],
        )
        trained = trainer.train()
    return {
        "seconds": clock.seconds,
        "inside": timer.inside,
        "first_step": clock.first_step,
        "loss": trained.training_loss,
        "precision": "bf16" if contender.bf16 else "fp32",
        "accumulation": accumulation,
    }


def _blocks(bench: Bench, shape: Shape) -> Any:  # noqa: ANN401 (torch is not loaded yet)
    """Rows as the example's grouping of texts gives them: lists of Python numbers, all full."""
    from torch.utils.data import Dataset

    # As many rows as the steps use: an epoch's last batch must not be a part of one.
    rows = shape.rows * (bench.job.warmup + bench.job.steps)
    there = len(bench.stream) // shape.sequence
    if not there:
        raise SystemExit(f"The text is shorter than a row of {shape.sequence} tokens.")

    class Blocks(Dataset[dict[str, list[int]]]):
        def __len__(self) -> int:
            return rows

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            start = index % there * shape.sequence
            return {
                "input_ids": bench.stream.read(start, shape.sequence).tolist(),
                "token_type_ids": [0] * shape.sequence,
                "attention_mask": [1] * shape.sequence,
            }

    return Blocks()


def _tokenizer(bench: Bench) -> Any:  # noqa: ANN401 (transformers is not loaded yet)
    """What the collator asks for special ids and random tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from made_up import SPECIAL

    if bench.tokenizer_folder is not None:
        return AutoTokenizer.from_pretrained(bench.tokenizer_folder, local_files_only=True)
    words = [*SPECIAL, *(f"w{i}" for i in range(bench.vocab_size - len(SPECIAL)))]
    pieces = {word: number for number, word in enumerate(words)}
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    fast: Any = PreTrainedTokenizerFast  # untyped
    return fast(
        tokenizer_object=Tokenizer(WordPiece(pieces, unk_token="[UNK]")),
        **dict(zip(names, SPECIAL, strict=True)),
    )


def train_with_stackbert(bench: Bench, shape: Shape) -> dict[str, Any]:
    """StackBERT's own batches and steps, as the loop of a long run settles and takes them."""
    import torch

    from stackbert.batches import BatchPlan, StageShape
    from stackbert.models import create_model, parameter_count
    from stackbert.pretraining.prefetch import AHEAD, batches
    from stackbert.pretraining.trainer import Trainer
    from stackbert.pretraining.tuning import settle

    job, clock = bench.job, bench.clock()
    steps = job.warmup + job.steps
    recipe = _recipe(job, shape, steps)
    plan = BatchPlan(
        bench.stream,
        bench.vocabulary,
        [StageShape(steps, shape.rows, shape.sequence, MASK_RATE)],
        seed=0,
    )
    clock.start()
    settled = settle(recipe, bench.vocabulary, plan, device=bench.device, seconds=_A_LONG_RUN)
    recipe = settled.recipe
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # what follows is the run's, not the settling's
    model = create_model(
        recipe.model, depth=shape.depth, vocabulary=bench.vocabulary, sequence_length=shape.sequence
    )
    trainer = Trainer(
        model,
        recipe.optimizer,
        device=bench.device,
        precision="fp32" if recipe.precision == "fp32" else "bf16",
        micro_batch=recipe.resolved_stage(0).micro_batch,
        seed=0,
        compile=recipe.compile is True,
    )
    flops = trainer.flops(plan.batch(0))
    made = batches(plan, 0, steps, ahead=AHEAD[bench.device.type])
    result = None
    for number, batch in enumerate(made):
        result = trainer.step(number, batch, 1.0 - number / steps)
        clock.tick()
    assert result is not None
    return {
        "seconds": clock.seconds,
        "first_step": clock.first_step,
        "loss": result.masked_lm,
        "precision": recipe.precision,
        "compiled": recipe.compile,
        "micro_batch": trainer.rows_at_once(shape.rows, shape.sequence),
        "settled": settled.notes,
        "parameters": parameter_count(trainer.model),
        "flops": flops,
        "matrix_rate": settled.matrix_rate,
    }


def _recipe(job: Job, shape: Shape, steps: int) -> Any:  # noqa: ANN401 (pydantic is not loaded yet)
    from stackbert.recipe import BatchSpec, ModelSpec, OptimizerSpec, Recipe, Stage

    return Recipe(
        name="throughput",
        model=ModelSpec(
            type="bert",
            hidden_size=shape.hidden,
            num_attention_heads=shape.heads,
            intermediate_size=4 * shape.hidden,
            hidden_dropout_prob=job.contender.dropout,
            attention_probs_dropout_prob=job.contender.dropout,
            max_position_embeddings=max(512, shape.sequence),
        ),
        stages=(Stage(depth=shape.depth, steps=steps),),
        batch=BatchSpec(sequences=shape.rows, sequence_length=shape.sequence),
        # What TrainingArguments sets by default.
        optimizer=OptimizerSpec(
            lr=5e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip_norm=1.0
        ),
        compile=job.contender.compile,
    )


def measure(bench: Bench, shape: Shape) -> dict[str, Any]:
    """One contender at one shape; a lack of memory is a result, not an end.

    A batch that does not fit is cut into parts for transformers' Trainer, as its user would do.
    """
    import torch

    kind = bench.job.contender.kind
    wanted = itertools.takewhile(
        lambda parts: parts <= _MOST_ACCUMULATION and shape.rows % parts == 0,
        (2**n for n in range(10)),
    )
    for accumulation in wanted if kind == "trainer" else (1,):
        with contextlib.suppress(torch.OutOfMemoryError):
            bench.forget()
            if kind == "stackbert":
                found = train_with_stackbert(bench, shape)
            else:
                found = train_with_transformers(bench, shape, accumulation)
            return found | {"peak_memory": bench.peak_memory()}
    return {"error": "out of memory"}


def run(job: Job) -> Iterator[dict[str, Any]]:
    """Measure every shape of a job, each result as soon as it is there."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as name:
        bench = Bench(job, Path(name))
        if job.contender.kind == "stackbert":
            from stackbert.pretraining.machine import keep_memory

            keep_memory()  # as `pretrain` does
        for shape in job.shapes:
            yield asdict(shape) | measure(bench, shape)


def probe() -> dict[str, Any]:
    """What the machine is, and whether it multiplies matrices faster in bf16 than in fp32."""
    import torch

    from stackbert.pretraining.machine import matrix_rate, pick_device

    device = pick_device()
    gpu = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name() if gpu else "the processor",
        "cuda": torch.version.cuda if gpu else None,
        "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if gpu else None,
        "threads": torch.get_num_threads(),
        "rates": {"fp32": matrix_rate(device, "fp32"), "bf16": matrix_rate(device, "bf16")},
    }


def main() -> None:
    """See the module's text; `--probe` in place of a job tells what the machine is."""
    job, results = sys.argv[1], Path(sys.argv[2])
    with results.open("w", encoding="utf-8") as file:
        for result in [probe()] if job == "--probe" else run(Job.read(Path(job))):
            file.write(json.dumps(result) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
