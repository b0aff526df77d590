import json
import random
import subprocess
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stackbert.corpus import Corpus, tokenizer
from stackbert.corpus.tokenizer import SPECIAL, Sample, learn_tokenizer, load_tokenizer
from stackbert.errors import UserError


def sample_of(documents: list[str], limit: int = 1 << 20) -> Sample:
    sample = Sample(limit)
    for document in documents:
        data = document.encode()
        sample.add(blake2b(data, digest_size=16).digest(), data)
    return sample


def test_the_sample_is_the_same_in_whatever_order_and_is_bounded(documents: list[str]) -> None:
    chosen = list(sample_of(documents, 10_000).texts())
    assert 10_000 <= sum(map(len, chosen)) < 10_000 + max(map(len, documents))
    for seed in range(3):
        shuffled = documents * 2  # duplicates count once
        random.Random(seed).shuffle(shuffled)
        assert list(sample_of(shuffled, 10_000).texts()) == chosen


def test_the_sample_is_drawn_from_the_whole_input(documents: list[str]) -> None:
    places = [documents.index(text) for text in sample_of(documents, 10_000).texts()]
    assert min(places) < len(documents) // 4
    assert max(places) > len(documents) * 3 // 4


def test_a_long_document_cannot_fill_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_SAMPLE_BYTES_A_DOCUMENT", 3)
    assert list(sample_of(["äöü"]).texts()) == ["ä"]  # nor does a cut split a character


def test_special_tokens_come_first_and_the_size_is_a_multiple_of_64(documents: list[str]) -> None:
    learned = learn_tokenizer(sample_of(documents), 200)
    vocabulary = learned.tokenizer.get_vocab()
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    assert tuple(by_id[:5]) == SPECIAL
    assert by_id[200:] == [f"[unused{n}]" for n in range(56)]
    assert sorted(vocabulary.values()) == list(range(256))
    assert learned.size == learned.vocab_size == 256
    assert learned.separator_id == 3
    # Within the model's vocabulary: as added tokens they would be matched in the text.
    assert len(json.loads(learned.tokenizer.to_str())["added_tokens"]) == len(SPECIAL)


def test_a_vocabulary_that_the_text_cannot_give_is_refused_with_what_it_gives(
    documents: list[str],
) -> None:
    given = len(
        [
            token
            for token in learn_tokenizer(sample_of(documents)).tokenizer.get_vocab()
            if not token.startswith("[unused")
        ]
    )
    with pytest.raises(UserError, match=rf"gives a vocabulary of {given:,} .* 30,000 were asked"):
        learn_tokenizer(sample_of(documents), 30_000)
    assert learn_tokenizer(sample_of(documents), given).size >= given
    many = ["".join(map(chr, range(0x61, 0x7B))) + " " + "".join(map(chr, range(0x3B1, 0x3C9)))]
    with pytest.raises(UserError, match=r"characters of the text alone need .* only 64 were asked"):
        learn_tokenizer(sample_of(many * 3), 64)


def test_rare_characters_do_not_take_up_the_vocabulary() -> None:
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    text = ["common words of the text " * 50_000, rare]
    vocabulary = learn_tokenizer(sample_of(text, 1 << 22), None).tokenizer.get_vocab()
    assert {"common", "words"} <= set(vocabulary)
    assert not [token for token in vocabulary if token.lstrip("#") in rare]


LEARN = """
import sys, json
from stackbert.corpus.tokenizer import Sample, learn_tokenizer
sample = Sample()
words = [a + b + c for a in "abcdefghi" for b in "abcdefghi" for c in "abcdefghi"]
sample.add(b"0", " ".join(words * 3).encode())
print(json.dumps(sorted(learn_tokenizer(sample, 300).tokenizer.get_vocab().items())))
"""


