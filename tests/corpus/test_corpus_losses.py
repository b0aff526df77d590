"""From text to ids nothing is lost without a word; vocabularies, learned and given."""

import json
import random
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from stackbert.corpus import learning
from stackbert.corpus.build import build_corpus
from stackbert.corpus.learning import Sample, learn_bytes, learn_wordpiece
from stackbert.corpus.tokenizer import SPECIAL, Vocabulary, load_tokenizer
from stackbert.errors import UserError
from tiny_runs import At

KHMER = "ប្រទេសកម្ពុជាមានទន្លេធំៗហូរកាត់វាលទំនាប"
ROLES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def drawn(letters: str, count: int, length: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(letters, k=length)) for _ in range(count)]


PROSE = [
    " ".join(drawn("klmnoa", 8, 4 + n % 5)) + f" {word}"
    for n, word in enumerate(drawn("klmnoa", 80, 9))
]


def saved(
    folder: Path, model: Any, splitter: Any, texts: list[str], special=ROLES, **config: Any
) -> Path:
    """A tokenizer of a model learned from texts."""
    made: Any = Tokenizer(model)
    made.pre_tokenizer = splitter
    vocab = 999 if isinstance(model, models.WordLevel) else 120
    options = {"special_tokens": special, "show_progress": False, "vocab_size": vocab}
    if isinstance(model, models.Unigram):
        options["unk_token"] = "<unk>"
    trainer = getattr(trainers, f"{type(model).__name__}Trainer".replace("BPE", "Bpe"))
    made.train_from_iterator(texts, trainer(**options))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def plain(folder: Path, special: list[str], **config: Any) -> Path:
    return saved(folder, models.BPE(), pre_tokenizers.Whitespace(), PROSE, special, **config)


@pytest.mark.parametrize("letters", [KHMER, "ACDEFGHIKLMNPQRSTVWY"])
def test_words_of_any_length_are_cut_into_known_pieces(build, letters):
    built = build(drawn(letters, 60, 400))
    assert built.manifest.unknown_share == 0
    assert 60 * 50 < built.manifest.train.tokens < 60 * 400


@pytest.mark.parametrize(
    ("model", "splitter", "tail", "lost"),
    [
        (models.BPE(), pre_tokenizers.Whitespace(), " жили", 4),
        (models.BPE(), pre_tokenizers.ByteLevel(), " é", 1),
        (models.BPE(), pre_tokenizers.Split("k", "removed"), " kk", None),
        (models.BPE(unk_token="<unk>"), pre_tokenizers.Whitespace(), " 川の", 2),
        (models.WordPiece(unk_token="<unk>"), pre_tokenizers.Whitespace(), " " + "k" * 150, 150),
        (models.WordLevel(unk_token="<unk>"), pre_tokenizers.Whitespace(), " kalo", 4),
    ],
)
def test_lost_characters_are_counted_on_each_side(build, tmp_path, model, splitter, tail, lost):
    folder = saved(tmp_path / "t", model, splitter, PROSE)
    texts = [text + tail for text in PROSE]
    built = build(texts, tokenizer=folder, validation=0.3, allow_unknown=True)
    characters = sum(len("".join(text.split())) for text in texts)
    expected = lost * len(texts) if lost else sum(text.count("k") for text in texts)
    sides = built.manifest.train, built.manifest.validation
    assert all(side.lost_characters > 0.01 for side in sides)
    mean = sum(side.lost_characters * side.documents for side in sides) / len(texts)
    assert mean == pytest.approx(expected / characters, rel=0.05)
    assert all((side.unknown_ids > 0) == (model.unk_token is not None) for side in sides)
    assert "Warning: of the training text" in built.manifest.warnings()[0]


def test_text_that_a_tokenizer_does_not_know_is_refused_unless_allowed(corpus, build, tmp_path):
    options = {"tokenizer": corpus.tokenizer_folder, "validation": 0.3}
    greek = drawn("αβγδε ", 80, 60)
    with pytest.raises(UserError, match=r"does not know this text: .*100.00%.*--allow-unknown"):
        build(greek, **options)
    assert not (tmp_path / "built").exists()
    assert build(greek, **options, allow_unknown=True).manifest.unknown_share == 1


