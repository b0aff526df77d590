"""SQuAD's scores: cases worked out by hand from the official definitions, and laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackbert.finetuning.examples import SquadExample, SquadSplit
from stackbert.finetuning.squad_files import read_squad
from stackbert.finetuning.squad_metrics import (
    exact_match,
    f1,
    normalised,
    squad_scores,
    with_threshold,
)


def split_of(**answers):
    """A split whose questions have these answers; None of an impossible one."""
    return SquadSplit(
        "dev",
        "made",
        tuple(
            SquadExample(key, "", "", "", tuple(known or ()), (), known is None)
            for key, known in answers.items()
        ),
    )


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("The Cat", "cat"),
        ("  a  cat\tand\nan owl ", "cat and owl"),
        ("anthem of the Andes", "anthem of andes"),
        ("U.S.A.", "usa"),
        ("rock-'n'-roll!", "rocknroll"),
        ("A.", ""),
        ("the", ""),
        ("“Æon”", "“æon”"),
        ("10,000 £", "10000 £"),
        ("a-b", "ab"),
    ],
)
def test_answers_are_compared_without_case_punctuation_articles_and_spaces(answer, plain):
    assert normalised(answer) == plain


@pytest.mark.parametrize(
    ("answer", "truth", "exact", "overlap"),
    [
        ("the Normans", "Normans!", 1.0, 1.0),
        # 2 words in common of 3 and 4: precision 2/3, recall 1/2.
        ("old stone mill", "the old mill of Ely", 0.0, 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
        # "no" counts twice in common, not four times.
        ("no no no", "no no", 0.0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("1829", "1830", 0.0, 0.0),
        ("", "1829", 0.0, 0.0),
        ("the", "1829", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("an", "the", 1.0, 1.0),
    ],
)
def test_exact_match_and_f1_equal_cases_worked_out_by_hand(answer, truth, exact, overlap):
    assert exact_match(answer, truth) == exact
    assert f1(answer, truth) == pytest.approx(overlap)


words = st.lists(st.sampled_from(["a", "The", "cat", "cat.", "dog", "1829", "-"])).map(" ".join)


@given(words, words)
def test_scores_are_symmetric_within_bounds_and_one_only_of_equals(one, other):
    assert f1(one, other) == pytest.approx(f1(other, one))
    assert exact_match(one, other) == exact_match(other, one)
    assert exact_match(one, other) <= f1(one, other) <= 1.0
    assert f1(one, one) == exact_match(one, one.upper()) == 1.0


def test_v1_takes_the_closest_of_several_answers_and_a_missing_one_is_wrong():
    split = split_of(p=["in 1829", "1829"], q=["Ann Lee", "Ann Lee, a miller"], r=["Ely"], s=["x"])
    said = {"p": "1829.", "q": "Lee the miller", "r": "ely, old Ely"}
    # p: 1 and 1. q: against "ann lee" 2·1/(2+2), against "ann lee miller" 2·2/(2+3). r: 2·1/(3+1).
    expected = {"exact_match": 1 / 4, "f1": (1 + 4 / 5 + 1 / 2 + 0) / 4, "total": 4.0}
    assert squad_scores(split, said) == pytest.approx(expected)


def test_v1_gives_an_answer_without_words_no_f1_and_v2_passes_over_such_truths():
    assert squad_scores(split_of(p=["the"]), {"p": "a"}) == {
        "exact_match": 1.0,
        "f1": 0.0,
        "total": 1.0,
    }
    v2 = split_of(p=["the", "cat"], q=["the"], r=None)
    scores = squad_scores(v2, {"p": "a", "q": "", "r": ""})
    # p: "the" is passed over and "a" is not "cat"; q: nothing is left, so nothing is right.
    assert (scores["HasAns_exact"], scores["HasAns_f1"]) == (0.5, 0.5)


def test_v2_scores_questions_with_and_without_an_answer_apart():
    split = split_of(p=["1829"], q=["Ann Lee"], r=None, s=None, t=None)
    said = {"p": "1829", "q": "Lee", "r": "", "s": "1901", "t": "the"}
    # q: 2·1/(1+2). r: right. s: wrong. t: normalises to nothing, so it counts as no answer.
    assert squad_scores(split, said) == pytest.approx(
        {
            "exact_match": 3 / 5,
            "f1": (1 + 2 / 3 + 1 + 0 + 1) / 5,
            "total": 5.0,
            "HasAns_exact": 1 / 2,
            "HasAns_f1": (1 + 2 / 3) / 2,
            "HasAns_total": 2.0,
            "NoAns_exact": 2 / 3,
            "NoAns_f1": 2 / 3,
            "NoAns_total": 3.0,
        }
    )
    alone = squad_scores(split_of(r=None), {"r": ""})
    assert "HasAns_exact" not in alone
    assert alone["NoAns_exact"] == 1.0


def test_the_best_threshold_equals_the_case_worked_out_by_hand():
    split = split_of(p=["1829"], q=["Ann Lee"], r=None, s=None)
    said = {"p": "1829", "q": "Lee", "r": "Ely", "s": "Ely"}
    none = {"p": -3.0, "q": 1.0, "r": 0.5, "s": 2.0}
    scores = squad_scores(split, said, none)
    # Kept up to:     none   p      p r    p r q      all
    # exact            2     3      2      2          1      of 4: best at -3
    # F1               2     3      2      2 + 2/3    1 + 2/3
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (3 / 4, -3.0)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (3 / 4, -3.0)
    assert scores["exact_match"] == 1 / 4
    none["r"] = 1.5
    # Now p, q, r, s: F1 2, 3, 3 + 2/3, 2 + 2/3, 1 + 2/3.
    scores = squad_scores(split, said, none)
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (3 / 4, -3.0)
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (pytest.approx(11 / 12), 1.0)


def test_a_threshold_does_not_part_questions_that_are_equally_sure():
    split = split_of(p=["1829"], r=None, s=None)
    none = dict.fromkeys("prs", 0.0)
    scores = squad_scores(split, dict.fromkeys("prs", "1829"), none)
    # All kept 1 right, all dropped 2; p alone could only be kept by the order of the file.
    assert scores["best_exact"] == pytest.approx(2 / 3)
    assert scores["best_exact_thresh"] < 0.0


questions = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["1829", "in 1829", "no", ""]), st.integers(-3, 3)),
    min_size=1,
    max_size=12,
)


@given(questions)
def test_the_best_threshold_is_the_best_of_all_and_gives_the_score_it_promises(drawn):
    names = [f"q{number}" for number in range(len(drawn))]
    rows = dict(zip(names, drawn, strict=True))
    # One impossible question more, so that the split is one of v2.0.
    split = split_of(**{key: ["1829"] if row[0] else None for key, row in rows.items()}, z=None)
    said = {key: row[1] for key, row in rows.items()} | {"z": "no"}
    none = {key: float(row[2]) for key, row in rows.items()} | {"z": 0.0}
    scores = squad_scores(split, said, none)
    every = [
        squad_scores(split, with_threshold(said, none, threshold)) for threshold in range(-4, 4)
    ]
    for best, plain in (("best_exact", "exact_match"), ("best_f1", "f1")):
        assert scores[best] == pytest.approx(max(one[plain] for one in every))
        chosen = with_threshold(said, none, scores[f"{best}_thresh"])
        assert squad_scores(split, chosen)[plain] == pytest.approx(scores[best])


def test_a_file_answered_by_its_own_answers_scores_one(squad_v1, squad_v2):
    for path in (squad_v1, squad_v2):
        split = read_squad(path)
        for which in (0, -1):
            said = {one.key: one.answers[which] if one.answers else "" for one in split.examples}
            scores = squad_scores(split, said)
            assert {scores[name] for name in scores if not name.endswith("total")} == {1.0}
        nothing = squad_scores(split, dict.fromkeys((one.key for one in split.examples), ""))
        assert nothing["exact_match"] == (1 / 3 if split.has_impossible else 0.0)


def test_an_empty_split_and_a_question_without_surety_are_no_input():
    with pytest.raises(ValueError, match="made holds no questions"):
        squad_scores(split_of(), {})
    with pytest.raises(KeyError, match="q"):
        squad_scores(split_of(q=None), {"q": ""}, {})
