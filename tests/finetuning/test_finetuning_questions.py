"""SQuAD: windows that hold what they should, answers read out of them, and the whole path."""

import json

import numpy as np
import pytest
from finetuning_helpers import build, make_tokenizer, save, squad

from stackbert import UserError
from stackbert.finetuning.examples import SquadExample
from stackbert.finetuning.gather import gather
from stackbert.finetuning.heads import find_source, open_model
from stackbert.finetuning.questions import QuestionWork
from stackbert.finetuning.settings import defaults_for, settings_for
from stackbert.finetuning.squad_answers import read_answers
from stackbert.finetuning.squad_windows import Window, Windows, labelled, make_windows
from stackbert.finetuning.training import finetune_once
from stackbert.finetuning.work import Head

WORDS = [f"w{number}" for number in range(40)]
CONTEXT = " ".join(WORDS)


def question(text="yes no", answer="", context=CONTEXT, key="q"):
    answers = (answer,) if answer else ()
    starts = (context.index(answer),) if answer else ()
    return SquadExample(key, "title", context, text, answers, starts, not answer)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    source = find_source(save(tmp_path_factory.mktemp("model") / "tiny"))
    return open_model(source, Head("span"), seed=0, dropout=None)


def test_every_word_is_in_a_window_and_neighbours_share_the_stride(opened):
    made = make_windows([question()], opened, max_length=21, stride=6)
    # 21 tokens less [CLS], [SEP], [SEP] and two of the question leave 16 of the paragraph.
    texts = [
        [CONTEXT[begin:end] for begin, end in window.offsets.tolist() if begin >= 0]
        for window in made.windows
    ]
    assert [len(text) for text in texts] == [16, 16, 16, 10]
    assert [text[0] for text in texts] == ["w0", "w10", "w20", "w30"]
    assert {word for text in texts for word in text} == set(WORDS)
    assert made.cut_questions == 0
    first = made.windows[0]
    assert len(first.row["input_ids"]) == 21
    assert first.row["token_type_ids"].tolist() == [0] * 4 + [1] * 17
    assert (first.first, first.offsets[0].tolist(), first.offsets[4].tolist()) == (
        0,
        [-1, -1],
        [0, 2],
    )


def test_an_answer_is_labelled_only_in_windows_that_hold_all_of_it(opened):
    example = question(answer="w14 w15 w16 w17")
    made = make_windows([example], opened, max_length=21, stride=6)
    rows = labelled(made, [example])
    # The first window ends at w15, the second begins at w10.
    assert [(row["start_positions"], row["end_positions"]) for row in rows] == [
        (0, 0),
        (8, 11),
        (0, 0),
        (0, 0),
    ]
    begin, end = (made.windows[1].offsets[place] for place in (8, 11))
    assert CONTEXT[begin[0] : end[1]] == "w14 w15 w16 w17"


def test_an_answer_that_begins_within_a_token_is_labelled_by_that_token(opened):
    example = question(answer="14 w1")
    made = make_windows([example], opened, max_length=64, stride=8)
    row = labelled(made, [example])[0]
    assert (row["start_positions"], row["end_positions"]) == (18, 19)


def test_an_impossible_question_points_at_the_classification_token(opened):
    made = make_windows([question()], opened, max_length=64, stride=8)
    row = labelled(made, [question()])[0]
    assert (row["start_positions"], row["end_positions"]) == (0, 0)


def test_a_long_question_is_cut_and_counted_and_leaves_room_for_the_paragraph(opened):
    examples = [question(" ".join(WORDS[:30])), question("yes")]
    made = make_windows(examples, opened, max_length=21, stride=6)
    assert made.cut_questions == 1
    long = [window for window in made.windows if window.example == 0]
    ids = long[0].row["input_ids"].tolist()
    assert ids.index(3) == 10  # [CLS] and nine tokens of the question, (21 - 3) // 2
    seen = {CONTEXT[b:e] for window in long for b, e in window.offsets.tolist() if b >= 0}
    assert seen == set(WORDS)


def test_a_stride_longer_than_the_room_still_moves_on(opened):
    made = make_windows([question()], opened, max_length=21, stride=500)
    assert len(made.windows) == 4  # 16 words a window, 8 of them shared


def test_rows_too_short_for_any_paragraph_are_refused(opened):
    with pytest.raises(UserError, match="leave no room for a paragraph"):
        make_windows([question()], opened, max_length=16, stride=4)


def window(example, spans, first=0):
    offsets = np.array([[-1, -1], *spans], dtype=np.int32)
    return Window(example, {}, offsets, first)


def test_the_best_span_over_all_windows_is_the_answer():
    context = "one two three"
    spans = [[0, 3], [4, 7], [8, 13]]
    windows = Windows((window(0, spans[:2]), window(0, spans[1:])), 0)
    starts = [np.array([1.0, 2.0, 0.0]), np.array([0.5, 3.0, 0.0, -100.0])]
    ends = [np.array([1.0, 0.0, 1.0]), np.array([0.5, 1.0, 2.5, -100.0])]
    (answer,) = read_answers(
        [question(context=context)], windows, starts, ends, max_answer=30, number=20
    )
    # First window: "one two" 2 + 1; second: "two three" 3 + 2.5, "two" 3 + 1.
    assert [(c.text, c.score) for c in answer.candidates] == [
        ("two three", 5.5),
        ("two", 4.0),
        ("one two", 3.0),
        ("three", 2.5),
        ("one", 2.0),
    ]
    # "No answer" has 2 in the first window and 1 in the second: the least counts, 1 - 5.5.
    assert answer.no_answer == -4.5


