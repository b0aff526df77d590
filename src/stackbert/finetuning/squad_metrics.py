"""SQuAD's official scores: exact match and F1, of v2.0 also with and without an answer.

Rajpurkar et al. 2016 (v1.1) and Rajpurkar, Jia and Liang 2018 (v2.0) define them.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from stackbert.finetuning.examples import SquadExample, SquadSplit

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """An answer as it is compared: lower case, no ASCII punctuation, no articles, single spaces.

    In this order, so that "A." becomes nothing.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, truth: str) -> float:
    """1.0 if both are the same once normalised, else 0.0."""
    return float(normalised(answer) == normalised(truth))


def f1(answer: str, truth: str) -> float:
    """The harmonic mean of precision and recall over the words of both, once normalised.

    Words count as often as they occur. Where one of the two has no words, it is 1.0 if neither
    has, else 0.0 (v2.0's rule).
    """
    given, wanted = normalised(answer).split(), normalised(truth).split()
    if not given or not wanted:
        return float(given == wanted)
    same = sum((Counter(given) & Counter(wanted)).values())
    return 2.0 * same / (len(given) + len(wanted))


def squad_scores(
    split: SquadSplit,
    predictions: Mapping[str, str],
    no_answer: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The official scores, as fractions (not in percent).

    Args:
        split: the questions; of several true answers the one closest to the prediction counts.
        predictions: by question's key, the answer, "" where the model says that there is none. A
            question without a prediction counts as answered wrongly.
        no_answer: of v2.0, by question's key, how sure the model is that there is no answer, on
            any scale, the higher the surer. `predictions` should then be the best answers proper
            (not yet emptied), as the best thresholds are sought over dropping them.

    Returns:
        "exact_match", "f1" and "total"; of a split with unanswerable questions also
        "HasAns_exact", "HasAns_f1", "HasAns_total" and the same with "NoAns_", where there are
        such questions; with `no_answer` also "best_exact" and "best_f1", the scores at the best
        threshold on this very split, and these as "best_exact_thresh" and "best_f1_thresh": an
        answer is kept where `no_answer` is at most the threshold. Unlike the official script the
        search keeps questions of equal `no_answer` together, as a threshold cannot part them.

    Raises:
        ValueError: the split is empty.
        KeyError: `no_answer` lacks a question.
    """
    if not split.examples:
        raise ValueError(f"{split.source} holds no questions")
    second = split.has_impossible
    scores = [_scores(example, predictions.get(example.key), second) for example in split.examples]
    result = _means("", split.examples, scores, "exact_match")
    if not second:
        return result
    for name, wanted in (("HasAns_", False), ("NoAns_", True)):
        chosen = [i for i, example in enumerate(split.examples) if example.impossible == wanted]
        if chosen:
            questions = [split.examples[i] for i in chosen]
            result |= _means(name, questions, [scores[i] for i in chosen], "exact")
    if no_answer is not None:
        sure = [no_answer[example.key] for example in split.examples]
        right_if_dropped = [float(example.impossible) for example in split.examples]
        for which, name in enumerate(("best_exact", "best_f1")):
            kept = [score[which] for score in scores]
            result[name], result[f"{name}_thresh"] = _best(sure, kept, right_if_dropped)
    return result


def with_threshold(
    predictions: Mapping[str, str], no_answer: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """The predictions with those emptied for which `no_answer` is above the threshold."""
    return {
        key: answer if no_answer[key] <= threshold else "" for key, answer in predictions.items()
    }


def _scores(example: SquadExample, answer: str | None, second: bool) -> tuple[float, float]:
    """Exact match and F1 of one question, by the rules of v1.1 or (`second`) v2.0."""
    if answer is None:
        return 0.0, 0.0
    truths = example.answers
    if second:
        # v2.0 passes over answers that normalise to nothing, and then wants the empty answer.
        truths = tuple(truth for truth in truths if normalised(truth)) or ("",)
    if not truths:
        return 0.0, 0.0
    # v1.1 gives an answer without words no F1, whatever the truth.
    words = second or normalised(answer)
    overlap = max(f1(answer, one) for one in truths) if words else 0.0
    return max(exact_match(answer, one) for one in truths), overlap


def _means(
    prefix: str,
    questions: Sequence[SquadExample],
    scores: Sequence[tuple[float, float]],
    exact: str,
) -> dict[str, float]:
    return {
        f"{prefix}{exact}": fmean(score[0] for score in scores),
        f"{prefix}f1": fmean(score[1] for score in scores),
        f"{prefix}total": float(len(questions)),
    }


def _best(
    sure: Sequence[float], kept: Sequence[float], dropped: Sequence[float]
) -> tuple[float, float]:
    """The best mean score and the lowest threshold that gives it.

    Args:
        sure: of each question, how sure it is that there is no answer.
        kept: of each, the score of its answer.
        dropped: of each, the score of dropping it.
    """
    order = sorted(range(len(sure)), key=sure.__getitem__)
    total = math.fsum(dropped)
    best, threshold = total, math.nextafter(sure[order[0]], -math.inf)
    for place, one in enumerate(order):
        total += kept[one] - dropped[one]
        last_of_equals = place + 1 == len(order) or sure[order[place + 1]] != sure[one]
        if last_of_equals and total > best:
            best, threshold = total, sure[one]
    return best / len(sure), threshold
