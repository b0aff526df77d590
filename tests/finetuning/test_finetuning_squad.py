"""SQuAD: windows that hold what they should, answers read out of them, the official scores."""

import json

import numpy as np
import pandas as pd
import pytest
from finetuning_helpers import squad

from stackbert.errors import UserError
from stackbert.finetuning.data import official_tasks
from stackbert.finetuning.models import Encoded, find_models, open_with_head
from stackbert.finetuning.squad import Window, encode, f1, guess, judge, normalised, squad_scores
from stackbert.finetuning.tasks import TASKS, Settings, TaskData, settings_for
from stackbert.finetuning.train import finetune_once

WORDS = [f"w{number}" for number in range(40)]
CONTEXT = " ".join(WORDS)


@pytest.fixture(scope="module")
def opened(models):
    return open_with_head(find_models(models[:1])[0], TASKS["squad"], Settings(), seed=0)


def asked(*rows, name="squad-v2", split="train"):
    """Data of questions, each (text, answer, context)."""
    frame = pd.DataFrame(
        {
            "key": f"q{number}",
            "text": text,
            "context": context,
            "answers": [answer] if answer else [],
            "start": context.index(answer) if answer else 0,
        }
        for number, (text, answer, context) in enumerate(rows)
    )
    return TaskData(TASKS[name], {split: frame})


def windows_of(opened, data, length=21):
    return encode(data, "train", opened, Settings(max_length=length))


def words_of(window):
    return [CONTEXT[begin:end] for begin, end in window.offsets_S2.tolist() if begin >= 0]


def test_every_word_is_in_a_window_and_neighbours_share_half(opened):
    made = windows_of(opened, asked(("yes no", "", CONTEXT)))
    # 21 tokens less [CLS], [SEP], [SEP] and two of the question leave 16 of the paragraph.
    assert list(map(words_of, made.windows)) == [WORDS[at : at + 16] for at in (0, 8, 16, 24)]
    assert (made.note, len(made.rows[0]["input_ids"])) == ("", 21)
    assert made.rows[0]["token_type_ids"].tolist() == [0] * 4 + [1] * 17


@pytest.mark.parametrize(
    ("answer", "length", "positions"),
    [
        # The first window ends at w15, the second goes from w8 to w23.
        ("w14 w15 w16 w17", 21, [(0, 0), (10, 13), (0, 0), (0, 0)]),
        ("14 w1", 64, [(18, 19)]),  # begins within a token
        ("", 64, [(0, 0)]),  # no answer: the classification token
    ],
)
def test_an_answer_is_labelled_in_windows_that_hold_all_of_it(answer, length, positions, opened):
    rows = windows_of(opened, asked(("yes no", answer, CONTEXT)), length).rows
    assert [(row["start_positions"], row["end_positions"]) for row in rows] == positions


def test_a_long_question_is_cut_and_counted_and_windows_move_on(opened):
    data = asked((" ".join(WORDS[:30]), "", CONTEXT), ("yes", "", CONTEXT))
    made = windows_of(opened, data)
    assert made.note == "SQuAD v2.0: 1 questions of train are too long and lose their end."
    assert made.rows[0]["input_ids"].tolist().index(3) == 10  # [CLS] and nine tokens, (21 - 3) // 2
    long = [window for window in made.windows if window.question == 0]
    assert {word for window in long for word in words_of(window)} == set(WORDS)
    with pytest.raises(UserError, match="leave no room for a paragraph"):
        windows_of(opened, data, length=16)


def read_out(spans, starts, ends, name="squad-v2"):
    """The prediction for one question, and how far above it "no answer" is."""
    data = asked(("q", "two", "one two three"), name=name, split="test")
    windows = [Window(0, np.array([[-1, -1], *each])) for each in spans]
    outputs = [np.array(each, dtype=float) for each in (starts, ends)]
    return tuple(judge(data, "test", Encoded([], "", windows), outputs)[1].iloc[0, 1:])