def test_spans_that_are_too_long_or_end_before_they_begin_are_no_answers():
    context = "one two three"
    spans = [[0, 3], [4, 7], [8, 13]]
    starts, ends = [np.array([0, 0, 0, 9.0])], [np.array([0, 9.0, 0, 0])]
    example, windows = question(context=context), Windows((window(0, spans),), 0)
    (answer,) = read_answers([example], windows, starts, ends, max_answer=2, number=20)
    texts = {candidate.text for candidate in answer.candidates}
    assert texts == {"one", "two", "three", "one two", "two three"}
    (answer,) = read_answers([example], windows, starts, ends, max_answer=2, number=1)
    assert (answer.candidates, answer.text) == ((), "")
    assert np.isfinite(answer.no_answer)


def test_squads_defaults_are_berts():
    v1, v2 = defaults_for("squad"), defaults_for("squad-v2")
    assert (v1.learning_rate, v1.batch, v1.epochs, v1.max_length, v1.stride) == (
        5e-5,
        32,
        3,
        384,
        128,
    )
    assert (v2.learning_rate, v2.batch, v2.epochs) == (5e-5, 48, 2)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return find_source(save(tmp_path_factory.mktemp("deep") / "tiny", build(seed=3)))


FAST = ("precision=fp32", "learning_rate=0.003", "batch=16", "max_length=21", "stride=8")


def test_a_model_learns_v1_end_to_end(deep, tmp_path):
    work = gather("squad", squad(tmp_path / "squad", train=64)).works[0]
    assert work.guess == {"dev": {"exact_match": 0.0, "f1": 0.0, "total": 16.0}}
    settings = settings_for("squad", [*FAST, "epochs=8", "max_answer=3"])
    result = finetune_once(deep, work, settings, 0)
    judged = result.judged["dev"]
    assert judged.scores["f1"] > 0.8
    assert judged.scores["exact_match"] <= judged.scores["f1"]
    first = judged.predictions[0]
    assert first["key"] == "q500"
    assert first["prediction"] == first["candidates"][0][0]
    assert "no_answer" not in first


def test_v2_says_no_answer_and_is_scored_on_both_kinds(deep, tmp_path):
    work = gather("squad-v2", squad(tmp_path / "squad", version="v2.0", train=48)).works[0]
    scores = work.guess["dev"]
    assert scores["f1"] == scores["NoAns_f1"] * 5 / 16 == 5 / 16
    settings = settings_for("squad-v2", [*FAST, "max_steps=6"])
    judged = finetune_once(deep, work, settings, 0).judged["dev"]
    assert {"f1", "exact_match", "HasAns_f1", "NoAns_f1", "best_f1", "best_exact"} <= set(
        judged.scores
    )
    assert judged.scores["best_f1"] >= max(judged.scores["f1"], 5 / 16)
    for row in judged.predictions:
        assert (row["prediction"] == "") == (row["no_answer"] > 0)


def test_answers_are_scored_as_given_and_dropped_where_none_is_likelier(tmp_path, opened):
    """Outputs made by hand: right, right but dropped, and a wrong one where there is none."""
    data = json.loads((squad(tmp_path / "s", version="v2.0") / "dev-v2.0.json").read_text())
    data["data"][0]["paragraphs"] = [
        {"context": "w1 w2 w3", "qas": [{"id": key, "question": "yes", "answers": answers,
          "is_impossible": not answers}]}
        for key, answers in (
            ("right", [{"text": "w2 w3", "answer_start": 3}]),
            ("dropped", [{"text": "w1", "answer_start": 0}]),
            ("wrong", []),
        )
    ]  # fmt: skip
    (tmp_path / "s" / "dev-v2.0.json").write_text(json.dumps(data))
    work = gather("squad-v2", tmp_path / "s").works[0]
    assert isinstance(work, QuestionWork)
    encoded = work.encode(opened, settings_for("squad-v2", ["max_length=32"]), ("dev",))
    # Tokens: [CLS] yes [SEP] w1 w2 w3 [SEP]
    starts = np.array([[0, 0, 0, 0, 5, 0, 0], [9, 0, 0, 4, 0, 0, 0], [0, 0, 0, 2, 0, 0, 0]], float)
    ends = np.array([[0, 0, 0, 0, 0, 5, 0], [9, 0, 0, 4, 0, 0, 0], [0, 0, 0, 2, 0, 0, 0]], float)
    judged = encoded.judge("dev", [starts, ends])
    assert [row["prediction"] for row in judged.predictions] == ["w2 w3", "", "w1"]
    assert judged.scores["exact_match"] == pytest.approx(1 / 3)
    assert (judged.scores["HasAns_exact"], judged.scores["NoAns_exact"]) == (0.5, 0.0)
    # Keeping all three is best: two of them are right.
    assert judged.scores["best_exact"] == pytest.approx(2 / 3)


def test_v2_data_under_the_name_of_v1_is_refused(tmp_path):
    folder = squad(tmp_path / "s", version="v2.0")
    for name in ("train", "dev"):
        (folder / f"{name}-v2.0.json").rename(folder / f"{name}-v1.1.json")
    with pytest.raises(UserError, match="Name the task squad-v2"):
        gather("squad", folder)


def test_a_folder_without_squads_files_says_which_are_missing(tmp_path):
    with pytest.raises(UserError, match=r"train-v1\.1\.json"):
        gather("squad", tmp_path)


def test_a_tokenizer_that_lowers_and_one_without_types_give_windows_too(tmp_path):
    source = find_source(save(tmp_path / "r", build("roberta"), make_tokenizer()))
    opened = open_model(source, Head("span"), seed=0, dropout=None)
    made = make_windows([question()], opened, max_length=64, stride=8)
    assert "token_type_ids" not in made.windows[0].row
    assert made.windows[0].offsets[4].tolist() == [0, 2]
