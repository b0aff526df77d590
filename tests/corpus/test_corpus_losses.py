"""From text to ids nothing is lost, altered or left out without a word."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from stackbert.corpus.build import build_corpus
from stackbert.corpus.learning import Sample, learn_bytes, learn_wordpiece
from stackbert.corpus.tokenizer import load_tokenizer
from stackbert.errors import UserError
from stackbert.progress import Progress

KHMER = "ប្រទេសកម្ពុជាមានទន្លេធំៗហូរកាត់វាលទំនាប"
ROLES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
ANGLED = dict(
    zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), ROLES, strict=True)
)


def drawn(letters: str, count: int, length: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(letters, k=length)) for _ in range(count)]


PROSE = [
    " ".join(drawn("klmnoa", 8, 4 + n % 5)) + f" {word}"
    for n, word in enumerate(drawn("klmnoa", 80, 9))
]


def saved(folder: Path, model: Any, splitter: Any, texts: list[str], **config: Any) -> Path:
    """A tokenizer of a model learned from texts, its special tokens being ROLES."""
    made: Any = Tokenizer(model)
    made.pre_tokenizer = splitter
    vocab = 999 if isinstance(model, models.WordLevel) else 120
    options = {"special_tokens": ROLES, "show_progress": False, "vocab_size": vocab}
    if isinstance(model, models.Unigram):
        options["unk_token"] = "<unk>"
    trainer = getattr(trainers, f"{type(model).__name__}Trainer".replace("BPE", "Bpe"))
    made.train_from_iterator(texts, trainer(**options))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**ANGLED, **config}))
    return folder


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
        (models.BPE(unk_token="<unk>"), pre_tokenizers.WhitespaceSplit()),
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
    assert sorted(ids[:-1] for ids in found) == sorted(
        opened(texts, add_special_tokens=False)["input_ids"]
    )
    assert len(opened) <= built.vocabulary.tokenizer_size
    assert built.manifest.tokenizer_files.keys() == {"tokenizer.json", "tokenizer_config.json"}


def test_a_tokenizer_that_no_class_of_transformers_rebuilds_is_refused(tmp_path, monkeypatch):
    folder = saved(tmp_path / "t", models.BPE(), pre_tokenizers.Whitespace(), PROSE)
    loaded = load_tokenizer(folder)
    loaded.tokenizer.normalizer = normalizers.Replace("k", "o")  # as if it were read otherwise
    with pytest.raises(UserError, match=r"would not be the corpus's.*gives other ids.*'.*k"):
        loaded.save(tmp_path / "saved", PROSE)


def test_a_padding_or_mask_token_with_another_role_is_refused(tmp_path):
    for role, token in (("pad_token", "</s>"), ("mask_token", "<unk>")):
        config = {role: token}
        folder = saved(tmp_path / role, models.BPE(), pre_tokenizers.Whitespace(), PROSE, **config)
        with pytest.raises(UserError, match=rf"the {role} is also the (sep|unk)_token"):
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
    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    built = build_corpus(
        tmp_path / "out",
        text=tmp_path / "src",
        suffixes=["py"],
        vocabulary="bytes",
        validation=0.3,
        progress=progress,
    )
    opened = AutoTokenizer.from_pretrained(built.tokenizer_folder)
    found = document_ids(built, "train") + document_ids(built, "validation")
    assert sorted(opened.decode(ids[:-1]) for ids in found) == sorted(code)
    assert built.manifest.unknown_share == 0
    assert built.manifest.left_out == {".md": 1}
    assert "files not read: 1 .md" in built.manifest.summary()
    assert any("documents and" in line and "held out" in line for line in said), "too few"
    assert learn_bytes(SAMPLE, 300).tokenizer.get_vocab_size() == 320


def test_near_duplicates_are_dropped_whatever_their_side(build, documents):
    changed = [documents[0].upper(), documents[1].replace(" ", "\u3000"), f"“{documents[2]}”…"]
    built = build([*documents, *changed, "a + b", "a − b", "a < b"], validation=0.5)
    assert built.manifest.duplicate_documents == len(changed)
