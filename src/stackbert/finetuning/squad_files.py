"""SQuAD's official JSON, v1.1 and v2.0, read into questions whose answers stand where they say."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from stackbert.errors import UserError
from stackbert.finetuning.cells import without_surrogates
from stackbert.finetuning.examples import SquadExample, SquadSplit
from stackbert.finetuning.tab_files import lines


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Answer(_Part):
    text: StrictStr = Field(min_length=1)
    answer_start: StrictInt = Field(ge=0)


class _Question(_Part):
    id: StrictStr = Field(min_length=1)
    question: StrictStr  # may be blank: the paragraph alone is then asked
    answers: list[_Answer] | None = None
    is_impossible: StrictBool = False


class _Paragraph(_Part):
    context: StrictStr = Field(min_length=1)
    qas: list[_Question]


class _Article(_Part):
    title: StrictStr = ""
    paragraphs: list[_Paragraph]


class _File(_Part):
    data: list[_Article]


def read_squad(path: Path, *, name: str | None = None) -> SquadSplit:
    """The questions of a file in SQuAD's own layout.

    Args:
        path: such as train-v1.1.json or dev-v2.0.json.
        name: "train", "dev" or "test"; without it the one that the file's name holds, else "dev".
            Answers of a test split are never read.

    Raises:
        UserError: the file is no JSON of that layout, an answer does not stand in its paragraph
            where it says, a question is without an answer and not marked impossible (or the
            reverse), or two share an id. The sentence names the file and the question's id.
    """
    split = name or next((one for one in ("train", "test") if one in path.name.lower()), "dev")
    examples: list[SquadExample] = []
    keys: set[str] = set()
    for article in _parsed(path).data:
        for paragraph in article.paragraphs:
            for question in paragraph.qas:
                where = f"{path}, question {question.id}"
                if question.id in keys:
                    raise UserError(f"{where}: the id occurs twice. Give each question its own.")
                keys.add(question.id)
                known = split != "test"
                if known:
                    _check(question, paragraph.context, where)
                answers = (question.answers or []) if known else []
                examples.append(
                    SquadExample(
                        key=question.id,
                        title=article.title,
                        context=paragraph.context,
                        question=question.question,
                        answers=tuple(answer.text for answer in answers),
                        starts=tuple(answer.answer_start for answer in answers),
                        impossible=known and question.is_impossible,
                    )
                )
    if not examples:
        raise UserError(f"{path} holds no questions. Fetch it again or choose another file.")
    return SquadSplit(split, str(path), tuple(examples))


def _check(question: _Question, context: str, where: str) -> None:
    answers = question.answers or []
    if question.is_impossible and answers:
        raise UserError(
            f"{where}: it is marked impossible and has an answer. Remove the one or the other."
        )
    if not question.is_impossible and not answers:
        raise UserError(
            f'{where}: it has no answer. Add one, or mark it with "is_impossible": true as v2.0 '
            "does."
        )
    for answer in answers:
        end = answer.answer_start + len(answer.text)
        if context[answer.answer_start : end] != answer.text:
            found = context[answer.answer_start : end]
            raise UserError(
                f"{where}: the answer '{answer.text}' does not stand at character "
                f"{answer.answer_start} of its paragraph ('{found}' does). Correct answer_start; "
                "it counts characters (not bytes) from 0."
            )


def _parsed(path: Path) -> _File:
    text = "".join(line for _, line in lines(path))
    try:
        # pydantic refuses half a character too, so it is replaced as the objects are built.
        value = json.loads(text, object_hook=_whole_characters if "\\u" in text else None)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg} at character "
            f"{error.colno}). Fetch the file again."
        ) from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be SQuAD's JSON.") from None
    except ValueError as error:  # a number of more digits than Python takes
        raise UserError(f"{path} is not SQuAD's JSON: {error}.") from None
    try:
        return _File.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        question = _question_at(value, first["loc"])
        raise UserError(
            f"{path}{question}: {_spelled(first['loc'])}: {first['msg']}. The layout is SQuAD's "
            "own: data → paragraphs → context and qas → id, question and answers → text and "
            "answer_start."
        ) from None


def _whole_characters(part: dict[str, Any]) -> dict[str, Any]:
    return {
        name: without_surrogates(value) if isinstance(value, str) else value
        for name, value in part.items()
    }


def _spelled(location: tuple[int | str, ...]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".") or "the file"


def _question_at(value: Any, location: tuple[int | str, ...]) -> str:  # noqa: ANN401 (JSON)
    """ ", question ID" if `location` is within a question that has one."""
    for depth, part in enumerate(location):
        value = value[part] if depth + 1 < len(location) else None
        if depth and location[depth - 1] == "qas" and isinstance(value, dict):
            return f", question {value['id']}" if isinstance(value.get("id"), str) else ""
    return ""
