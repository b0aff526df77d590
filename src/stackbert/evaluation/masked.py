"""What a masked LM gives to words it cannot see: of minimal pairs, and of held-out text.

Rows of one length share a pass, so nothing is padded and the fast path of training serves.
Shape letters: B rows, S tokens of a row, K masked places of each.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from stackbert.encoder import encode
from stackbert.errors import UserError
from stackbert.evaluation.data import Pairs, Text
from stackbert.evaluation.models import BATCH_TOKENS, Subject
from stackbert.evaluation.scores import F64, Score
from stackbert.model import prediction_head
from stackbert.progress import Progress

I64 = npt.NDArray[np.int64]
MASK_RATE = 0.15
TIE = 1e-4
"""Nats. Sentences of equal tokens differ by rounding, if their rows were computed in two passes."""
PARADIGM = "paradigm "
AGREEMENT = {
    "determiner_noun_agreement": "determiner-noun",
    "subject_verb_agreement": "subject-verb",
    "anaphor_agreement": "anaphor",
    "irregular_forms": "irregular participles",
}
"""BLiMP's phenomena of agreement, 18 paradigms: what small models learn first."""


def log_likelihoods(
    subject: Subject, sentences: Sequence[str], progress: Progress | None = None
) -> F64:
    """The pseudo-log-likelihood of each sentence, in nats, summed over its tokens.

    Each token is scored with itself and the later pieces of its word masked: PLL-word-l2r (Kauf and
    Ivanova 2023, "A Better Way to Do Masked Language Model Scoring"). With the later pieces in
    view, a word of several pieces would give itself away.
    """
    encoded = subject.tokenizer(list(sentences), truncation=True, max_length=subject.longest)
    lengths = defaultdict(list)
    for index, ids in enumerate(encoded["input_ids"]):
        lengths[len(ids)].append(index)
    totals, done = np.zeros(len(sentences)), 0
    for length, indices in lengths.items():
        for group in _chunks(indices, BATCH_TOKENS // length**2):
            rows, owners, columns, targets = [], [], [], []
            for index in group:
                ids = np.array(encoded["input_ids"][index])
                # Special tokens belong to no word and are not scored.
                words = [-1 if word is None else word for word in encoded.word_ids(index)]
                places = np.flatnonzero(np.array(words) >= 0)
                later = np.arange(length) >= places[:, None]
                same = np.array(words) == np.array(words)[places, None]
                rows.append(np.where(later & same, subject.tokenizer.mask_token_id, ids))
                owners += [index] * len(places)
                columns.append(places)
                targets.append(ids[places])
            ids_BS, column_B, target_B = map(np.concatenate, (rows, columns, targets))
            found = log_probabilities(subject, ids_BS, column_B[:, None], target_B[:, None])
            np.add.at(totals, owners, found[:, 0])
            done += len(group)
            if progress:
                progress.step(done, len(sentences), f"sentences, {subject.name}")
    return totals


def log_probabilities(subject: Subject, ids_BS: I64, columns_BK: I64, targets_BK: I64) -> F64:
    """Log-probabilities (B, K) of tokens at masked places of full rows."""
    model: Any = subject.model
    ids, columns, targets = (
        torch.from_numpy(each).to(model.device) for each in (ids_BS, columns_BK, targets_BK)
    )
    with torch.inference_mode():
        try:
            head = prediction_head(model)
        except UserError:  # a family whose head is put together otherwise
            logits = model(input_ids=ids).logits
            logits = logits[torch.arange(len(ids))[:, None], columns].flatten(0, 1)
        else:
            logits = head(encode(model, ids, columns)[0])
        losses = F.cross_entropy(logits.float(), targets.flatten(), reduction="none")
    return -losses.view(targets.shape).double().cpu().numpy()


def pair_hits(subject: Subject, pairs: Pairs, progress: Progress | None = None) -> F64:
    """Of each pair: 1 if the good sentence is likelier, 0 if the bad one is, a half for a tie."""
    sentences = [*pairs.frame["good"], *pairs.frame["bad"]]
    good, bad = np.split(log_likelihoods(subject, sentences, progress), 2)
    hits: F64 = np.where(np.abs(good - bad) <= TIE, 0.5, good > bad)
    return hits


def pair_scores(pairs: Pairs, hits: F64) -> dict[str, Score]:
    """Means over paradigms: of all, of agreement and the rest, of each phenomenon and paradigm."""
    uids, phenomena = pairs.frame["uid"], pairs.frame["phenomenon"]
    agreement = phenomena.isin(list(AGREEMENT))
    chosen = {"all paradigms": uids == uids}
    if agreement.any() and not agreement.all():
        chosen |= {"agreement": agreement, "without agreement": ~agreement}
    for name in phenomena.drop_duplicates():
        chosen[AGREEMENT.get(name, name)] = phenomena == name
    for name in uids.drop_duplicates():
        chosen[PARADIGM + name] = uids == name
    scores = {}
    for name, rows in chosen.items():
        weights = (uids.to_numpy(object)[:, None] == uids[rows].unique().astype(object)).astype(
            float
        )
        scores[name] = Score(weights * hits[:, None], weights)
    return scores


def text_losses(
    subject: Subject, text: Text, seed: int, progress: Progress | None = None
) -> dict[str, Score]:
    """Held-out loss per masked token, and per byte of the text, so that vocabularies compare.

    Of each passage 15 % of the tokens, at random, become [MASK] (training also keeps some and
    exchanges some). Nats per byte are the mean of these times the passage's tokens, over its bytes.
    """
    encoded = subject.tokenizer(
        text.passages, truncation=True, max_length=subject.longest, return_offsets_mapping=True
    )
    lengths = defaultdict(list)
    for index, ids in enumerate(encoded["input_ids"]):
        lengths[len(ids)].append(index)
    nats, masked, tokens, read = (np.zeros(len(text.passages)) for _ in range(4))
    done = 0
    for length, indices in lengths.items():
        for group in _chunks(indices, BATCH_TOKENS // length):
            ids_BS = np.array([encoded["input_ids"][index] for index in group])
            columns = []
            for index in group:
                places = [at for at, word in enumerate(encoded.word_ids(index)) if word is not None]
                count = max(1, round(MASK_RATE * len(places)))
                # A generator for each passage: its masks do not depend on the others.
                columns.append(sorted(random.Random(f"{seed} {index}").sample(places, count)))
                tokens[index], masked[index] = len(places), count
                end = max(end for _, end in encoded["offset_mapping"][index])
                read[index] = len(text.passages[index][:end].encode())
            columns_BK = np.array(columns)
            targets_BK = np.take_along_axis(ids_BS, columns_BK, 1)
            np.put_along_axis(ids_BS, columns_BK, subject.tokenizer.mask_token_id, 1)
            nats[group] = -log_probabilities(subject, ids_BS, columns_BK, targets_BK).sum(1)
            done += len(group)
            if progress:
                progress.step(done, len(text.passages), f"passages, {subject.name}")
    return {
        "nats per token": Score(nats[:, None], masked[:, None]),
        "nats per byte": Score((nats / masked * tokens)[:, None], read[:, None]),
    }


def _chunks(indices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), max(1, size)):
        yield indices[start : start + max(1, size)]
