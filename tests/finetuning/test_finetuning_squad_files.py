"""SQuAD's JSON: read as it is, refused by question where it is wrong."""

import copy

import pytest
from finetuning_files import CONTEXT, squad_value, write_squad
from hypothesis import given
from hypothesis import strategies as st

from stackbert.errors import UserError
from stackbert.finetuning.squad_files import read_squad


def test_questions_of_v1_are_read_with_every_answer(squad_v1):
    split = read_squad(squad_v1)
    assert (split.name, split.source, split.has_impossible) == ("dev", str(squad_v1), False)
    assert [one.key for one in split.examples] == ["q0-when", "q0-who", "q1-when", "q1-who"]
    first = split.examples[0]
    assert first.title == "Mill 0"
    assert first.context == f"{CONTEXT} That is note 0."
    assert first.question == "When was the mill built?"
    assert first.answers == ("1829", "in 1829")
    assert first.starts == (CONTEXT.index("1829"), CONTEXT.index("in 1829"))
    assert not first.impossible


def test_questions_of_v2_may_have_no_answer(squad_v2):
    split = read_squad(squad_v2)
    assert split.has_impossible
    assert [one.impossible for one in split.examples] == [False, False, True] * 2
    assert split.examples[2].answers == split.examples[2].starts == ()


def test_the_splits_name_comes_from_the_files(tmp_path):
    names = {"train-v1.1.json": "train", "dev-v2.0.json": "dev", "my-Test.json": "test"}
    for file, name in names.items():
        assert read_squad(write_squad(tmp_path / file, squad_value("1.1"))).name == name
    assert read_squad(tmp_path / "train-v1.1.json", name="dev").name == "dev"


def test_answers_of_a_test_split_never_leak(tmp_path):
    value = squad_value("v2.0")
    full = read_squad(write_squad(tmp_path / "full.json", value), name="test").examples
    for question in (q for a in value["data"] for p in a["paragraphs"] for q in p["qas"]):
        for field in ("answers", "is_impossible", "plausible_answers"):
            question.pop(field, None)
    bare = read_squad(write_squad(tmp_path / "bare.json", value), name="test").examples
    assert full == bare
    assert {(one.answers, one.starts, one.impossible) for one in full} == {((), (), False)}
    with pytest.raises(UserError, match="question q0-when: it has no answer"):
        read_squad(tmp_path / "bare.json", name="dev")


anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(anything, anything.filter(bool), anything)
def test_an_answer_anywhere_in_any_text_is_found_where_it_stands(
    tmp_path_factory, before, answer, after
):
    value = squad_value("1.1", articles=1)
    paragraph = value["data"][0]["paragraphs"][0]
    paragraph["context"] = before + answer + after
    paragraph["qas"] = [
        {"id": "q", "question": "", "answers": [{"text": answer, "answer_start": len(before)}]}
    ]
    path = write_squad(tmp_path_factory.mktemp("squad") / "dev.json", value)
    (one,) = read_squad(path).examples
    assert one.context[one.starts[0] : one.starts[0] + len(one.answers[0])] == answer


def test_half_a_character_is_replaced_without_moving_an_answer(tmp_path):
    text = (
        '{"data": [{"paragraphs": [{"context": "\\ud83d in 1829", "qas": [{"id": "q", '
        '"question": "\\ude00?", "answers": [{"text": "1829", "answer_start": 5}]}]}]}]}'
    )
    path = tmp_path / "dev.json"
    path.write_text(text, "utf-8")
    (one,) = read_squad(path).examples
    assert (one.context, one.question, one.title) == ("\ufffd in 1829", "\ufffd?", "")
    assert one.context[one.starts[0] :] == "1829"


def paragraph(value):
    return value["data"][1]["paragraphs"][0]


def question(value):
    return paragraph(value)["qas"][0]


def answer(value):
    return question(value)["answers"][1]


def setting(part, field, wanted):
    return lambda value: part(value).__setitem__(field, wanted)


def dropping(part, field):
    return lambda value: part(value).pop(field)


WRONG = {
    "an answer one off": (
        lambda value: answer(value).update(answer_start=answer(value)["answer_start"] + 1),
        "question q1-when: the answer 'in 1829' does not stand at character 33 of its paragraph "
        "('n 1829 ' does). Correct answer_start",
    ),
    "an answer elsewhere": (
        setting(answer, "text", "in 1830"),
        "the answer 'in 1830' does not stand at character 32",
    ),
    "an answer behind the end": (setting(answer, "answer_start", 999), "('' does)"),
    "a start before the beginning": (
        setting(answer, "answer_start", -1),
        "question q1-when: data[1].paragraphs[0].qas[0].answers[1].answer_start: Input should be",
    ),
    "a start that is no number": (
        setting(answer, "answer_start", "33"),
        "question q1-when: data[1].paragraphs[0].qas[0].answers[1].answer_start",
    ),
    "an empty answer": (setting(answer, "text", ""), "answers[1].text: String should have at le"),
    "no answers": (setting(question, "answers", []), "question q1-when: it has no answer"),
    "no field for answers": (dropping(question, "answers"), "question q1-when: it has no answer"),
    "impossible with answers": (
        setting(question, "is_impossible", True),
        "question q1-when: it is marked impossible and has an answer",
    ),
    "impossible by a word": (
        setting(question, "is_impossible", "no"),
        "question q1-when: data[1].paragraphs[0].qas[0].is_impossible",
    ),
    "an id twice": (setting(question, "id", "q0-who"), "question q0-who: the id occurs twice"),
    "no id": (dropping(question, "id"), "json: data[1].paragraphs[0].qas[0].id: Field required"),
    "no question": (
        dropping(question, "question"),
        "question q1-when: data[1].paragraphs[0].qas[0].question: Field required",
    ),
    "no context": (dropping(paragraph, "context"), "json: data[1].paragraphs[0].context: Field"),
    "an empty context": (setting(paragraph, "context", ""), "paragraphs[0].context: String"),
    "paragraphs of text": (
        lambda value: value["data"][0].update(paragraphs=["a"]),
        "json: data[0].paragraphs[0]: Input should be a valid dictionary",
    ),
    "no data": (lambda value: value.pop("data"), "json: data: Field required"),
    "nothing in it": (lambda value: value.update(data=[]), "holds no questions"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_by_file_and_question(tmp_path, case):
    change, said = WRONG[case]
    value = squad_value("v2.0")
    before = copy.deepcopy(value)
    change(value)
    assert value != before
    path = write_squad(tmp_path / "dev.json", value)
    with pytest.raises(UserError) as caught:
        read_squad(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"data": [\n{"title": }\n]}', r"dev\.json, line 2: not valid JSON \(Expecting value"),
        (b'{"data": [', r"dev\.json, line 1: not valid JSON"),
        (b"", r"dev\.json, line 1: not valid JSON"),
        (b'{"data":\n "\xff"}', r"dev\.json, line 2: not UTF-8 text"),
        (b"[1, 2]", r"dev\.json: the file: Input should be"),
        (b"[" * 200_000, r"dev\.json is nested too deeply"),
    ],
)
def test_a_file_that_is_no_such_json_is_named(tmp_path, data, said):
    path = tmp_path / "dev.json"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_squad(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing while reading .*none\.json"):
        read_squad(tmp_path / "none.json")
