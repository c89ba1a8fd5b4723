"""One sentence whose tokens' inputs together hold most of an update: what blurs it hides tokens, not all of them.

After an optimizer's steps, dropped entries or both, an update's leading directions are no token's, and weak tokens lie
in none. But each entry is still about a combination of the tokens' own, so of all sentences the true one's inputs leave
least of the update. One token for each position is looked for by the part of the update that lies in the span of all,
which takes a small matrix's inverse a sentence, and no network.

An optimizer leaves all entries of a column alike in size, whatever the inputs' entries were: inputs are taken in the
sizes that the update's columns have.

Shapes: K sentences, T positions, P candidates at all positions, O and I the layers' output and input size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from textleak.attacks.replaying.lists import FirstUpdate
from textleak.clients.view import View
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import LocalLayer, layer_inputs
from textleak.numerics import exact

# Candidates at all positions, and entries of matrices that are factored at once: bound the memory (our choice).
_CANDIDATES, _ENTRIES = 4096, 2**21
# Rounds in which columns' sizes are those of the sentence found before; steps of one at most (our choice; the second
# changed nothing any more on minilm after 4 and 10 steps of AdamW with dropout).
_ROUNDS, _STEPS = 2, 60
# First tokens of two lists that are tried in pairs, and of one list where its token is tried at another place; fewer
# where a sentence is longer than so many tokens, as it has more places for them (our choice).
_PAIRS, _REFILLS, _LONG = 6, 24, 24
# Sentences that hold hardly less: by this part, so many (our choice; measured likewise: where another one than the true
# sentence held most, it held up to 8e-4 more).
_HARDLY, _RIVALS = 2e-3, 12
# What is added to the inputs' products, so that two like ones don't count as two (our choice).
_RIDGE = 1e-4
# Part of a column's usual size that its size is at least (our choice).
_LEAST_SIZE = 1e-3


class Together:
    """Scores sentences of one length by how much of an update the span of their inputs holds.

    Attributes:
        lists: the tokens tried at each position: its own, and the first ones of all others, as far as there is room.
    """

    def __init__(self, view: View, update: FirstUpdate, lists: Sequence[Sequence[int]]) -> None:
        """Nothing is scored yet.

        Args:
            view: what the server sees.
            update: of its first layers.
            lists: the tokens at each position, likeliest first.
        """
        update_OI = update.stacked_OI
        self.clock = view.clock
        self.lists = _shared(lists)
        self._where = [{token: index for index, token in enumerate(tokens)} for tokens in self.lists]
        self._free = [t for t, tokens in enumerate(self.lists) if len(tokens) > 1]
        self._starts_T = torch.tensor([0, *itertools.accumulate(map(len, self.lists))][:-1])
        self._inputs = _inputs(view.text_model, update.layers[0], self.lists)
        self._sizes_I = update_OI.norm(dim=0).clamp_min(_LEAST_SIZE * float(update_OI.norm(dim=0).mean()))
        self._gram_II = update_OI.T @ update_OI / float(update_OI.square().sum())
        self._products_PP = self._held_PP = torch.empty(0)

    def nearest(self) -> Row:
        """The sentence whose inputs together hold most, as far as steps find it."""
        self._scale(torch.cat(self._inputs))
        row = self._grown()
        for _ in range(_ROUNDS):
            row = self._climbed(row)
            self._scale(torch.stack([inputs_CI[at] for inputs_CI, at in zip(self._inputs, row, strict=True)]))
        return self._tokens(row)

    def rivals(self, row: Row) -> tuple[list[Row], list[float]]:
        """Sentences a change or two from one that hold hardly less, and how clear each place of that one is.

        That one, then those that hold most. A place is as clear as all that have another token there hold less, as a
        part of what that one holds.
        """
        at = tuple(where[token] for where, token in zip(self._where, row, strict=True))
        rows = [at, *{*self._small(at), *self._large(at)} - {at}]
        scores_K = self._scores(rows)
        best_K = scores_K.topk(min(_RIVALS + 1, len(rows))).indices.tolist()
        least = (1 - _HARDLY) * float(scores_K[0])
        near = [index for index in best_K if index and float(scores_K[index]) >= least]
        other_KT = torch.tensor(rows) != torch.tensor(at)
        best_T = scores_K[:, None].where(other_KT, -torch.inf).amax(0)
        clear_T = (1 - best_T / scores_K[0]).clamp_min(0)
        return [row, *(self._tokens(rows[index]) for index in near[:_RIVALS])], clear_T.tolist()

    def _tokens(self, at: Row) -> Row:
        return tuple(tokens[index] for tokens, index in zip(self.lists, at, strict=True))

    def _scale(self, usual_NI: Tensor) -> None:
        """Take inputs in the sizes that the update's columns have, for inputs like these."""
        size_I = usual_NI.square().mean(0).sqrt()
        scale_I = self._sizes_I / (size_I + _LEAST_SIZE * size_I.mean())
        inputs_PI = torch.cat(self._inputs) * scale_I
        inputs_PI = torch.nn.functional.normalize(inputs_PI, dim=1)
        self._products_PP = inputs_PI @ inputs_PI.T
        self._held_PP = inputs_PI @ self._gram_II @ inputs_PI.T

    def _grown(self) -> Row:
        """A sentence to begin with: of all candidates at places still open the one that adds most, until none is open.

        Loud tokens are so found where they stand, before a faint one's place is filled with what another's input shows.
        """
        place_P = torch.repeat_interleave(torch.tensor([len(tokens) for tokens in self.lists]))
        free_P = torch.tensor([len(self.lists[place]) > 1 for place in place_P.tolist()])
        chosen = (~free_P).nonzero().flatten().tolist()
        while free_P.any():
            products_JJ = self._products_PP[chosen][:, chosen]
            products_JJ.diagonal().add_(_RIDGE)
            parts_JP = torch.linalg.solve(products_JJ, self._products_PP[chosen])
            left_P = 1 + _RIDGE - (parts_JP * self._products_PP[chosen]).sum(0)
            shared_JP = self._held_PP[chosen]
            held_P = self._held_PP.diagonal() + (
                (shared_JP[:, chosen] @ parts_JP - 2 * shared_JP) * parts_JP
            ).sum(0)
            best = int((held_P / left_P).where(free_P, -1.0).argmax())
            free_P &= place_P != place_P[best]
            chosen.append(best)
        return tuple(
            index - start for index, start in zip(sorted(chosen), self._starts_T.tolist(), strict=True)
        )

    def _climbed(self, row: Row) -> Row:
        """The best sentence that steps lead to, each to the best one that a change or two make of the last."""
        best = float(self._scores([row])[0])
        for _ in range(_STEPS):
            for changes in (self._small, self._large):
                rows = list(changes(row))
                scores_K = self._scores(rows) if rows else torch.full((1,), best)
                if float(scores_K.max()) > best * (1 + torch.finfo(torch.float32).eps):
                    break
            else:
                return row
            best, row = float(scores_K.max()), rows[int(scores_K.argmax())]
            if self.clock.over:
                return row
        return row

    def _scores(self, rows: Sequence[Row]) -> Tensor:
        """The part of the update in the span of each sentence's inputs, (K,)."""
        parts = []
        at_once = max(1, _ENTRIES // len(self.lists) ** 2)
        for at_KT in torch.split(torch.tensor(rows) + self._starts_T, at_once):
            pairs = at_KT[:, :, None], at_KT[:, None, :]
            products_KTT = self._products_PP[pairs]
            products_KTT.diagonal(dim1=1, dim2=2).add_(_RIDGE)
            factor_KTT = torch.linalg.cholesky(products_KTT)
            held_KTT = torch.cholesky_solve(self._held_PP[pairs], factor_KTT)
            parts.append(held_KTT.diagonal(dim1=1, dim2=2).sum(1))
        return torch.cat(parts)

    def _small(self, row: Row) -> Iterator[Row]:
        """One token changed, two exchanged, or one put in another's place and its own filled anew."""
        for t, tokens in enumerate(self.lists):
            yield from (_with(row, {t: index}) for index in range(len(tokens)))
        shorter = min(1.0, _LONG / len(self.lists))
        for t, u in itertools.permutations(self._free, 2):
            moved = self._index(row, t, u)
            if moved is None:
                continue
            back = self._index(row, u, t)
            if back is not None and t < u:
                yield _with(row, {u: moved, t: back})
            refills = self._few(t, _REFILLS * shorter**2)
            yield from (_with(row, {u: moved, t: index}) for index in refills)

    def _large(self, row: Row) -> Iterator[Row]:
        """Three tokens passed on in turn, or two changed at once."""
        for t, u, v in itertools.permutations(self._free, 3):
            turned = {u: self._index(row, t, u), v: self._index(row, u, v), t: self._index(row, v, t)}
            if t < min(u, v) and None not in turned.values():
                yield _with(row, {at: index for at, index in turned.items() if index is not None})
        shorter = min(1.0, _LONG / len(self.lists))
        for t, u in itertools.combinations(self._free, 2):
            pairs = itertools.product(self._few(t, _PAIRS * shorter), self._few(u, _PAIRS * shorter))
            yield from (_with(row, {t: one, u: other}) for one, other in pairs)

    def _few(self, place: int, most: float) -> range:
        """The first tokens of a place's list."""
        return range(min(max(1, round(most)), len(self.lists[place])))

    def _index(self, row: Row, at: int, place: int) -> int | None:
        """Where a place's list has the token that stands elsewhere."""
        return self._where[place].get(self.lists[at][row[at]])


def _shared(lists: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each position's tokens, and the first ones of all others, as far as there is room; what is alone stays so."""
    room = max(1, _CANDIDATES // len(lists))
    ranks = itertools.zip_longest(*(tokens for tokens in lists if len(tokens) > 1))
    others = [token for rank in ranks for token in rank if token is not None]
    return [
        [*dict.fromkeys((*tokens, *others))][:room] if len(tokens) > 1 else list(tokens) for tokens in lists
    ]


def _inputs(model: TextModel, layer: LocalLayer, lists: Sequence[Sequence[int]]) -> list[Tensor]:
    """What the layer reads of each of the tokens at each position, (tokens, I) in float64 on the CPU."""
    ids = [*dict.fromkeys(itertools.chain(*lists))]
    where = {token: index for index, token in enumerate(ids)}
    ids_NT = torch.tensor(ids, device=model.device)[:, None].expand(-1, len(lists))
    read_NTI = layer.meant(layer_inputs(model, ids_NT, [layer.name])[layer.name])
    return [exact(read_NTI[[where[token] for token in tokens], t]).cpu() for t, tokens in enumerate(lists)]


def _with(row: Row, changed: Mapping[int, int]) -> Row:
    """A row with some positions changed."""
    return tuple(changed.get(t, index) for t, index in enumerate(row))
