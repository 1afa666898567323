"""Chooses the next token of each row from its logits, as its `Sampling` says.

Owns what sampling keeps for each row of the table: its parameters, and tallies of tokens where
penalties need them. Vectorised: a batch of plain greedy rows costs one argmax; other rows pay for
what they ask. The host knows all tokens before the one that is chosen. Invariant: a row's token
depends on its own logits, parameters, seed and position alone, and is BAD where its logits are not
finite.

Shape suffixes: B rows that get a token, V vocabulary, M rows of B that ask for something, K likely
tokens, E entries of logits that are changed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequential
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.llm.engine import chance
from backends.llm.engine.draw import Cuts, draw, draw_cut, probabilities
from backends.llm.engine.sequence import Rows, Sequence, Table
from backends.llm.engine.staging import put
from backends.llm.engine.tally import Tally

BAD = -1
_COLD = 1e-5


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
    def __init__(self, table: Table, vocabulary: int, device: torch.device) -> None:
        self._table, self._vocabulary, self._device = table, vocabulary, device
        rows = table.rows
        self._temperature = np.zeros(rows, np.float32)
        self._top_k = np.zeros(rows, np.int64)
        self._top_p = np.ones(rows, np.float64)
        self._min_p = np.zeros(rows, np.float32)
        self._cut = np.zeros(rows, np.bool_)  # by rank or mass, for which tokens are ordered
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
        self._tallies: dict[int, Tally] = {}
        self._tallied = np.zeros(rows, np.int64)  # tokens of the sequence that are counted

    def place(self, sequence: Sequence) -> None:
        """Its row in the table is its own from now on."""
        row, sampling = sequence.row, sequence.generation.sampling
        # So cold a distribution has one token; dividing by less could overflow.
        cold = sampling.temperature < _COLD
        self._temperature[row] = 0.0 if cold else sampling.temperature
        self._top_k[row], self._top_p[row] = sampling.top_k, sampling.top_p
        self._min_p[row] = sampling.min_p
        self._cut[row] = sampling.top_k > 0 or sampling.top_p < 1
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
            not cold
            or self._penal[row]
            or self._biased[row]
            or self._min_tokens[row]
            or sampling.logprobs is not None
        )
        self._tallies.pop(row, None)
        if self._penal[row]:
            prompt = self._table.tokens[row, : sequence.prompt]
            # Only a repetition's penalty is for those of the prompt too.
            self._tallies[row] = Tally(prompt[: 0 if penalties[0] == 1 else None])
            self._tallied[row] = sequence.prompt

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
        (asked_M,) = put(self._device, asked)
        raw_MV = logits_BV[asked_M] if len(asked) else None
        self._penalise(logits_BV, rows)
        self._forbid(logits_BV, rows, positions, masks)
        tokens_B = self._pick(logits_BV, rows, positions)
        found, tops = None, self._logprobs[rows[asked]]
        if raw_MV is not None:
            found = likely(raw_MV, tokens_B[asked_M].clamp(min=0), int(tops.max()))
        return Chosen(tokens_B, asked, tops, found)

    def _pick(self, logits_BV: Tensor, rows: Rows, positions: Rows) -> Tensor:
        best_B, tokens_B = logits_BV.max(-1)
        random, cut = self._temperature[rows] > 0, self._cut[rows]
        for places in (np.flatnonzero(random & cut), np.flatnonzero(random & ~cut)):
            if len(places):
                self._draw(logits_BV, rows[places], places, positions[places], tokens_B)
        return _checked(best_B, tokens_B)

    def _draw(
        self, logits_BV: Tensor, own: Rows, places: Rows, positions: Rows, tokens_B: Tensor
    ) -> None:
        """For rows `own` at `places` of the batch; all are cut by rank or mass, or none."""
        chances = chance.uniform(self._seeds[own], self._choices[own], positions.astype(np.uint64))
        at_M, temperature_M, chance_M, top_k_M, top_p_M, min_p_M = put(
            self._device,
            places,
            self._temperature[own],
            chances,
            self._top_k[own],
            self._top_p[own],
            self._min_p[own],
        )
        logits_MV = logits_BV if len(own) == len(logits_BV) else logits_BV[at_M]
        chances_MV = probabilities(logits_MV, temperature_M)
        if self._cut[own[0]]:
            top_k = self._top_k[own]
            cuts = Cuts(top_k_M, top_p_M, min_p_M, int(top_k.max()), bool(top_k.all()))
            drawn_M = draw_cut(chances_MV, cuts, chance_M)
        else:
            if self._min_p[own].any():
                least_M = min_p_M * chances_MV.amax(-1)
                chances_MV.masked_fill_(chances_MV < least_M[:, None], 0.0)
            drawn_M = draw(chances_MV, chance_M)
        # Where there was a NaN it may be anything; `_checked` sees to that.
        tokens_B[at_M] = drawn_M.clamp_(max=self._vocabulary - 1)

    # ---------------------------------------------------------------------- what changes the logits

    def _add_bias(self, logits_BV: Tensor, rows: Rows) -> None:
        biased = np.flatnonzero(self._biased[rows])
        if len(biased):
            parts = [self._bias[row] for row in rows[biased].tolist()]
            places = np.repeat(biased, [len(ids) for ids, _ in parts])
            ids, values = (np.concatenate(side) for side in zip(*parts, strict=True))
            places_E, ids_E, values_E = put(self._device, places, ids, values)
            logits_BV.index_put_((places_E, ids_E), values_E, accumulate=True)

    def _penalise(self, logits_BV: Tensor, rows: Rows) -> None:
        penal = np.flatnonzero(self._penal[rows])
        if not len(penal):
            return
        tallies = [self._tally(row) for row in rows[penal].tolist()]
        sizes = [len(tally.ids) for tally in tallies]
        places_E, ids_E, counts_E, penalties_E3 = put(
            self._device,
            np.repeat(penal, sizes),
            np.concatenate([tally.ids for tally in tallies]),
            np.concatenate([tally.counts for tally in tallies]),
            np.repeat(self._penalties[rows[penal]], sizes, 0),
        )
        repetition_E, presence_E, frequency_E = penalties_E3.unbind(1)
        logits_E = logits_BV[places_E, ids_E]
        logits_E = torch.where(logits_E > 0, logits_E / repetition_E, logits_E * repetition_E)
        logits_E -= frequency_E * counts_E + presence_E * (counts_E > 0)
        logits_BV[places_E, ids_E] = logits_E

    def _tally(self, row: int) -> Tally:
        """With all tokens that are known by now."""
        tally, known = self._tallies[row], int(self._table.known[row])
        for token in self._table.tokens[row, self._tallied[row] : known].tolist():
            tally.add(token)
        self._tallied[row] = known
        return tally

    def _forbid(
        self,
        logits_BV: Tensor,
        rows: Rows,
        positions: Rows,
        masks: Sequential[tuple[int, NDArray[np.uint32]]],
    ) -> None:
        early = np.flatnonzero(positions < self._min_tokens[rows])
        if len(early):
            parts = [self._stops[row] for row in rows[early].tolist()]
            places = np.repeat(early, [len(ids) for ids in parts])
            places_E, ids_E = put(self._device, places, np.concatenate(parts))
            logits_BV[places_E, ids_E] = -torch.inf
        if masks:
            at_M, packed, shifts = put(
                self._device,
                np.array([place for place, _ in masks], np.int64),
                np.stack([bits for _, bits in masks]).view(np.uint8),
                np.arange(8, dtype=np.uint8),
            )
            bits_MV = (packed[:, :, None] >> shifts & 1).flatten(1)[:, : self._vocabulary]
            logits_BV[at_M] = logits_BV[at_M].masked_fill_(bits_MV == 0, -torch.inf)


def _checked(best_B: Tensor, tokens_B: Tensor) -> Tensor:
    """A NaN is the greatest there is, so the greatest shows it."""
    return tokens_B.masked_fill_(~torch.isfinite(best_B), BAD)
