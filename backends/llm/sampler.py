"""Chooses the next token of each row from its logits, as its `Sampling` says.

Owns what sampling keeps for each row of the table: its parameters, and counts of tokens where
penalties need them. Vectorised: a batch of plain greedy rows costs one argmax; other rows pay for
what they ask. Invariant: a row's token depends on its own logits, parameters, seed and position
alone, and is BAD where its logits are not finite.

Shape suffixes: B rows that get a token, V vocabulary, M rows of B that ask for something, K likely
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequential
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.llm import chance
from backends.llm.draw import draw, truncate, weights
from backends.llm.sequence import Rows, Sequence

BAD = -1
_SHIFTS = tuple(range(8))


class Likely(NamedTuple):
    """Log-probabilities of M tokens, and of the K likeliest in their places."""

    logprobs_M: Tensor
    top_MK: Tensor
    top_ids_MK: Tensor


class Chosen(NamedTuple):
    """`likely` for the rows of the batch at `asked`, in that order, the `tops` first of each."""

    tokens_B: Tensor
    asked: Rows
    tops: Rows
    likely: Likely | None


def likely(logits_MV: Tensor, tokens_M: Tensor, top: int) -> Likely:
    total_M = logits_MV.logsumexp(-1)
    best = logits_MV.topk(min(top, logits_MV.shape[1]))
    own_M = logits_MV.gather(1, tokens_M[:, None])[:, 0] - total_M
    return Likely(own_M, best.values - total_M[:, None], best.indices)


class Sampler:
    def __init__(self, rows: int, vocabulary: int, device: torch.device) -> None:
        self._vocabulary, self._device = vocabulary, device
        self._temperature = np.zeros(rows, np.float32)
        self._top_k = np.zeros(rows, np.int64)
        self._top_p = np.ones(rows, np.float64)
        self._min_p = np.zeros(rows, np.float32)
        self._cut = np.zeros(rows, np.bool_)
        self._penalties = np.zeros((rows, 3), np.float32)  # repetition, presence, frequency
        self._penal = np.zeros(rows, np.bool_)
        self._seeds = np.zeros(rows, np.uint64)
        self._choices = np.zeros(rows, np.uint64)
        self._logprobs = np.full(rows, -1, np.int64)
        self._min_tokens = np.zeros(rows, np.int64)
        self._stops: dict[int, NDArray[np.int64]] = {}
        self._biased = np.zeros(rows, np.bool_)
        self._bias: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        # Rows whose logits are taken as they are.
        self._plain = np.ones(rows, np.bool_)
        # Twice how often each token was generated, and one where it is in the prompt.
        self._counts: Tensor | None = None
        self._slots = np.full(rows, -1, np.int64)
        self._free_slots: list[int] = []

    def place(self, sequence: Sequence, tokens: NDArray[np.int32]) -> None:
        """Its row is its own from now on; `tokens` are those that it has so far."""
        row, sampling = sequence.row, sequence.generation.sampling
        self._temperature[row] = sampling.temperature
        self._top_k[row], self._top_p[row] = sampling.top_k, sampling.top_p
        self._min_p[row] = sampling.min_p
        self._cut[row] = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
        penalties = (
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        self._penalties[row] = penalties
        self._penal[row] = penalties != (1.0, 0.0, 0.0)
        self._seeds[row], self._choices[row] = sequence.seed, sequence.choice
        self._logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        self._min_tokens[row] = sampling.min_tokens if sampling.stop_ids else 0
        if self._min_tokens[row]:
            self._stops[row] = np.array(sorted(sampling.stop_ids), np.int64)
        self._biased[row] = bool(sampling.logit_bias)
        if sampling.logit_bias:
            ids, values = zip(*sampling.logit_bias, strict=True)
            self._bias[row] = np.array(ids, np.int64), np.array(values, np.float32)
        self._plain[row] = not (
            sampling.temperature > 0
            or self._penal[row]
            or self._biased[row]
            or self._min_tokens[row]
            or sampling.logprobs is not None
        )
        if self._penal[row]:
            self._count(row, tokens, sequence.prompt)

    def choose(
        self,
        logits_BV: Tensor,
        rows: Rows,
        positions: Rows,
        masks: Sequential[tuple[int, NDArray[np.uint32]]] = (),
    ) -> Chosen:
        """`positions`: how many tokens each row has generated before this one. `masks`: (place in
        the batch, packed bits of the tokens that may come). The logits are written to."""
        if self._plain[rows].all() and not masks:
            return Chosen(_checked(*logits_BV.max(-1)), rows[:0], rows[:0], None)
        self._add_bias(logits_BV, rows)
        asked = np.flatnonzero(self._logprobs[rows] >= 0)
        raw_MV = logits_BV[self._tensor(asked)] if len(asked) else None
        self._penalise(logits_BV, rows)
        self._forbid(logits_BV, rows, positions, masks)
        tokens_B = self._pick(logits_BV, rows, positions)
        self._count_in(rows, tokens_B)
        found, tops = None, self._logprobs[rows[asked]]
        if raw_MV is not None:
            own_M = tokens_B[self._tensor(asked)].clamp(min=0)
            found = likely(raw_MV, own_M, int(tops.max()))
        return Chosen(tokens_B, asked, tops, found)

    def _pick(self, logits_BV: Tensor, rows: Rows, positions: Rows) -> Tensor:
        best_B, tokens_B = logits_BV.max(-1)
        random = np.flatnonzero(self._temperature[rows] > 0)
        if len(random):
            whole = len(random) == len(rows)
            at_M, own = self._tensor(random), rows[random]
            weights_MV = weights(
                logits_BV if whole else logits_BV[at_M], self._tensor(self._temperature[own])
            )
            if self._cut[own].any():
                self._truncate(weights_MV, own)
            chances = chance.uniform(
                self._seeds[own], self._choices[own], positions[random].astype(np.uint64)
            )
            tokens_B[at_M] = draw(weights_MV, self._tensor(chances)).clamp_(
                max=self._vocabulary - 1
            )
        return _checked(best_B, tokens_B)

    def _truncate(self, weights_MV: Tensor, own: Rows) -> None:
        top_k, top_p = self._top_k[own], self._top_p[own]
        min_p_M = self._tensor(self._min_p[own])
        if not top_k.any() and (top_p >= 1).all():
            weights_MV.masked_fill_(weights_MV < min_p_M[:, None], 0.0)
            return
        truncate(weights_MV, self._tensor(top_k), self._tensor(top_p), min_p_M, int(top_k.max()))

    # ---------------------------------------------------------------------- what changes the logits

    def _add_bias(self, logits_BV: Tensor, rows: Rows) -> None:
        biased = np.flatnonzero(self._biased[rows])
        if len(biased):
            parts = [self._bias[int(rows[place])] for place in biased]
            places = np.repeat(biased, [len(ids) for ids, _ in parts])
            index = self._tensor(places), self._tensor(np.concatenate([ids for ids, _ in parts]))
            values = self._tensor(np.concatenate([values for _, values in parts]))
            logits_BV.index_put_(index, values, accumulate=True)

    def _penalise(self, logits_BV: Tensor, rows: Rows) -> None:
        penal = np.flatnonzero(self._penal[rows])
        if not len(penal):
            return
        assert self._counts is not None
        own = rows[penal]
        at_M = self._tensor(penal)
        counts_MV = self._counts[self._tensor(self._slots[own])]
        repetition_M1, presence_M1, frequency_M1 = self._tensor(self._penalties[own]).chunk(3, 1)
        logits_MV = logits_BV[at_M]
        repeated_MV = torch.where(
            logits_MV > 0, logits_MV / repetition_M1, logits_MV * repetition_M1
        )
        logits_MV = torch.where(counts_MV > 0, repeated_MV, logits_MV)
        generated_MV = counts_MV >> 1
        logits_MV -= frequency_M1 * generated_MV + presence_M1 * (generated_MV > 0)
        logits_BV[at_M] = logits_MV

    def _forbid(
        self,
        logits_BV: Tensor,
        rows: Rows,
        positions: Rows,
        masks: Sequential[tuple[int, NDArray[np.uint32]]],
    ) -> None:
        early = np.flatnonzero(positions < self._min_tokens[rows])
        if len(early):
            parts = [self._stops[int(rows[place])] for place in early]
            places = np.repeat(early, [len(ids) for ids in parts])
            index = self._tensor(places), self._tensor(np.concatenate(parts))
            logits_BV[index] = -torch.inf
        if masks:
            at_M = self._tensor(np.array([place for place, _ in masks], np.int64))
            packed = self._tensor(np.stack([bits for _, bits in masks]).view(np.uint8))
            shifts = torch.tensor(_SHIFTS, dtype=torch.uint8, device=self._device)
            bits_MV = (packed[:, :, None] >> shifts & 1).flatten(1)[:, : self._vocabulary]
            logits_BV[at_M] = logits_BV[at_M].masked_fill_(bits_MV == 0, -torch.inf)

    # --------------------------------------------------------------------------- counts of tokens

    def _count(self, row: int, tokens: NDArray[np.int32], prompt: int) -> None:
        if self._slots[row] < 0:
            self._slots[row] = self._slot()
        assert self._counts is not None
        counts = np.bincount(tokens[prompt:], minlength=self._vocabulary) * 2
        counts[np.unique(tokens[:prompt])] += 1
        self._counts[int(self._slots[row])] = self._tensor(counts.astype(np.int32))

    def _slot(self) -> int:
        """A slot stays with its row: most of what comes to a row asks for the same as before it."""
        if not self._free_slots:
            old = self._counts
            size = 8 if old is None else len(old)
            more = torch.zeros((size, self._vocabulary), dtype=torch.int32, device=self._device)
            start = 0 if old is None else size
            self._counts = more if old is None else torch.cat([old, more])
            self._free_slots = list(range(start + size - 1, start - 1, -1))
        return self._free_slots.pop()

    def _count_in(self, rows: Rows, tokens_B: Tensor) -> None:
        penal = np.flatnonzero(self._penal[rows])
        if len(penal):
            assert self._counts is not None
            slots_M = self._tensor(self._slots[rows[penal]])
            self._counts[slots_M, tokens_B[self._tensor(penal)].clamp(min=0)] += 2

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor


def _checked(best_B: Tensor, tokens_B: Tensor) -> Tensor:
    """A NaN is the greatest there is, so the greatest shows it."""
    return tokens_B.masked_fill_(~torch.isfinite(best_B), BAD)