def test_the_best_span_over_all_windows_is_the_answer():
    first, second, third = [0, 3], [4, 7], [8, 13]
    spans = [[first, second], [second, third]]
    # "two three" 3 + 2.5 in the second window. "No answer" has 2 and 1: the least counts.
    found = read_out(spans, [[1, 2, 0], [0.5, 3, 0]], [[1, 0, 1], [0.5, 1, 2.5]])
    assert found == ("two three", 1 - 5.5)
    # A span that ends before it begins is not an answer.
    spans = [[first, second, third]]
    assert read_out(spans, [[0, 0, 0, 9]], [[0, 9, 0, 0]])[0] == "three"
    # v2.0 says that there is none where that is likelier than the best span; v1.1 never does.
    sure = {"starts": [[9, 1, 0, 0]], "ends": [[9, 1, 0, 0]]}
    assert read_out(spans, **sure) == ("", 16.0)
    assert read_out(spans, **sure, name="squad") == ("one", 16.0)


def test_a_model_learns_v1_and_v2_is_scored_on_both_kinds(models, tmp_path):
    model = find_models(models[:1])[0]
    squad(squad(tmp_path, "v1.1", train=64), "v2.0", train=48)
    v1, v2 = official_tasks("squad,squad-v2", tmp_path)
    assert (guess(v1, "dev")["f1"], guess(v2, "dev")["f1"]) == (0.0, 5 / 16)
    fast = ("precision=fp32", "learning_rate=0.003", "batch=16", "max_length=21")
    chosen = settings_for("squad", [*fast, "epochs=8"], ())
    result = finetune_once(model, v1, chosen, 0, splits=["dev"])
    assert result.scores["dev"]["f1"] > 0.8
    chosen = settings_for("squad-v2", [*fast, "max_steps=6"], ())
    result = finetune_once(model, v2, chosen, 0, splits=["dev"])
    assert {"HasAns_f1", "NoAns_f1"} <= result.scores["dev"].keys()
    for row in map(json.loads, result.predictions.splitlines()):
        assert (row["prediction"] == "") == (row["no_answer"] > 0)


def test_wrong_files_are_named_with_the_question(tmp_path):
    path = squad(tmp_path, "v1.1", train=8) / "dev-v1.1.json"
    text = path.read_text()
    for old, new, said in (
        ('"answer_start": ', '"answer_start": 9', "q500: .* does not stand"),
        ('"answers": [', '"answers": [], "others": [', "q500 has no answer.*squad-v2"),
        ('"context"', '"content"', "cannot be read: KeyError: 'context'.*SQuAD's layout"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=said):
            official_tasks("squad", tmp_path)


def test_answers_are_compared_without_case_punctuation_articles_and_spaces():
    cases = {"  The Cat\tand\nan owl ": "cat and owl", "anthem of the Andes": "anthem of andes"}
    cases |= {"U.S.A.": "usa", "A.": "", "“Æon”": "“æon”", "a-b": "ab"}
    assert {answer: normalised(answer) for answer in cases} == cases


def test_scores_equal_cases_worked_out_by_hand():
    # 2 words in common of 3 and 4; "no" counts twice in common, not four times.
    assert f1("old stone mill", "the old mill of Ely") == pytest.approx(2 * 2 / (3 + 4))
    assert f1("no no no", "no no") == pytest.approx(2 * 2 / (3 + 2))
    truths = [["in 1829", "1829"], ["Ann Lee", "Ann Lee, a miller"], ["Ely"]]
    found = squad_scores(truths, ["1829.", "Lee the miller", "ely, old Ely"])
    assert found == pytest.approx({"exact_match": 1 / 3, "f1": (1 + 4 / 5 + 1 / 2) / 3})
    # v1.1 gives an answer without words no F1; v2.0 passes over truths without words.
    assert squad_scores([["the"]], ["a"]) == {"exact_match": 1.0, "f1": 0.0}
    found = squad_scores([["the", "cat"], ["the"], []], ["a", "", "x"])
    assert (found["HasAns_exact"], found["HasAns_f1"], found["NoAns_f1"]) == (0.5, 0.5, 0.0)