def test_the_same_text_gives_the_same_tokenizer_in_every_process() -> None:
    # Every merge is a tie here, which the trainer alone breaks differently from run to run.
    outputs = {
        subprocess.run(
            [sys.executable, "-c", LEARN], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(4)
    }
    assert len(outputs) == 1


@pytest.mark.parametrize("lowercase", [True, False])
def test_case_and_accents_are_kept_only_if_asked(documents: list[str], lowercase: bool) -> None:
    found = learn_tokenizer(sample_of(documents), lowercase=lowercase)
    tokens = "".join(found.tokenizer.get_vocab())
    capitals = [
        token for token in tokens if token in "KLMTSDPVOE" and token not in "".join(SPECIAL)
    ]
    assert bool(capitals) == (not lowercase)
    assert found.lowercase is lowercase


def test_transformers_opens_the_tokenizer_with_all_that_a_bert_needs(corpus: Corpus) -> None:
    from transformers import AutoTokenizer

    opened: Any = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    assert opened.is_fast
    assert len(opened) == corpus.manifest.vocab_size == corpus.manifest.tokenizer_size == 256
    assert [opened.pad_token_id, opened.unk_token_id, opened.cls_token_id] == [0, 1, 2]
    assert [opened.sep_token_id, opened.mask_token_id] == [3, 4]
    pair = opened("Kalo mi [MASK].", "ter")
    tokens = opened.convert_ids_to_tokens(pair["input_ids"])
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert "[MASK]" in tokens
    second = pair["token_type_ids"].index(1)
    assert tokens[second - 1] == "[SEP]"
    assert set(pair["token_type_ids"][second:]) == {1}
    assert opened.decode(pair["input_ids"], skip_special_tokens=True) == "kalo mi. ter"


def byte_level(folder: Path, special: list[str]) -> Path:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(["Kalo mi ter. San du pre? " * 20], trainer)
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    return folder


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize("bare", [True, False])
def test_an_existing_tokenizer_is_copied_and_gives_the_text_back(
    documents: list[str],
    build: Callable[..., Corpus],
    document_ids: Callable[[Corpus, str], list[list[int]]],
    tmp_path: Path,
    bare: bool,
) -> None:
    from transformers import AutoTokenizer

    folder = byte_level(tmp_path / "t", ROBERTA)
    corpus = build(documents, tokenizer=folder / "tokenizer.json" if bare else folder)
    copied = corpus.tokenizer_folder / "tokenizer.json"
    assert copied.read_bytes() == (folder / "tokenizer.json").read_bytes()
    manifest = corpus.manifest
    assert (manifest.separator_id, manifest.lowercase) == (2, None)
    assert (manifest.tokenizer_size, manifest.vocab_size) == (278, 320)
    found = document_ids(corpus, "train") + document_ids(corpus, "validation")
    assert all(ids[-1] == 2 and not set(ids[:-1]) & set(range(5)) for ids in found)
    plain = Tokenizer.from_file(str(copied))
    assert sorted(plain.decode(ids[:-1]) for ids in found) == sorted(documents)
    opened: Any = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    assert (opened.mask_token, opened.pad_token) == ("<mask>", "<pad>")
    assert (opened.bos_token, opened.eos_token) == ("<s>", "</s>")


def test_a_tokenizer_s_own_configuration_decides_which_token_is_which(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "t", ["<a>", "<b>", "<c>", "<d>", "</s>"])
    roles: dict[str, Any] = {
        "cls_token": "<a>",
        "sep_token": {"content": "<b>"},
        "pad_token": "<c>",
        "mask_token": "<d>",
        "auto_map": {"AutoTokenizer": ["code.Of", "others"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    loaded = load_tokenizer(folder)
    assert loaded.separator_id == 1
    assert "auto_map" not in loaded.config


def test_a_tokenizer_without_the_tokens_needed_is_refused_naming_them(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "t", ["<s>", "</s>"])
    with pytest.raises(UserError, match=r"has no mask_token, no pad_token, which"):
        load_tokenizer(folder)
    folder = byte_level(tmp_path / "u", ["<mask>", "<pad>"])
    message = r"has no cls_token or bos_token, no sep_token or eos_token"
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def test_what_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer at .*none"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    for content in (b"{}", b"\xff", b"[1"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)
