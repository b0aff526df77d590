"""Frozen linear probes: how well a linear classifier reads labels off each layer.

Shape letters: B sentences of a pass, S tokens, H hidden size, N vectors, L layers and embeddings.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stackbert.evaluation.data import Example, Probe
from stackbert.evaluation.models import Subject, batches
from stackbert.evaluation.scores import Score

MAX_LENGTH = 128
"""Tokens of a sentence; what comes after is answered with the commonest label."""
PENALTY = 20.0
"""Of squared weights, against the summed loss. Inputs have variance 1, so this matters for few
sentences and many dimensions, and not for thousands of words."""
STEPS = 100
Labels = list[list[str]]
"""A label for each word of each sentence, or one for each sentence."""


def layer_vectors(
    subject: Subject, probe: Probe, examples: Sequence[Example]
) -> tuple[Tensor, Tensor]:
    """What each layer holds of each labelled unit: a word's first piece, a sentence's mean token.

    Returns:
        ((L, N, H) vectors, from the embeddings to the last layer after its final norm,
        (N, 2) sentence and place of the label in it).
    """
    tokenizer, base = subject.tokenizer, subject.model.base_model
    encoded = tokenizer(
        [" ".join(example.words) for example in examples],
        truncation=True,
        max_length=min(MAX_LENGTH, subject.longest),
        return_offsets_mapping=True,
    )
    all_ids: list[list[int]] = encoded["input_ids"]
    vectors, places = [], []
    for group in batches(list(map(len, all_ids))):
        length = max(len(all_ids[index]) for index in group)
        ids_BS = torch.full((len(group), length), tokenizer.pad_token_id)
        mask_BS = torch.zeros_like(ids_BS)
        for row, index in enumerate(group):
            ids_BS[row, : len(all_ids[index])] = torch.tensor(all_ids[index])
            mask_BS[row, : len(all_ids[index])] = 1
        device = subject.model.device
        ids_BS, mask_BS = ids_BS.to(device), mask_BS.to(device)
        with torch.inference_mode():
            output = base(input_ids=ids_BS, attention_mask=mask_BS, output_hidden_states=True)
            layers = [*output.hidden_states[:-1], output.last_hidden_state]
            if probe.unit == "sentence":
                share_BS1 = (mask_BS / mask_BS.sum(1, keepdim=True))[..., None]
                vectors.append(torch.stack([(x * share_BS1).sum(1) for x in layers]).cpu())
                places += [(index, 0) for index in group]
                continue
            firsts = [
                (row, column, index, word)
                for row, index in enumerate(group)
                for word, column in _first_pieces(examples[index], encoded["offset_mapping"][index])
            ]
            rows, columns = (torch.tensor([first[i] for first in firsts]) for i in (0, 1))
            vectors.append(torch.stack([x[rows, columns] for x in layers]).cpu())
            places += [first[2:] for first in firsts]
    return torch.cat(vectors, 1), torch.tensor(places)


def _first_pieces(example: Example, offsets: list[tuple[int, int]]) -> dict[int, int].items:
    """Pairs of a word and the column of its first token.

    By characters and not by the tokenizer's own words: those of a byte-level one differ.
    """
    ends = np.cumsum([len(word) + 1 for word in example.words])
    first: dict[int, int] = {}
    for column, (start, end) in enumerate(offsets):
        if end > start:  # special tokens are empty
            # Its last character: a byte-level token may begin with the space before it.
            first.setdefault(int(np.searchsorted(ends, end - 1, side="right")), column)
    return first.items()


def predictions(subject: Subject, probe: Probe) -> list[Labels]:
    """For the embeddings and each layer, what a linear classifier makes of the test sentences."""
    known = sorted({label for example in probe.train for label in example.labels})
    number = {label: i for i, label in enumerate(known)}
    train_LNH, train_places = layer_vectors(subject, probe, probe.train)
    test_LNH, test_places = layer_vectors(subject, probe, probe.test)
    targets = torch.tensor([number[probe.train[s].labels[w]] for s, w in train_places.tolist()])
    answers = []
    for train_NH, test_NH in zip(train_LNH, test_LNH, strict=True):
        chosen = fit(train_NH, targets, len(known))(test_NH).argmax(1).tolist()
        labels = commonest(probe)
        for (sentence, word), answer in zip(test_places.tolist(), chosen, strict=True):
            labels[sentence][word] = known[answer]
        answers.append(labels)
    return answers


def fit(vectors_NH: Tensor, targets_N: Tensor, classes: int) -> torch.nn.Module:
    """Multinomial logistic regression on standardised inputs, by L-BFGS: no seed, no batches."""
    mean_H, spread_H = vectors_NH.mean(0), vectors_NH.std(0) + 1e-5
    linear = torch.nn.Linear(vectors_NH.shape[1], classes)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    inputs_NH = (vectors_NH - mean_H) / spread_H
    search = torch.optim.LBFGS(
        linear.parameters(), max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        penalty = PENALTY / 2 / len(inputs_NH) * linear.weight.square().sum()
        total = F.cross_entropy(linear(inputs_NH), targets_N) + penalty
        total.backward()
        return total

    search.step(loss)

    def classifier(x_NH: Tensor) -> Tensor:
        with torch.inference_mode():
            return linear((x_NH - mean_H) / spread_H)

    return classifier


def commonest(probe: Probe, *, by_word: bool = False) -> Labels:
    """The commonest label in training; `by_word`, of the same word, where it is known."""
    counts: dict[str, Counter[str]] = {}
    for example in probe.train:
        for word, label in zip(example.words, example.labels, strict=True):
            counts.setdefault(word if by_word else "", Counter())[label] += 1
    overall = sum(counts.values(), Counter()).most_common(1)[0][0]
    best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
    return [[best.get(word, overall) for word in example.words] for example in probe.test]


def score(probe: Probe, answers: Labels) -> dict[str, Score]:
    """Accuracy, macro-F1 over the labels of the test sentences, and of entities their F1."""
    gold = [list(example.labels) for example in probe.test]
    hits = [
        [g == a for g, a in zip(*pair, strict=True)] for pair in zip(gold, answers, strict=True)
    ]
    scores = {"accuracy": _ratio([[sum(row)] for row in hits], [[len(row)] for row in hits])}
    labels = sorted({label for row in gold for label in row})
    twice = [
        [2 * sum(hit and g == label for hit, g in zip(*pair, strict=True)) for label in labels]
        for pair in zip(hits, gold, strict=True)
    ]
    either = [
        [g.count(label) + a.count(label) for label in labels]
        for g, a in zip(gold, answers, strict=True)
    ]
    scores["macro-F1"] = _ratio(twice, either)
    if probe.is_entities:
        spans = [(entities(g), entities(a)) for g, a in zip(gold, answers, strict=True)]
        found = _ratio([[2 * len(g & a)] for g, a in spans], [[len(g) + len(a)] for g, a in spans])
        scores = {"entity F1": found, **scores}
    return scores


def _ratio(values: list[list[int]], weights: list[list[int]]) -> Score:
    return Score(np.array(values, float), np.array(weights, float))


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Spans (first, end, type) of tags in any of the schemes IO, IOB, IOBES, BILOU."""
    spans = []
    kind, last = "", "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        begins = prefix in ("B", "S", "U") or name != kind or last in ("E", "L", "S", "U")
        if name and begins:
            spans.append([place, place + 1, name])
        elif name:
            spans[-1][1] = place + 1
        kind, last = name, prefix
    return {(first, end, name) for first, end, name in spans}
