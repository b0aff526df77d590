"""A vocabulary is learned the same every time; an existing tokenizer is taken as it is."""

import json
import random
import subprocess
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from stackbert.corpus import learning
from stackbert.corpus.learning import Sample, learn_wordpiece
from stackbert.corpus.tokenizer import SPECIAL, load_tokenizer
from stackbert.errors import UserError


def sample_of(documents: list[str], limit: int = 1 << 20) -> Sample:
    sample = Sample(limit)
    for document in documents:
        sample.add(blake2b(document.encode(), digest_size=16).digest(), document)
    return sample


def test_the_sample_is_bounded_from_everywhere_and_the_same_in_whatever_order(
    documents, monkeypatch
):
    chosen = list(sample_of(documents, 10_000).texts())
    assert 10_000 <= sum(map(len, chosen)) < 10_000 + max(map(len, documents))
    places = [documents.index(text) for text in chosen]
    assert min(places) < len(documents) // 4 < len(documents) * 3 // 4 < max(places)
    for seed in range(3):
        shuffled = documents * 2  # duplicates count once
        random.Random(seed).shuffle(shuffled)
        assert list(sample_of(shuffled, 10_000).texts()) == chosen
    monkeypatch.setattr(learning, "_SAMPLE_BYTES_A_DOCUMENT", 3)
    assert list(sample_of(["äöü"]).texts()) == ["ä"]  # nor does a cut split a character


def test_special_tokens_come_first_and_the_size_is_a_multiple_of_64(documents):
    learned = learn_wordpiece(sample_of(documents), 200)
    vocabulary = learned.tokenizer.get_vocab()
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    assert tuple(by_id[:5]) == SPECIAL
    assert by_id[200:] == [f"[unused{n}]" for n in range(56)]
    assert sorted(vocabulary.values()) == list(range(256))
    # Within the model's vocabulary: as added tokens they would be matched in the text.
    assert len(json.loads(learned.tokenizer.to_str())["added_tokens"]) == len(SPECIAL)


def test_a_vocabulary_that_the_text_cannot_give_is_refused_with_what_it_gives(documents):
    vocabulary = learn_wordpiece(sample_of(documents)).tokenizer.get_vocab()
    given = sum(not token.startswith("[unused") for token in vocabulary)
    with pytest.raises(UserError, match=rf"vocabulary of {given:,} .* 30,000 .*more text"):
        learn_wordpiece(sample_of(documents), 30_000)
    letters = "".join(map(chr, [*range(0x61, 0x7B), *range(0x3B1, 0x3C9)]))
    with pytest.raises(UserError, match=r"where 64 were asked for. Ask for more"):
        learn_wordpiece(sample_of([letters]), 64)


def test_rare_characters_do_not_take_up_the_vocabulary():
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 60)))
    text = ["common words of the text " * 50_000, rare]
    vocabulary = learn_wordpiece(sample_of(text, 1 << 22)).tokenizer.get_vocab()
    assert {"common", "words"} <= set(vocabulary)
    assert not [token for token in vocabulary if token.lstrip("#") in rare]


LEARN = """
import hashlib
from stackbert.corpus.learning import Sample, learn_wordpiece
sample = Sample()
words = [a + b + c for a in "abcdefghi" for b in "abcdefghi" for c in "abcdefghi"]
sample.add(b"0", " ".join(words * 3))
print(hashlib.sha256(learn_wordpiece(sample, 300).files["tokenizer.json"]).hexdigest())
"""


def test_the_same_text_gives_the_same_tokenizer_in_every_process():
    # Every merge is a tie here, which the trainer alone breaks differently from run to run.
    command = [sys.executable, "-c", LEARN]
    outputs = {
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)
    }
    assert len(outputs) == 1


def test_transformers_opens_the_tokenizer_with_all_that_a_bert_needs(corpus):
    from transformers import AutoTokenizer

    opened: Any = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    assert len(opened) == 256
    pair = opened("Kalo mi [MASK].", "ter")
    tokens = opened.convert_ids_to_tokens(pair["input_ids"])
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    second = pair["token_type_ids"].index(1)
    assert tokens[second - 1] == "[SEP]"
    assert set(pair["token_type_ids"][second:]) == {1}
    assert opened.decode(pair["input_ids"], skip_special_tokens=True) == "kalo mi. ter"
    words = corpus.vocabulary
    assert (words.size, words.tokenizer_size, words.special) == (256, 256, (0, 1, 2, 3, 4))
    assert (words.pad, words.cls, words.sep, words.mask) == (0, 2, 3, 4)


def byte_level(folder: Path, special: list[str], **config: Any) -> Path:
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
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("bare", [True, False])
def test_an_existing_tokenizer_is_copied_and_gives_the_text_back(
    documents, build, document_ids, tmp_path, bare
):
    folder = byte_level(tmp_path / "t", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    corpus = build(documents, tokenizer=folder / "tokenizer.json" if bare else folder)
    copied = corpus.tokenizer_folder / "tokenizer.json"
    assert copied.read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (corpus.vocabulary.tokenizer_size, corpus.vocabulary.size) == (278, 320)
    found = document_ids(corpus, "train") + document_ids(corpus, "validation")
    assert all(ids[-1] == 2 and not set(ids[:-1]) & set(range(5)) for ids in found)
    plain = Tokenizer.from_file(str(copied))
    assert sorted(plain.decode(ids[:-1]) for ids in found) == sorted(documents)
    words = corpus.vocabulary
    assert (words.pad, words.cls, words.sep, words.mask) == (1, 0, 2, 4)


def test_large_vocabularies_are_stored_as_uint32(corpus, documents, build, tmp_path):
    raw = json.loads((corpus.tokenizer_folder / "tokenizer.json").read_text())
    raw["model"]["vocab"] |= {f"[unused{n}]": n for n in range(256, 70_000)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    built = build(documents, tokenizer=tmp_path / "tokenizer.json")
    assert built.train.read(0, 9).dtype == "uint32"
    assert built.train.read(0, 9).tolist() == corpus.train.read(0, 9).tolist()


def test_a_tokenizer_s_own_configuration_decides_which_token_is_which(tmp_path):
    roles = {"cls_token": "<a>", "sep_token": {"content": "<b>", "lstrip": True}}
    roles |= {"pad_token": "<c>", "mask_token": "<d>", "auto_map": {"AutoTokenizer": "code"}}
    loaded = load_tokenizer(byte_level(tmp_path / "t", ["<a>", "<b>", "<c>", "<d>"], **roles))
    assert loaded.ids == {"cls_token": 0, "sep_token": 1, "pad_token": 2, "mask_token": 3}
    del roles["auto_map"]
    assert loaded.config == roles | {"tokenizer_class": "PreTrainedTokenizerFast"}


def test_a_tokenizer_without_the_tokens_needed_is_refused_naming_them(tmp_path):
    with pytest.raises(UserError, match=r"has no mask_token, no pad_token, which"):
        load_tokenizer(byte_level(tmp_path / "t", ["<s>", "</s>"]))
    with pytest.raises(UserError, match=r"no cls_token or bos_token, no sep_token or eos_token"):
        load_tokenizer(byte_level(tmp_path / "u", ["<mask>", "<pad>"]))


def test_what_is_no_tokenizer_is_told(tmp_path):
    with pytest.raises(UserError, match=r"none does not exist\. A fast tokenizer"):
        load_tokenizer(tmp_path / "none")
    missing = Tokenizer(models.WordPiece({"[MASK]": 0, "a": 1}, unk_token="[UNK]"))
    for content in (b"{}", b"\xff", b"[1", missing.to_str().encode()):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
            load_tokenizer(tmp_path)