@pytest.mark.parametrize(
    ("model", "splitter"),
    [
        (models.Unigram(), pre_tokenizers.Metaspace()),
        (models.WordLevel(unk_token="<unk>"), pre_tokenizers.WhitespaceSplit()),
    ],
)
def test_special_tokens_in_the_text_are_text(build, document_ids, tmp_path, model, splitter):
    texts = [f"{text} <mask> k </s> a <s> <pad>" for text in PROSE]
    folder = saved(tmp_path / "t", model, splitter, texts)
    built = build(texts, tokenizer=folder, validation=0.3, allow_unknown=True)
    documents = document_ids(built, "train") + document_ids(built, "validation")
    assert len(documents) == len(texts)
    assert not {number for ids in documents for number in ids[:-1]} & {0, 1, 2, 4}


@pytest.mark.parametrize("name", ["BertTokenizer", "T5Tokenizer", "RobertaTokenizer"])
def test_the_model_s_tokenizer_gives_the_ids_of_the_corpus(build, document_ids, tmp_path, name):
    texts = [text.title() for text in PROSE]
    model, splitter = models.WordPiece(unk_token="<unk>"), pre_tokenizers.Whitespace()
    folder = saved(tmp_path / "t", model, splitter, texts, tokenizer_class=name)
    built = build(texts, tokenizer=folder, validation=0.3)
    opened = AutoTokenizer.from_pretrained(built.tokenizer_folder)
    found = document_ids(built, "train") + document_ids(built, "validation")
    expected = opened(texts, add_special_tokens=False)["input_ids"]
    assert sorted(ids[:-1] for ids in found) == sorted(expected)
    assert len(opened) <= built.vocabulary.tokenizer_size
    copied = built.tokenizer_folder / "tokenizer.json"
    assert copied.read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert built.vocabulary == Vocabulary(128, 120, 1, 0, 2, 4, (0, 1, 2, 3, 4))


def test_a_padding_or_mask_token_with_another_role_is_refused(tmp_path):
    for role, token in (("pad_token", "</s>"), ("mask_token", "<unk>")):
        folder = plain(tmp_path / role, ROLES, **{role: token})
        with pytest.raises(UserError, match=rf"the {role} is also the (sep|eos|unk)_token"):
            load_tokenizer(folder)


def test_dropout_of_a_tokenizer_is_switched_off(build, tmp_path):
    model = models.BPE(unk_token="<unk>", dropout=0.5)
    folder = saved(tmp_path / "t", model, pre_tokenizers.Whitespace(), PROSE)
    first, second = (build(PROSE, name, tokenizer=folder, validation=0.3) for name in "ab")
    assert first.fingerprint == second.fingerprint
    assert '"dropout": null' in (first.tokenizer_folder / "tokenizer.json").read_text()


SAMPLE = Sample()
for number, word in enumerate(["schöne", "が", "नदी", "Köln", "Ήλιος"] * 50):
    SAMPLE.add(bytes([number % 251]), f"{word} {word} {number}")


def test_accents_are_kept_unless_asked_and_case_only_if_asked():
    def tokens(text: str, **options: bool) -> list[str]:
        learned = learn_wordpiece(SAMPLE, **options).tokenizer
        return learned.encode(text, add_special_tokens=False).tokens

    assert tokens("schöne नदी Köln が") == ["schöne", "नदी", "köln", "が"]
    assert tokens("Köln", lowercase=False) == ["Köln"]
    assert tokens("schöne", strip_accents=True) == ["schone"]


