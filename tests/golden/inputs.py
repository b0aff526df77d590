"""What the golden record is made of: text, recipes, weights, planted results (in inputs.yaml).

Everything is a function of nothing: no download, no clock, no random generator of a library whose
stream may change. Nothing here imports stackbert, so the record of the old code (`record_old.py`)
and the test of the new code (`test_golden.py`) see the same inputs.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors

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


def summary(array) -> list:
    """Of an array of floats: a digest to the last bit, and the mean for other machines."""
    plain = np.ascontiguousarray(np.asarray(array, dtype="<f8"))
    whole = hashlib.sha256(repr(plain.shape).encode() + plain.tobytes()).hexdigest()[:16]
    return [whole, float(plain.mean())]


def fingerprint() -> dict[str, Any]:
    """What decides about the last bit of a float: the processor, and who does the arithmetic."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().split("\n\n")[0].splitlines() if cpu.exists() else []
    facts = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    return {
        "cpu": [facts.get(name) for name in ("model name", "cpu family", "model", "stepping")],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": [f for f in ("avx512_bf16", "amx_bf16") if f in facts.get("flags", "").split()],
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


SYLLABLES = ("ka", "le", "mi", "no", "ru", "sta", "vé", "dor", "für", "pin", "ße", "ço", "ñan", "ö")
LEXICON = 600
ODD = (
    "猫は静かに眠る。犬は走る。鳥が鳴く！",
    "Это короткий документ. Он написан по-русски! Зачем?",
    "\x01\x02\x03",  # gives no token, so the document is dropped
    "Mr. Smith met Dr. J. Watson on 3 May 1891. They paid $3.50… “Why?” he asked. No. 7 won. 🎉",
    "e\u0301te\u0301 nai\u0308ve fac\u0327ade ＦＵＬＬ　ＷＩＤＴＨ ﬁne ½ ² İstanbul",
    "one-word",
    "x" * 250 + " " + "long " * 40 + "line without an end",
)


def documents() -> list[str]:
    """247, of made-up words in a pattern, with duplicates, accents, digits, other scripts."""
    below, found, word = dice(7), [], 0
    syllables = [[below(len(SYLLABLES)) for _ in range(1 + below(4))] for _ in range(LEXICON)]
    lexicon = ["".join(SYLLABLES[place] for place in places) for places in syllables]
    for number in range(240):
        if number % 23 == 22:
            found.append(found[number // 2] + ("  \n" if number % 2 else ""))
            continue
        sentences = []
        for place in range(3 + below(24)):
            words = []
            for _ in range(4 + below(14)):
                if below(10) < 6:  # a follower of the last word, else a common word
                    word = (7 * word + 1 + below(2)) % LEXICON
                else:
                    word = below(1 + below(1 + below(LEXICON)))
                words.append(lexicon[word])
                if below(40) == 0:
                    words.append(str(below(3000)) + (".5" if below(2) else ""))
            ending = (".", ".", ".", "!", "?", ",”", "…", ".)")[below(8)]
            gap = "\n" if place % 6 == 5 else " "
            sentences.append(" ".join(words).capitalize() + ending + gap)
        found.append("".join(sentences).strip())
    return [*found, *ODD]


def write_text(folder: Path) -> list[Path]:
    """The documents as a text file, as JSON lines and as a compressed text file."""
    found = documents()
    paths = [folder / name for name in ("one.txt", "two.jsonl", "three.txt.gz")]
    paths[0].write_text("\n\n\n".join(found[:150]) + "\n\n", encoding="utf-8")
    lines = [json.dumps({"id": at, "text": text}) for at, text in enumerate(found[150:200])]
    paths[1].write_text("\n".join([*lines, '{"id": -1, "text": null}']), encoding="utf-8")
    paths[2].write_bytes(gzip.compress("\r\n\r\n".join(found[200:]).encode(), mtime=0))
    return paths


def write_byte_tokenizer(folder: Path) -> Path:
    """A byte-level BPE of a few merges, in the form of RoBERTa's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("k", "a"), ("Ġ", "m"), ("l", "e"), ("s", "t"), ("st", "a"), ("Ġm", "i"), ("n", "o")]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *alphabet, *(a + b for a, b in merges), "<mask>"]
    inner = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "mask")}
    names |= {"cls_token": "<s>", "bos_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return folder


def corpora(folder: Path) -> dict[str, dict[str, Any]]:
    """Arguments of `build_corpus`, by name; the texts are written into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text, bytes_ = write_text(folder), write_byte_tokenizer(folder / "bytes")
    return {
        "main": {"text": text, "vocab_size": 800, "validation": 0.1},
        "cased": {"text": text[:2], "vocab_size": 1200, "validation": 0.05, "lowercase": False},
        "bytes": {"text": text, "tokenizer": bytes_, "validation": 0.1},
    }


# Recipes


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged field by field, everything else is replaced."""
    found = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return found


def recipe(**changes) -> dict[str, Any]:
    """A tiny recipe as plain values."""
    return merged(DATA["base"], changes)


RUNS = {name: recipe(**changes) for name, changes in DATA["runs"].items()}
BATCHES = {name: recipe(**changes) for name, changes in DATA["batches"].items()}
STEPS, WORLD_SIZES = 200, (1, 2, 4)
COMPARED = recipe(**DATA["comparison"]["recipe"])
UNDECAYED = merged(COMPARED, DATA["comparison"]["undecayed"])


def schedules() -> dict[str, dict[str, Any]]:
    """Recipes of every kind of schedule."""
    wanted, found = DATA["schedules"], {}
    for kind in wanted["kinds"]:
        for warmup, rewarmup, final in wanted["turns"]:
            spec = {"name": kind, "warmup_steps": warmup, "rewarmup_steps": rewarmup}
            points = {"points": wanted["points"]} if kind == "piecewise" else {}
            spec |= {"final_fraction": final, **points}
            found[f"{kind} {warmup}"] = recipe(stages=wanted["stages"], schedule=spec)
    return found


def planted_runs(case: dict[str, Any]) -> list[tuple[str, float, int, float | None]]:
    """Variant, share of the budget, seed and final loss of every run."""
    return [
        (variant, share, seed, loss)
        for variant, by_share in case["losses"].items()
        for share, losses in by_share.items()
        for seed, loss in enumerate(losses)
    ]


# Models

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 64}
SIZES |= {"max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", {}),
    "roberta": ("RobertaForMaskedLM", {"type_vocab_size": 1}),
    "roberta-prelayernorm": ("RobertaPreLayerNormForMaskedLM", {"type_vocab_size": 1}),
    "megatron-bert": ("MegatronBertForMaskedLM", {}),
    "modernbert": ("ModernBertForMaskedLM", {"cls_token_id": 2, "sep_token_id": 3}),
    "xlm-roberta": ("XLMRobertaForMaskedLM", {}),
    "electra": ("ElectraForPreTraining", {"embedding_size": 8}),
    "deberta-v2": ("DebertaV2ForMaskedLM", {"relative_attention": True, "position_buckets": 8}),
    "mpnet": ("MPNetForMaskedLM", {}),
    "distilbert": ("DistilBertForMaskedLM", {"dim": 16, "hidden_dim": 24, "n_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", {}),
    "llama": ("LlamaForCausalLM", {}),
    "bert-untied": ("BertForMaskedLM", {"tie_word_embeddings": False}),
    "albert": ("AlbertForMaskedLM", {"embedding_size": 8}),
    "t5": ("T5ForConditionalGeneration", {"d_model": 16, "d_kv": 8, "d_ff": 24}),
}
"""Those that recipes name, others that growth works on, and two that it refuses."""
OPERATORS = {"stack": 6, "interleave": 4, "identity": 3, "identity-noise": 5, "random": 3}
"""Depths to grow to, from 2 layers."""


def filled(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of exactly representable steps between -0.2 and 0.2 that depends on its name."""
    at = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    mixed = ((at + np.uint64(zlib.crc32(name.encode()))) * np.uint64(2654435761)) >> np.uint64(7)
    values = ((mixed & np.uint64(0xFFFF)).astype(np.float64) / 65536.0 - 0.5) * 0.4
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def make_model(
    kind: str, depth: int = 2, salt: str = "", gain: float = 1.0, **fields
) -> transformers.PreTrainedModel:
    """A tiny model, the same on every machine, in evaluation mode; norms stay near 1."""
    name, extra = MODELS[kind]
    model_class = getattr(transformers, name)
    sizes = {**SIZES, "num_hidden_layers": depth, **extra, **fields}
    model = model_class(model_class.config_class(**sizes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(gain * filled(salt + name, tuple(parameter.shape)) + is_norm)
    return model


def optimizer_state(model: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Moments for every parameter, by name."""
    return {
        name: {
            "exp_avg": filled(f"{name} first", tuple(parameter.shape)),
            "exp_avg_sq": filled(f"{name} second", tuple(parameter.shape)).abs(),
            "step": torch.tensor(float(at)),
        }
        for at, (name, parameter) in enumerate(model.named_parameters())
    }


# Attention and fine-tuning

WORDS = ("good", "bad", *(f"w{number}" for number in range(57)))


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token a word, 64 in all; the second text of a pair has the type 1."""
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = {word: at for at, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def sentence(number: int, length: int) -> str:
    """Words without a meaning."""
    return " ".join(WORDS[2 + (7 * number + 11 * at) % 57] for at in range(length))


SENTENCES = [sentence(n, length) for n, length in enumerate((12, 19, 15, 20, 11, 17, 20, 13))]


def write_study(folder: Path) -> dict[str, Path]:
    """Two tiny models with a tokenizer, and tables with a word that tells the classes apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("one", "two"):
        make_model("bert-untied", salt=name).save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    for name, count, first in (("train", 64, 0), ("dev", 24, 1000)):
        rows = [["text", "label", "other"]]
        for number in range(first, first + count):
            word = WORDS[(number // 2 + number) % 2]
            rows.append([f"{word} {sentence(number, 2 + number % 9)}", f"is {word}", 'say "hi"'])
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    return {name: folder / name for name in ("one", "two", "train.csv", "dev.csv")}
