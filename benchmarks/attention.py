"""How long measuring attention takes, and how much memory.

    python benchmarks/attention.py

256 sentences of 128 tokens through a model of BERT-base's shape, with random weights (time and
memory do not depend on them), and everything else that `measure_attention` does.
"""

import resource
import time

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from stackbert.attention.measure import measure_attention

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
SENTENCES, LENGTH, WORDS = 256, 128, 1000


def main() -> None:
    """Measure once and print a line."""
    words = {word: at for at, word in enumerate([*SPECIAL, *map(str, range(WORDS))])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, **dict(zip(NAMES, SPECIAL, strict=True))
    )
    torch.manual_seed(0)
    model = BertModel(BertConfig(vocab_size=32_768))
    drawn = np.random.default_rng(0).integers(0, WORDS, (SENTENCES, LENGTH - 2))
    text = [" ".join(map(str, row)) for row in drawn]
    begun = time.perf_counter()
    measure_attention(model, text=text, tokenizer=tokenizer, max_length=LENGTH)
    seconds = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{SENTENCES} sentences of {LENGTH} tokens: {seconds:.1f} s, peak memory {memory:.2f} GB")


if __name__ == "__main__":
    main()