def test_a_byte_level_vocabulary_gives_any_text_back(build, document_ids, tmp_path):
    code = [f"def f_{n}(x):\n\tif x:\n\n        return 'É\u3000字 🙂'  # [SEP]" for n in range(60)]
    for n, text in enumerate(code):
        (tmp_path / "src" / f"{n}.py").parent.mkdir(exist_ok=True)
        (tmp_path / "src" / f"{n}.py").write_text(text)
    (tmp_path / "src" / "notes.md").write_text("left out")
    heard = At()
    built = build_corpus(
        tmp_path / "out",
        text=tmp_path / "src",
        suffixes=["py"],
        vocabulary="bytes",
        validation=0.3,
        progress=heard,
    )
    opened = AutoTokenizer.from_pretrained(built.tokenizer_folder)
    found = document_ids(built, "train") + document_ids(built, "validation")
    assert sorted(opened.decode(ids[:-1]) for ids in found) == sorted(code)
    assert built.manifest.unknown_share == 0
    assert built.manifest.left_out == {".md": 1}
    assert "files not read: 1 .md" in built.manifest.summary()
    assert any("documents and" in line and "held out" in line for line in heard.said), "too few"
    assert learn_bytes(SAMPLE, 300).tokenizer.get_vocab_size() == 320


def sample_of(documents: list[str], limit: int = 1 << 20) -> Sample:
    sample = Sample(limit)
    for document in documents:
        sample.add(blake2b(document.encode(), digest_size=16).digest(), document)
    return sample


def test_the_sample_is_bounded_from_everywhere_the_same_in_any_order(documents, monkeypatch):
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


def test_a_vocabulary_that_the_text_cannot_give_is_refused_with_what_it_gives(documents):
    vocabulary = learn_wordpiece(sample_of(documents)).tokenizer.get_vocab()
    given = sum(not token.startswith("[unused") for token in vocabulary)
    with pytest.raises(UserError, match=rf"vocabulary of {given:,} .* 30,000 .*more text"):
        learn_wordpiece(sample_of(documents), 30_000)
    letters = "".join(map(chr, [*range(0x61, 0x7B), *range(0x3B1, 0x3C9)]))
    with pytest.raises(UserError, match=r"where 64 were asked for. Ask for more"):
        learn_wordpiece(sample_of([letters]), 64)


def test_transformers_opens_the_tokenizer_with_all_that_a_bert_needs(corpus):
    opened: Any = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    assert len(opened) == 256
    pair = opened("Kalo mi [MASK].", "ter")
    tokens = opened.convert_ids_to_tokens(pair["input_ids"])
    assert (tokens[0], tokens[-1], tokens.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    second = pair["token_type_ids"].index(1)
    assert tokens[second - 1] == "[SEP]"
    assert set(pair["token_type_ids"][second:]) == {1}
    assert opened.decode(pair["input_ids"], skip_special_tokens=True) == "kalo mi. ter"
    assert corpus.vocabulary == Vocabulary(256, 256, 0, 2, 3, 4, (0, 1, 2, 3, 4))
    # Within the model's vocabulary: as added tokens unused ones would be matched in the text.
    assert len(opened.added_tokens_decoder) == len(SPECIAL)


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
    loaded = load_tokenizer(plain(tmp_path / "t", ["<a>", "<b>", "<c>", "<d>"], **roles))
    assert loaded.ids == {"cls_token": 0, "sep_token": 1, "pad_token": 2, "mask_token": 3}
    del roles["auto_map"]
    assert loaded.config == roles


def test_a_tokenizer_without_the_tokens_needed_is_refused_naming_them(tmp_path):
    with pytest.raises(UserError, match=r"has no mask_token, no pad_token, which"):
        load_tokenizer(plain(tmp_path / "t", ["<s>", "</s>"]))
    with pytest.raises(UserError, match=r"no cls_token or bos_token, no sep_token or eos_token"):
        load_tokenizer(plain(tmp_path / "u", ["<mask>", "<pad>"]))
    model = models.WordLevel(unk_token="<none>")  # found out by the first word that is unknown
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read: .*Missing"):
        load_tokenizer(saved(tmp_path / "v", model, pre_tokenizers.Whitespace(), PROSE))
