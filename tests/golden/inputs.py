"""What the golden record is made of: text, recipes (in inputs.yaml), weights, and digests of them.

Everything is a function of nothing: no download, no clock, no random generator of a library whose
stream may change. Nothing here imports stackbert.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml

from tiny_encoders import word_tokenizer

DATA: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("inputs.yaml").read_text("utf-8"))

# Digests, and the machine


def digest(*arrays) -> str:
    """Of integer arrays, whatever their dtype; None counts as absent."""
    found = hashlib.sha256()
    for array in arrays:
        if array is not None:
            plain = np.ascontiguousarray(np.asarray(array), dtype="<i8")
            found.update(repr(plain.shape).encode() + plain.tobytes())
    return found.hexdigest()[:16]


def summary(array) -> list:
    """Of an array of floats: a digest to the last bit, and the mean for other machines."""
    plain = np.ascontiguousarray(np.asarray(array, dtype="<f8"))
    return [digest(plain.view("<i8")), float(plain.mean())]


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of named tensors, to the last bit, whatever their order."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def json_digest(value) -> str:
    """Of plain values, whatever the order of the keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint() -> dict[str, Any]:
    """What decides about the last bit of a float: the processor, and who does the arithmetic."""
    cpu = Path("/proc/cpuinfo")
    first = cpu.read_text().split("\n\n")[0] if cpu.exists() else ""
    return {
        "cpu": re.findall(r"^(?:model name|cpu family|model|stepping)\s*: (.*)$", first, re.M),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": re.findall(r"\b(?:avx512|amx)_bf16\b", first),
        "libraries": {n: version(n) for n in ("torch", "transformers", "tokenizers", "numpy")},
    }


# Text


def dice(state: int) -> Callable[[int], int]:
    """Throws numbers below its argument: SplitMix64 in plain Python."""

    def below(number: int) -> int:
        nonlocal state
        mask = (1 << 64) - 1
        state = x = (state + 0x9E3779B97F4A7C15) & mask
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & mask
        return (x ^ (x >> 31)) % number

    return below


SYLLABLES = ("ka", "le", "mi", "no", "ru", "sta", "vé", "dor", "für", "pin", "ße", "ço", "3", "ö")
ENDINGS = (".", ".", ".", "!", "?", ",”", "…", ".)")
ODD = (
    "猫は静かに眠る。犬は走る。鳥が鳴く！",
    "\x01\x02\x03",  # gives no token, so the document is dropped
    "Mr. Smith met Dr. J. Watson on 3 May 1891. They paid $3.50… “Why?” he asked. No. 7 won. 🎉",
    "e\u0301te\u0301 nai\u0308ve fac\u0327ade ＦＵＬＬ　ＷＩＤＴＨ ﬁne ½ ² İstanbul",
    "x" * 250 + " " + "long " * 40 + "line without an end",
)


def documents() -> list[str]:
    """Made-up words, of which each limits the next one, with duplicates and odd ones."""
    below, found, word = dice(7), [], 0
    syllables = [[SYLLABLES[below(14)] for _ in range(1 + below(4))] for _ in range(600)]
    for _ in range(230):
        text = ""
        for place in range(3 + below(24)):
            words = []
            for _ in range(4 + below(14)):
                word = (7 * word + below(2)) % 600 if below(10) < 6 else below(1 + below(600))
                words.append("".join(syllables[word]))
            gap = "\n" if place % 6 == 5 else " "
            text += " ".join(words).capitalize() + ENDINGS[below(8)] + gap
        found.append(text.strip())
    return [*found, *found[::23], *ODD]


