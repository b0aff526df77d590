"""Frozen linear probes: how well a linear classifier reads labels off each layer.

Shape letters: L embeddings and layers, N labelled units (words or sentences), H hidden size.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stackbert.evaluation.data import Example, Test
from stackbert.evaluation.models import Subject
from stackbert.intervals import Score
from stackbert.model_files import passes

PENALTY = 20.0
"""Of squared weights, against the summed loss, of inputs of variance 1. From 5 to 50 it moves POS
on 2,000 sentences by 0.4 points, and sentence labels by 0.7."""
STEPS = 60  # of L-BFGS; five times as many move no score by 0.2 points
Labels = list[list[str]]  # as many for each sentence as it has labels


def layer_vectors(
    subject: Subject, test: Test, examples: Sequence[Example]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """What each layer has at a word's first piece, or on average over the tokens of a sentence.

    Returns:
        The vectors (L, N, H), the last ones after the final norm, and of each unit its example and
        its place there.
    """
    encoded = subject.encode([" ".join(example.words) for example in examples])
    vectors, units = [], []
    for group in passes(encoded["input_ids"], tokens=8192):
        ids_BS = torch.tensor([encoded["input_ids"][index] for index in group])
        with torch.inference_mode():
            output = subject.model.base_model(
                input_ids=ids_BS.to(subject.model.device), output_hidden_states=True
            )
            layers = torch.stack([*output.hidden_states[:-1], output.last_hidden_state])
        if test.kind == "sentences":
            vectors.append(layers.mean(2).cpu())
            units += [(index, 0) for index in group]
            continue
        for row, index in enumerate(group):
            first = _first_pieces(examples[index].words, encoded["offset_mapping"][index])
            vectors.append(layers[:, row, list(first.values())].cpu())
            units += [(index, word) for word in first]
    return torch.cat(vectors, 1), units


def _first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """The first token of each word, by characters: byte-level tokenizers cut words otherwise."""
    ends = np.cumsum([len(word) + 1 for word in words])
    first: dict[int, int] = {}
    for token, (start, end) in enumerate(offsets):
        if end > start:  # a special token is empty, and others may begin with a space
            first.setdefault(int(ends.searchsorted(end - 1, side="right")), token)
    return first


def answers(subject: Subject, test: Test) -> list[Labels]:
    """What linear classifiers on the embeddings and on each layer make of the test's examples."""
    known = sorted({label for example in test.train for label in example.labels})
    train_LNH, learned = layer_vectors(subject, test, test.train)
    test_LNH, asked = layer_vectors(subject, test, test.items)
    targets = torch.tensor([known.index(test.train[index].labels[at]) for index, at in learned])
    found = []
    for train_NH, test_NH in zip(train_LNH, test_LNH, strict=True):
        labels = without_model(test)["majority"]  # stays where a sentence was cut
        chosen = fit(train_NH, targets, len(known))(test_NH).argmax(1).tolist()
        for (index, at), number in zip(asked, chosen, strict=True):
            labels[index][at] = known[number]
        found.append(labels)
    return found


def fit(inputs_NH: Tensor, targets_N: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression on standardised inputs; L-BFGS needs no seed and no rate."""
    mean_H, spread_H = inputs_NH.mean(0), inputs_NH.std(0) + 1e-5
    scaled_NH = (inputs_NH - mean_H) / spread_H
    weight = torch.zeros(classes, inputs_NH.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    search: Any = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        penalty = PENALTY / 2 / len(scaled_NH) * weight.square().sum()
        total: Tensor = F.cross_entropy(F.linear(scaled_NH, weight, bias), targets_N) + penalty
        torch.autograd.backward(total)
        return total

    search.step(loss)
    return lambda x_NH: F.linear((x_NH - mean_H) / spread_H, weight.detach(), bias.detach())


def without_model(test: Test) -> dict[str, Labels]:
    """Answers that need no model: the commonest label, of words that of the same word if known."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for example in test.train:
        for word, label in zip(example.words, example.labels, strict=True):
            counts[word][label] += 1
    overall = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    given = {"majority": [[overall] * len(example.labels) for example in test.items]}
    if test.kind == "words":
        by_word = [[best.get(word, overall) for word in example.words] for example in test.items]
        given["majority of word"] = by_word
    return given


def score(test: Test, labels: Labels) -> dict[str, Score]:
    """Accuracy in hundredths, and first the F1 of entities where the labels are such tags."""
    pairs = [(example.labels, given) for example, given in zip(test.items, labels, strict=True)]
    right = [sum(map(str.__eq__, *pair)) for pair in pairs]
    scores = {"accuracy": _ratio(right, [len(true) for true, _ in pairs])}
    tags = {label for example in test.train for label in example.labels}
    if "O" in tags and all(tag == "O" or tag[1:2] == "-" for tag in tags):
        spans = [(entities(true), entities(given)) for true, given in pairs]
        hits = [2 * len(true & given) for true, given in spans]
        both = [len(true) + len(given) for true, given in spans]
        scores = {"entity F1": _ratio(hits, both), **scores}
    return scores


def _ratio(values: list[int], weights: list[int]) -> Score:
    return Score(100.0 * np.array(values), np.array(weights, float))


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Spans (first, end, type) of tags by any of the schemes IO, IOB, IOBES, BILOU."""
    spans: list[tuple[int, int, str]] = []
    before, last = "", "O"
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if kind and kind == before and prefix not in "BSU" and last not in "ELSU":
            spans[-1] = (spans[-1][0], place + 1, kind)
        elif kind:
            spans.append((place, place + 1, kind))
        before, last = kind, prefix
    return set(spans)
