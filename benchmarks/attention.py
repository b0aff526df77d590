"""How long measuring a model's attention takes, and how much memory.

    python benchmarks/attention.py

By default 256 sentences of 128 tokens through a 12 x 768 model with random weights (time and
memory do not depend on them), everything that `measure_attention` does: its maps and measures, the
untrained model, the likeness of all layers. Each round is a process of its own. The report goes to
benchmarks/results/ as JSON and Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import reporting
from corpus_jobs import peak_memory
from reporting import Report, Table

WORDS = 1000


def prepare(folder: Path, depth: int, hidden_size: int) -> None:
    """Save a BERT with random weights and a vocabulary of one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from stackbert.growth.checkpoint import quiet_transformers

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = {word: at for at, word in enumerate([*special, *map(str, range(WORDS))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, **dict(zip(names, special, strict=True))
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32_768,
        hidden_size=hidden_size,
        num_hidden_layers=depth,
        num_attention_heads=max(1, hidden_size // 64),
        intermediate_size=4 * hidden_size,
    )
    with quiet_transformers():
        BertModel(config).save_pretrained(folder)


def measure_once(folder: Path, sentences: int, length: int) -> dict[str, Any]:
    """Measure the model in `folder`; libraries are loaded before the clock starts."""
    import numpy as np
    import scipy.optimize  # noqa: F401
    from transformers import AutoTokenizer, BertModel  # noqa: F401

    import stackbert.growth.checkpoint  # noqa: F401
    from stackbert.attention.measure import measure_attention
    from stackbert.attention.statements import statements

    random = np.random.default_rng(0)
    words = random.integers(0, WORDS, (sentences, length - 2))
    text = [" ".join(map(str, row)) for row in words]
    begun, cpu = time.perf_counter(), time.process_time()
    result = measure_attention(folder, text=text, max_length=length)
    statements(result)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak_memory": peak_memory(),
        "tokens": result.measures.tokens,
    }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--length", type=int, default=128, help="tokens of a sentence")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, to see that it runs")
    parser.add_argument("--out", type=Path, default=reporting.RESULTS)
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.smoke:
        given.rounds, given.sentences, given.length = 1, 8, 16
        given.depth, given.hidden_size = 2, 64
    if given.folder is not None:
        print(json.dumps(measure_once(given.folder, given.sentences, given.length)))
        return
    machine, begun = reporting.machine(), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        prepare(folder, given.depth, given.hidden_size)
        command = [sys.executable, __file__, "--in", str(folder)]
        command += ["--sentences", str(given.sentences), "--length", str(given.length)]
        rounds = []
        for _ in range(given.rounds):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit("The measurement failed.")
            rounds.append(json.loads(done.stdout))
    seconds = [each["seconds"] for each in rounds]
    median = statistics.median(seconds)
    memory = max(each["peak_memory"] for each in rounds)
    shape = f"{given.depth} x {given.hidden_size}"
    row = (
        shape,
        f"{given.sentences:,} of {given.length} tokens",
        f"{median:.1f}",
        f"{min(seconds):.1f} to {max(seconds):.1f}",
        f"{memory / 1e9:.2f} GB",
    )
    columns = ("model", "sentences", "seconds (median)", "range", "peak memory")
    report = Report(
        benchmark="attention",
        title="Measuring attention",
        tables=(Table("measure_attention", columns, (row,)),),
        results=rounds,
        settings={key: value for key, value in vars(given).items() if key not in ("out", "folder")},
        machine=machine,
        notes=("Memory is the most that the process held, libraries included.",),
        seconds=time.perf_counter() - begun,
        smoke=given.smoke,
    )
    report.write(given.out)
    print(report.markdown())


if __name__ == "__main__":
    main()