def corpora(folder: Path) -> dict[str, dict[str, Any]]:
    """Arguments of `build_corpus`, by name; the text is written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("\n\n".join(documents()), encoding="utf-8")
    return {
        "main": {"text": [text], "vocab_size": 700, "validation": 0.1, "strip_accents": True},
        "cased": {"text": [text], "vocab_size": 750, "validation": 0.05, "lowercase": False},
    }


# Recipes


def recipe(**changes) -> dict[str, Any]:
    """A tiny recipe as plain values; mappings are merged field by field."""
    base = DATA["base"]
    merged = {k: {**base[k], **v} for k, v in changes.items() if isinstance(base.get(k), dict)}
    return {**base, **changes, **merged}


RUNS = {name: recipe(**changes) for name, changes in DATA["runs"].items()}
BATCHES = {name: recipe(**changes) for name, changes in DATA["batches"].items()}


# Models

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 64}
SIZES |= {"max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", {}),
    "roberta": ("RobertaForMaskedLM", {"type_vocab_size": 1}),
    "roberta-prelayernorm": ("RobertaPreLayerNormForMaskedLM", {"type_vocab_size": 1}),
    "megatron-bert": ("MegatronBertForMaskedLM", {}),
    "modernbert": ("ModernBertForMaskedLM", {"cls_token_id": 2, "sep_token_id": 3}),
    "electra": ("ElectraForPreTraining", {"embedding_size": 8}),
    "deberta-v2": ("DebertaV2ForMaskedLM", {"relative_attention": True, "position_buckets": 8}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 16, "hidden_dim": 24, "n_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "llama": ("LlamaForCausalLM", {}),
    "bert-untied": ("BertForMaskedLM", {"tie_word_embeddings": False}),
    "albert": ("AlbertForMaskedLM", {"embedding_size": 8}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 24}),
}
"""Those that recipes name, others that growth works on, and two that it refuses."""
TRAINED = [(kind, False) for kind in list(MODELS)[:5]] + [("bert", True), ("megatron-bert", True)]
OPERATORS = {"stack": 6, "interleave": 4, "identity": 3, "identity-noise": 5, "random": 3}
"""Depths to grow to, from 2 layers."""


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of exactly representable steps between -0.2 and 0.2 that depends on its name."""
    at = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    mixed = ((at + np.uint64(zlib.crc32(name.encode()))) * np.uint64(2654435761)) >> np.uint64(7)
    values = ((mixed & np.uint64(0xFFFF)).astype(np.float64) / 65536.0 - 0.5) * 0.4
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def make_model(
    kind: str, depth: int = 2, gain: float = 1.0, **fields
) -> transformers.PreTrainedModel:
    """A tiny model, the same on every machine, in evaluation mode; norms stay near 1."""
    class_name, extra = MODELS[kind]
    model_class = getattr(transformers, class_name)
    sizes = {**SIZES, "num_hidden_layers": depth, **extra, **fields}
    model = model_class(model_class.config_class(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(gain * filled(name, tuple(parameter.shape)) + is_norm)
    return model


def optimizer_state(model: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Moments for every parameter, by name."""
    return {
        name: {"exp_avg": filled(f"{name} first", tuple(p.shape)), "step": torch.tensor(float(at))}
        for at, (name, p) in enumerate(model.named_parameters())
    }


# Attention and fine-tuning

ATTENTION = ("bert", "modernbert", "roberta-prelayernorm")
WORDS = ("good", "bad", *(f"w{number}" for number in range(57)))
TOKENIZER = word_tokenizer(WORDS)


def sentence(number: int, length: int) -> str:
    """Words without a meaning."""
    return " ".join(WORDS[2 + (7 * number + 11 * at) % 57] for at in range(length))


SENTENCES = [sentence(n, length) for n, length in enumerate((12, 19, 15, 20, 11, 17, 20, 13))]


def write_study(folder: Path) -> Path:
    """A tiny model with a tokenizer, and tables with a word that tells the classes apart."""
    make_model("bert-untied").save_pretrained(folder / "model")
    word_tokenizer(WORDS).save_pretrained(folder / "model")  # TOKENIZER is changed by its use
    for name, count, first in (("train", 64, 0), ("dev", 24, 1000)):
        words = [(WORDS[(n // 2 + n) % 2], n) for n in range(first, first + count)]
        rows = [f"{word} {sentence(n, 2 + n % 9)},is {word}" for word, n in words]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder
