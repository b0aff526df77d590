"""The sample of sentences: a function of text and seed, uniform, of long sentences only."""

from collections import Counter

import pytest

from stackbert.attention.sentences import MIN_TOKENS, sample_sentences, smallest_keys
from stackbert.errors import UserError

LONG = MIN_TOKENS - 2  # words beside [CLS] and [SEP]


def long_sentence(number):
    return " ".join(["w1"] * LONG + [f"w{number}"]) + f" s{number}."


@pytest.fixture
def text(tmp_path):
    """Sixty long sentences in two files, with short ones, headings and a repetition between."""
    documents = []
    for start in (0, 20, 40):
        lines = ["A heading."]
        lines += [f"{long_sentence(at)} Too short." for at in range(start, start + 20)]
        documents.append("\n".join([*lines, long_sentence(start)]))
    (tmp_path / "a.txt").write_text("\n\n".join(documents[:2]), encoding="utf-8")
    (tmp_path / "b.txt").write_text(documents[2], encoding="utf-8")
    return tmp_path


def test_a_sample_is_of_long_sentences_without_repetition(text, tokenizer):
    found = sample_sentences(text, tokenizer, 1000)
    assert sorted(found) == sorted(long_sentence(number) for number in range(60))


def test_a_sample_is_a_function_of_text_and_seed_whatever_the_order(text, tokenizer):
    files = [text / "a.txt", text / "b.txt"]
    found = sample_sentences(files, tokenizer, 10, seed=3)
    assert len(found) == 10
    assert sample_sentences(files[::-1], tokenizer, 10, seed=3) == found
    assert sample_sentences(files, tokenizer, 10, seed=4) != found
    assert sample_sentences(files, tokenizer, 25, seed=3)[:10] == found


def test_every_sentence_has_the_same_chance(tokenizer):
    sentences = [long_sentence(number) for number in range(20)]
    mixed = [each for pair in zip(sentences, ["w1 w2"] * 20, strict=True) for each in pair]
    counts = Counter(
        each for seed in range(400) for each in smallest_keys(mixed, tokenizer, 5, seed)
    )
    assert set(counts) == set(sentences)
    assert all(60 <= count <= 140 for count in counts.values()), counts  # 100 expected, sigma 8.7


def test_white_space_inside_a_sentence_is_one_space(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("w1  w2\t" + long_sentence(1), encoding="utf-8")
    (found,) = sample_sentences(tmp_path / "a.txt", tokenizer, 5)
    assert found == "w1 w2 " + long_sentence(1)


def test_a_text_without_long_sentences_is_refused(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("Too short. This one, too.", encoding="utf-8")
    with pytest.raises(UserError, match="no sentence of at least 12 tokens"):
        sample_sentences(tmp_path / "a.txt", tokenizer, 5)


def test_no_sentences_cannot_be_asked_for(text, tokenizer):
    with pytest.raises(UserError, match="too few"):
        sample_sentences(text, tokenizer, 0)
