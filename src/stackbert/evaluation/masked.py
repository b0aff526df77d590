"""What a masked LM gives to tokens it cannot see: of minimal pairs, and of held-out text.

Shape letters: B full rows, S tokens of each, K masked places of each.
"""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from stackbert.encoder import encode
from stackbert.evaluation.data import Pair
from stackbert.evaluation.models import Subject
from stackbert.intervals import F64, Score
from stackbert.model import logits_at, prediction_head
from stackbert.model_files import passes

I64 = npt.NDArray[np.int64]
MASK_RATE = 0.15
TIE = 1e-4
"""Nats. Sentences of the same tokens differ by rounding, if two passes computed them."""
AGREEMENT = {
    "determiner_noun_agreement": "determiner-noun",
    "subject_verb_agreement": "subject-verb",
    "anaphor_agreement": "anaphor",
    "irregular_forms": "irregular participles",
}
"""BLiMP's phenomena of agreement: of 67 paradigms the 18 that small models learn first."""


def log_probabilities(subject: Subject, ids_BS: I64, columns_BK: I64, targets_BK: I64) -> F64:
    """Log-probabilities (B, K) of tokens at masked places, by training's fast path."""
    arrays = (ids_BS, columns_BK, targets_BK)
    ids, columns, targets = (torch.from_numpy(x).to(subject.model.device) for x in arrays)
    with torch.inference_mode():
        head = prediction_head(subject.model)
        if head is None:
            logits = logits_at(subject.model, ids, columns)
        else:
            logits = head(encode(subject.model, ids, columns)[0])
        losses = F.cross_entropy(logits.float(), targets.flatten(), reduction="none")
    result: F64 = -losses.view(targets.shape).double().cpu().numpy()
    return result


def log_likelihoods(subject: Subject, sentences: Sequence[str]) -> F64:
    """The pseudo-log-likelihood of each sentence, in nats: the sum over its tokens.

    A token is scored with itself and the later pieces of its word masked: PLL-word-l2r (Kauf and
    Ivanova 2023, section 3). With those in view, a word of several pieces gives itself away.
    """
    encoded = subject.encode(sentences)
    totals: F64 = np.zeros(len(sentences))
    for group in passes(encoded["input_ids"], tokens=8192, copies=True):
        ids_BS = np.array([encoded["input_ids"][index] for index in group])
        words = [[-1 if x is None else x for x in encoded.word_ids(index)] for index in group]
        words_BS = np.array(words)  # special tokens, -1, belong to no word and are not scored
        row, place = (words_BS >= 0).nonzero()
        later = np.arange(ids_BS.shape[1]) >= place[:, None]
        hidden = later & (words_BS[row] == words_BS[row, place][:, None])
        masked = np.where(hidden, subject.tokenizer.mask_token_id, ids_BS[row])
        found = log_probabilities(subject, masked, place[:, None], ids_BS[row, place][:, None])
        np.add.at(totals, np.array(group)[row], found[:, 0])
    return totals


def pair_scores(subject: Subject, pairs: Sequence[Pair]) -> dict[str, Score]:
    """Hundredths of pairs whose good sentence is the likelier, a tie counting a half.

    Means over paradigms: of all of them, of agreement and of the others, of each phenomenon.
    """
    sentences = [*(pair.good for pair in pairs), *(pair.bad for pair in pairs)]
    good, bad = np.split(log_likelihoods(subject, sentences), 2)
    hits = np.where(abs(good - bad) <= TIE, 0.5, good > bad)
    uids, phenomena = (np.array([pair[i] for pair in pairs], object) for i in (0, 1))
    weights = 1 / (uids[:, None] == uids).sum(1)  # each paradigm counts once
    agreement = np.isin(phenomena, list(AGREEMENT))
    chosen = {"all paradigms": np.ones(len(pairs), bool)}
    if agreement.any() and not agreement.all():
        chosen |= {"agreement": agreement, "other paradigms": ~agreement}
    for name in dict.fromkeys(phenomena):
        chosen[AGREEMENT.get(name, name)] = phenomena == name
    values = 100 * (hits * weights)
    return {name: Score(values[rows], weights[rows]) for name, rows in chosen.items()}


def text_losses(subject: Subject, passages: Sequence[str]) -> dict[str, Score]:
    """Loss per masked token, and per byte of the text, so that vocabularies compare.

    Of each passage 15 % of the tokens become [MASK]; training exchanges or keeps some of them. Its
    nats per byte are their mean times its tokens, over the bytes of the text that was read.
    """
    encoded = subject.encode(passages)
    nats, masked, tokens, read = np.zeros((4, len(passages)))
    for group in passes(encoded["input_ids"], tokens=8192):
        ids_BS = np.array([encoded["input_ids"][index] for index in group])
        columns = []
        for index in group:
            places = [at for at, word in enumerate(encoded.word_ids(index)) if word is not None]
            tokens[index], masked[index] = len(places), max(1, round(MASK_RATE * len(places)))
            # A generator for each passage: its masks depend on no other.
            columns.append(random.Random(index).sample(places, int(masked[index])))
            end = max(end for _, end in encoded["offset_mapping"][index])
            read[index] = len(passages[index][:end].encode())
        columns_BK = np.array(columns)
        targets_BK = np.take_along_axis(ids_BS, columns_BK, 1)
        np.put_along_axis(ids_BS, columns_BK, subject.tokenizer.mask_token_id, 1)
        nats[group] = -log_probabilities(subject, ids_BS, columns_BK, targets_BK).sum(1)
    per_byte = Score(nats / masked * tokens, read)
    return {"nats per token": Score(nats, masked), "nats per byte": per_byte}
