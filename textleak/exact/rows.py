"""What the gradients of the embeddings themselves give away: which tokens, and where (FILM's bag, and our order).

The gradient of a word's row is the sum of the loss's gradients at its occurrences, and that of a position's row the
sum over the sentences that reach it. Rows of absent tokens are zero (Gupta et al. 2022, FILM, sec. 3).

- Tokens and positions that belong to each other and to nothing else have equal sums. All such groups come out of the
  rows' linear relations at once; at B = 1 each position's group holds one token, so the whole order is read off.
- Where the sum of embeddings is normalized at once, as in most encoders, the gradient at it is at right angles to it
  (`models.probes.sums`). That tests a single token at a single position, so tokens that stand at one position only
  find it in a batch of any size. They are taken away, and what is left of the rows is looked at again (our choice).
- An output head tied to the embeddings adds predictions times last hidden states to every row: few dimensions, which
  the rows of absent tokens show; what lies outside of them was looked up.

What these can't tell stays open; nothing is guessed.

Shapes: L tokens that were looked up, T positions, E embedding size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.exact.subspace import input_span
from textleak.models import TextModel
from textleak.models.probes.sums import EmbeddingSum, embedding_sum
from textleak.numerics import exact
from textleak.shared.gradient import SharedGradient

# Sums that should be equal may differ by this many unit roundoffs of their largest terms (our choice; measured: at most
# 1, while sums that aren't equal differ by 1e3 and more).
_SLACK = 16.0
# A cosine within the first of these many unit roundoffs of zero is zero, where no other one is within the second (our
# choice; measured in float32 on toys of four encoders, three kernels each: of 486 tokens at their one position half are
# within 0.4, 99 % within 2.8 and all within 4.7; of 5,346 wrong positions one is within 86, none else within 1,200).
_RIGHT_ANGLE, _PERHAPS = 8.0, 32.0
# The same among a whole vocabulary, where more would pass by accident (our choice).
_AMONG_ALL = 4.0
# How sure it must be that the cosine of no wrong position would have been as small by accident (our choice).
_SURE = 0.999
# A token's row whose part outside the head's dimensions is this much larger than the next one's was looked up (our
# choice; measured on gpt2 and smollm2: steps of 10 to 1e4).
_CLEAR_STEP = 8.0
# Under noise: the chance that any row of nothing but noise is taken for a token, and that a true pair is left out.
_ERROR_RATE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingRows:
    """What the rows of the embeddings' gradients show.

    Attributes:
        bag: how often each token that was looked up occurs in the batch; None where that isn't known.
        places: tokens found at each position, as far as positions show; the last prediction's label isn't an input.
        closed: for each position whether nothing else stands there.
        unplaced: tokens some of whose positions aren't known.
        could_be: for each position that isn't closed, the unplaced tokens that could stand there.
        confidence: of the tokens in `places` (of each position), 1 where the rows' sums prove them.
        complete: whether all rows are explained, as those of one sentence.
        notes: sentences for a person.
    """

    bag: dict[int, int | None]
    places: tuple[tuple[int, ...], ...] = ()
    closed: tuple[bool, ...] = ()
    unplaced: tuple[int, ...] = ()
    could_be: tuple[tuple[int, ...], ...] = ()
    confidence: tuple[float, ...] = ()
    complete: bool = False
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(kw_only=True, eq=False)
class _LookedUp:
    """Rows of tokens that were looked up, without what a tied head adds to them.

    Attributes:
        ids: the tokens.
        rows_LE: their rows, float64.
        errors_L: rounding of each row, as a norm.
        head_RE: the dimensions that a tied head fills; none where there is no such head.
    """

    ids: list[int]
    rows_LE: Tensor
    errors_L: Tensor
    head_RE: Tensor | None = None


def read_rows(model: TextModel, shared: SharedGradient) -> EmbeddingRows | None:
    """Read tokens and positions off the gradients of the embeddings.

    Args:
        model: the public model.
        shared: the shared gradient.

    Returns:
        None where neither the word nor the position embedding was shared, or nothing stands out of them.

    Raises:
        InputError: a gradient of another model.
    """
    shared.validate(model.parameters)
    places = embedding_sum(model)
    word = _word_gradient(model, shared)
    at_T = shared.gradients.get(places.position_name or "")
    if word is None and at_T is None:
        return None
    notes: list[str] = []
    looked_up = None if word is None else _looked_up(model, shared, word, notes)
    positions = None if at_T is None else _position_rows(shared, places, at_T, looked_up)
    if looked_up is None or not looked_up.ids:
        return _positions_alone(model, places, positions, notes)
    reading = _Reading(model, shared, places, looked_up, positions)
    reading.read()
    return reading.result(notes)


def _word_gradient(model: TextModel, shared: SharedGradient) -> Tensor | None:
    table = model.word_embedding.weight
    return next((g for name, g in shared.gradients.items() if model.parameters[name] is table), None)


def _unit(gradient: Tensor) -> float:
    """Unit roundoff of what the gradient was computed in."""
    return torch.finfo(gradient.dtype).eps / 2


def _tied(model: TextModel) -> bool:
    head = model.network.get_output_embeddings()
    return head is not None and getattr(head, "weight", None) is model.word_embedding.weight


def _looked_up(
    model: TextModel, shared: SharedGradient, gradient_VE: Tensor, notes: list[str]
) -> _LookedUp | None:
    """The tokens whose rows show a look-up; None where they can't be told from the others."""
    if _tied(model):
        return _looked_up_beside_a_head(shared, gradient_VE, notes)
    sigma = shared.noise_sigma
    size = gradient_VE.shape[1]
    if sigma > 0:
        from scipy.stats import chi2

        energy_V = exact(gradient_VE).square().sum(1)
        floor = sigma**2 * float(chi2.isf(_ERROR_RATE / len(gradient_VE), size))
        ids = (energy_V > floor).nonzero().flatten().tolist()
        notes.append(
            f"{len(ids)} rows of the word embedding stand out of the noise (norm above {floor**0.5:.2g}, which noise "
            f"alone exceeds once in {1 / _ERROR_RATE:.0f} gradients)."
        )
        errors_L = torch.full((len(ids),), sigma * size**0.5, dtype=torch.float64)
        return _LookedUp(ids=ids, rows_LE=exact(gradient_VE[ids]).cpu(), errors_L=errors_L)
    ids = gradient_VE.any(1).nonzero().flatten().tolist()
    if len(ids) == len(gradient_VE):
        notes.append("No row of the word embedding is zero, so they don't tell which tokens were looked up.")
        return None
    rows_LE = exact(gradient_VE[ids]).cpu()
    return _LookedUp(ids=ids, rows_LE=rows_LE, errors_L=_unit(gradient_VE) * rows_LE.norm(dim=1))


def _looked_up_beside_a_head(
    shared: SharedGradient, gradient_VE: Tensor, notes: list[str]
) -> _LookedUp | None:
    """Rows that leave the dimensions which a tied head's part fills.

    That part is predictions times last hidden states, so it has as many dimensions as there were predictions, and
    labels add to their rows in the same ones.
    """
    size = gradient_VE.shape[1]
    if shared.noise_sigma > 0:
        notes.append(
            "The output head is tied to the word embedding, and noise hides what was looked up in it."
        )
        return None
    norms_V = exact(gradient_VE).norm(dim=1)
    # Rows of absent tokens are mere predictions; those that were looked up are among the largest.
    most = norms_V.argsort()[len(norms_V) // 10 : len(norms_V) * 9 // 10]
    drawn = most[torch.linspace(0, len(most) - 1, min(len(most), 2 * size)).long()]
    scaled_NE = (exact(gradient_VE[drawn]) / norms_V[drawn, None].clamp_min(1e-300)).to(gradient_VE.dtype)
    span = input_span([scaled_NE], ["head"])
    if span is None or not span.clear:
        notes.append(
            f"The output head is tied to the word embedding and fills all of its {size} dimensions: too many "
            "predictions to tell which tokens were looked up."
        )
        return None
    basis_RE = span.basis_RI.to(norms_V.device)
    left_V = torch.cat(
        [_outside(exact(part), basis_RE).norm(dim=1) for part in torch.split(gradient_VE, 8192)]
    )
    share_V = left_V / norms_V.clamp_min(1e-300)
    order = share_V.argsort(descending=True)
    top = share_V[order[: len(order) // 2]].clamp_min(1e-300)
    step = top[:-1] / top[1:]
    count = int(step.argmax()) + 1
    if float(step[count - 1]) < _CLEAR_STEP:
        notes.append("The output head is tied to the word embedding and hides which tokens were looked up.")
        return None
    ids = sorted(order[:count].tolist())
    level = float(share_V[order[count]])  # what rounding leaves of rows that weren't looked up
    return _LookedUp(
        ids=ids,
        rows_LE=_outside(exact(gradient_VE[ids]), basis_RE).cpu(),
        errors_L=level * norms_V[ids].cpu(),
        head_RE=basis_RE.cpu(),
    )


def _outside(rows_NE: Tensor, basis_RE: Tensor | None) -> Tensor:
    if basis_RE is None:
        return rows_NE
    return rows_NE - (rows_NE @ basis_RE.T) @ basis_RE


@dataclasses.dataclass(kw_only=True, eq=False)
class _Positions:
    """Rows of the positions that were reached: sums over the sentences, float64, and their rounding."""

    rows_TE: Tensor
    errors_T: Tensor


def _position_rows(
    shared: SharedGradient, places: EmbeddingSum, gradient: Tensor, looked_up: _LookedUp | None
) -> _Positions:
    whole_TE = exact(gradient[list(places.rows)]).cpu()
    norms_T = whole_TE.norm(dim=1)
    errors_T = _unit(gradient) * norms_T
    if shared.noise_sigma > 0:
        from scipy.stats import chi2

        floor = shared.noise_sigma * float(chi2.isf(_ERROR_RATE / len(norms_T), whole_TE.shape[1])) ** 0.5
        errors_T = torch.full_like(norms_T, shared.noise_sigma * whole_TE.shape[1] ** 0.5)
    else:
        floor = 0.0
    reached = (norms_T > floor).nonzero().flatten().tolist()
    count = reached[-1] + 1 if reached else 0
    head_RE = looked_up.head_RE if looked_up is not None else None
    return _Positions(rows_TE=_outside(whole_TE[:count], head_RE), errors_T=errors_T[:count])


class _Reading:
    """Tokens and positions whose rows are taken apart step by step; both keep what isn't explained yet."""

    def __init__(
        self,
        model: TextModel,
        shared: SharedGradient,
        places: EmbeddingSum,
        looked_up: _LookedUp,
        positions: _Positions | None,
    ) -> None:
        self.model = model
        self.shared = shared
        self.ids = looked_up.ids
        self.words_LE, self.word_errors_L = looked_up.rows_LE.clone(), looked_up.errors_L.clone()
        self.shown = positions is not None
        size = self.words_LE.shape[1]
        if positions is not None:
            self.sums_TE, self.sum_errors_T = positions.rows_TE.clone(), positions.errors_T.clone()
        else:  # any position could be
            lengths = shared.known.lengths
            count = (
                max(lengths) if lengths else (len(places.offset_TE) if places.offset_TE is not None else 0)
            )
            self.sums_TE, self.sum_errors_T = torch.zeros(count, size).double(), torch.zeros(count).double()
        self.at: list[dict[int, float]] = [{} for _ in self.sums_TE]  # confidence of each token (index) there
        self.closed = [False] * len(self.sums_TE)
        self.placed: set[int] = set()  # tokens all of whose positions are known
        self.groups: list[
            tuple[list[int], list[int]]
        ] = []  # tokens and positions that belong together, unresolved
        across = places.across and looked_up.head_RE is None and shared.noise_sigma == 0
        self.offset_TE = (
            places.offset_TE[: len(self.sums_TE)].cpu() if across and places.offset_TE is not None else None
        )

    def read(self) -> None:
        """All steps, from what proves itself to what a scalar tells."""
        words, positions = list(range(len(self.ids))), list(range(len(self.sums_TE)))
        if self.shown:
            if self.shared.noise_sigma > 0:
                self._pairs_under_noise()
            else:
                self._pairs()
                self._relations()
        known_words = {w for group in self.groups for w in group[0]} | self.placed
        known_positions = {t for group in self.groups for t in group[1]} | {
            t for t in positions if self.closed[t]
        }
        rest = [w for w in words if w not in known_words]
        rest_T = [t for t in positions if t not in known_positions]
        if rest:
            self.groups.append((rest, rest_T))
        if self.offset_TE is not None:
            for group in self.groups:
                self._take_away(*group)
        if known_alone(self.shared) or (_open_size(self.shared) and self._like_one_sentence()):
            self._fill()

    # Equal sums

    def _settle(self, words: Sequence[int], positions: Sequence[int]) -> None:
        """A group of tokens and positions with equal sums: told apart where one side has one member."""
        if len(words) > 1 and len(positions) > 1:
            self.groups.append((list(words), list(positions)))
            return
        for t in positions:
            self.at[t] = dict.fromkeys(words, 1.0)
            self.closed[t] = True
        self.placed |= set(words)

    def _pairs(self) -> None:
        """One token and one position with equal rows."""
        apart_LT = torch.cdist(self.words_LE, self.sums_TE, compute_mode="donot_use_mm_for_euclid_dist")
        equal_LT = apart_LT <= _SLACK * (self.word_errors_L[:, None] + self.sum_errors_T)
        self._settle_pairs(equal_LT, 1.0)

    def _pairs_under_noise(self) -> None:
        """One token and one position whose rows differ by no more than twice the noise."""
        from scipy.stats import chi2

        variance = 2 * self.shared.noise_sigma**2
        apart_LT = torch.cdist(self.words_LE, self.sums_TE, compute_mode="donot_use_mm_for_euclid_dist")
        most = variance * float(chi2.isf(_ERROR_RATE / max(1, apart_LT.numel()), self.words_LE.shape[1]))
        self._settle_pairs(apart_LT.square() <= most, 1 - _ERROR_RATE)

    def _settle_pairs(self, equal_LT: Tensor, confidence: float) -> None:
        single_LT = equal_LT & (equal_LT.sum(0) == 1) & (equal_LT.sum(1, keepdim=True) == 1)
        for word, t in single_LT.nonzero().tolist():
            self._settle([word], [t])
            self.at[t] = {word: confidence}

    def _relations(self) -> None:
        """Groups of tokens and positions with equal sums: the rows' linear relations, as many as there are groups.

        The projector onto them joins two rows just where they are in one group.
        """
        words = [w for w in range(len(self.ids)) if w not in self.placed]
        positions = [t for t in range(len(self.sums_TE)) if not self.closed[t]]
        count = len(words) + len(positions)
        if not words or not positions or count > self.words_LE.shape[1]:
            return
        rows_NE = torch.cat([self.words_LE[words], -self.sums_TE[positions]])
        errors_N = torch.cat([self.word_errors_L[words], self.sum_errors_T[positions]]).clamp_min(1e-300)
        left_NN, s_N, _ = torch.linalg.svd(rows_NE / errors_N[:, None])
        relations_NR = left_NN[:, s_N <= _SLACK]
        projector_NN = relations_NR @ relations_NR.T
        own_N = projector_NN.diagonal().clamp_min(1e-300).sqrt()
        together_NN = projector_NN.abs() / own_N[:, None] / own_N > 0.5
        seen: set[int] = set()
        for n in range(count):
            members = together_NN[n].nonzero().flatten().tolist()
            if n in seen or not members or seen & set(members):
                continue
            seen |= set(members)
            if rows_NE[members].sum(0).norm() > _SLACK * errors_N[members].sum():
                continue
            inside = [words[m] for m in members if m < len(words)]
            where = [positions[m - len(words)] for m in members if m >= len(words)]
            if inside and where:
                self._settle(inside, where)

    # Right angles

    def _take_away(self, words: list[int], positions: list[int]) -> None:
        """Tokens that stand at one position only, and positions where one token is left, until nothing is found.

        Changes the two lists to what is left.
        """
        offset_TE = self.offset_TE
        assert offset_TE is not None
        tokens_LE = self.model.word_embedding.weight[self.ids].detach().double().cpu()
        while True:
            found = self._lone_word(words, positions, tokens_LE, offset_TE)
            if found is None and self.shown:
                found = self._lone_position(words, positions, tokens_LE, offset_TE)
            if found is None:
                break
            word, t, confidence, by_position = found
            self.at[t][word] = confidence
            part_E = (self.sums_TE if by_position else self.words_LE)[t if by_position else word].clone()
            rounding = (self.sum_errors_T if by_position else self.word_errors_L)[t if by_position else word]
            self.words_LE[word] -= part_E
            self.word_errors_L[word] += rounding
            if self.shown:
                self.sums_TE[t] -= part_E
                self.sum_errors_T[t] += rounding
            if self.words_LE[word].norm() <= _SLACK * self.word_errors_L[word]:
                self.placed.add(word)
                words.remove(word)
            if self.shown and self.sums_TE[t].norm() <= _SLACK * self.sum_errors_T[t]:
                self.closed[t] = True
                positions.remove(t)
                if not by_position:  # all of the row is explained: that is a proof
                    self.at[t] = dict.fromkeys(self.at[t], 1.0)

    def _lone_word(
        self, words: list[int], positions: list[int], tokens_LE: Tensor, offset_TE: Tensor
    ) -> tuple[int, int, float, bool] | None:
        """A token whose row is at right angles to its embedding's sum at exactly one position."""
        if not words or not positions:
            return None
        rows_WE, tokens_WE, there_PE = self.words_LE[words], tokens_LE[words], offset_TE[positions]
        along_WP = (rows_WE * tokens_WE).sum(1, keepdim=True) + rows_WE @ there_PE.T
        cosine_WP = along_WP.abs() / _sum_norms(tokens_WE, there_PE) / rows_WE.norm(dim=1, keepdim=True)
        roundoff_W = self.word_errors_L[words] / rows_WE.norm(dim=1)
        for i, word in enumerate(words):
            fitting = [
                p
                for p, t in enumerate(positions)
                if word not in self.at[t] and cosine_WP[i, p] <= _PERHAPS * roundoff_W[i]
            ]
            allowed = _RIGHT_ANGLE * float(roundoff_W[i])
            sure = _surety(cosine_WP, allowed)
            if len(fitting) == 1 and cosine_WP[i, fitting[0]] <= allowed and sure >= _SURE:
                return word, positions[fitting[0]], sure, False
        return None

    def _lone_position(
        self, words: list[int], positions: list[int], tokens_LE: Tensor, offset_TE: Tensor
    ) -> tuple[int, int, float, bool] | None:
        """A position whose remaining row is at right angles to exactly one token's sum there."""
        if not words or not positions:
            return None
        rows_PE, there_PE, tokens_WE = self.sums_TE[positions], offset_TE[positions], tokens_LE[words]
        along_PW = (rows_PE * there_PE).sum(1, keepdim=True) + rows_PE @ tokens_WE.T
        norms_P = rows_PE.norm(dim=1).clamp_min(1e-300)
        cosine_PW = along_PW.abs() / _sum_norms(tokens_WE, there_PE).T / norms_P[:, None]
        roundoff_P = self.sum_errors_T[positions] / norms_P
        for i, t in enumerate(positions):
            fitting = [
                w
                for w, word in enumerate(words)
                if word not in self.at[t] and cosine_PW[i, w] <= _PERHAPS * roundoff_P[i]
            ]
            allowed = _RIGHT_ANGLE * float(roundoff_P[i])
            sure = _surety(cosine_PW, allowed)
            if len(fitting) == 1 and cosine_PW[i, fitting[0]] <= allowed and sure >= _SURE:
                return words[fitting[0]], t, sure, True
        return None

    # One sentence

    def _fill(self) -> None:
        """In a batch of one sentence, the last token without a place takes all places that are left."""
        left = [w for w in range(len(self.ids)) if w not in self.placed]
        if len(left) != 1 or any(len(here) > 1 for here in self.at):
            return
        if self.shown:
            inputs = len(self.at)
        elif self.shared.known.lengths is not None:
            inputs = self.shared.known.lengths[0] - (self.model.task == "causal-lm")
        elif self._ends():
            inputs = self._reach()
        else:
            return
        sure = min((c for here in self.at for c in here.values()), default=1.0)
        for t in range(inputs):
            if not self.at[t]:
                self.at[t][left[0]] = sure
        self.placed.add(left[0])

    # What was found

    def result(self, notes: list[str]) -> EmbeddingRows:
        """Everything by token id."""
        alone = known_alone(self.shared) or (_open_size(self.shared) and self._like_one_sentence())
        if not self.shown:
            self.at = self.at[: self._reach()]
        if alone:
            self.closed = [bool(here) for here in self.at]
        else:
            self.closed = self.closed[: len(self.at)]
        unplaced = [w for w in range(len(self.ids)) if w not in self.placed]
        could_be = tuple(
            ()
            if self.closed[t]
            else tuple(
                self.ids[w]
                for words, positions in self.groups
                if t in positions
                for w in words
                if w in set(unplaced) - self.at[t].keys()
            )
            for t in range(len(self.at))
        )
        if unplaced and not alone:
            notes.append(
                f"{len(unplaced)} of {len(self.ids)} tokens stand at several positions, or share theirs in a way that "
                "the rows' sums leave open."
            )
        elif unplaced:
            notes.append(
                f"The positions of {len(unplaced)} of {len(self.ids)} tokens don't show in the rows."
            )
        return EmbeddingRows(
            bag=self._bag(alone, unplaced),
            places=tuple(tuple(self.ids[w] for w in here) for here in self.at),
            closed=tuple(self.closed),
            unplaced=tuple(self.ids[w] for w in unplaced),
            could_be=could_be,
            confidence=tuple(min(here.values(), default=0.0) for here in self.at),
            complete=alone and not unplaced and bool(self.at) and all(len(here) == 1 for here in self.at),
            notes=tuple(notes),
        )

    def _like_one_sentence(self) -> bool:
        """Whether no position has two tokens, which all sentences but equal ones would share."""
        if self.shown:
            return all(closed and len(here) == 1 for closed, here in zip(self.closed, self.at, strict=True))
        return self._ends() and all(len(here) <= 1 for here in self.at)

    def _reach(self) -> int:
        """Positions up to the last one at which a token was found."""
        return max((t + 1 for t, here in enumerate(self.at) if here), default=0)

    def _ends(self) -> bool:
        """Whether the last token found is the one that the tokenizer ends a sentence with."""
        reach, suffix = self._reach(), self.model.suffix_ids
        return bool(reach and suffix) and [self.ids[w] for w in self.at[reach - 1]] == [suffix[-1]]

    def _bag(self, alone: bool, unplaced: Sequence[int]) -> dict[int, int | None]:
        """How often each token occurs, where the places and what is known of the batch tell."""
        known = self.shared.known
        inputs = None
        if known.lengths is not None:
            inputs = [n - (self.model.task == "causal-lm") for n in known.lengths]
        bag: dict[int, int | None] = {}
        for w, id_ in enumerate(self.ids):
            counts = [
                self._count_at(t, alone, inputs)
                for t, here in enumerate(self.at)
                if w in here and w not in unplaced
            ]
            bag[id_] = sum(c for c in counts if c is not None) if counts and None not in counts else None
        if inputs is not None and sum(inputs) == len(self.ids):  # no room for a second occurrence
            bag = dict.fromkeys(self.ids, 1)
        open_ = [id_ for id_, count in bag.items() if count is None]
        if inputs is not None and len(open_) == 1:
            bag[open_[0]] = sum(inputs) - sum(count or 0 for count in bag.values())
        return bag

    def _count_at(self, t: int, alone: bool, inputs: list[int] | None) -> int | None:
        """How often each token found at a position stands there."""
        if alone:
            return 1
        if not self.closed[t]:
            return None
        reach = sum(n > t for n in inputs) if inputs is not None else None
        size = self.shared.known.batch_size
        if len(self.at[t]) == reach or (reach is None and len(self.at[t]) == size):
            return 1
        return reach if len(self.at[t]) == 1 else None


def _sum_norms(tokens_WE: Tensor, there_PE: Tensor) -> Tensor:
    """Norm of each token's embedding plus what each position adds: (W, P)."""
    squared_WP = (
        tokens_WE.square().sum(1, keepdim=True) + 2 * tokens_WE @ there_PE.T + there_PE.square().sum(1)
    )
    return squared_WP.clamp_min(1e-300).sqrt()


def _surety(cosines_MN: Tensor, allowed: float) -> float:
    """The chance that none of a row's others would have passed by accident, from how the cosines are spread."""
    others = cosines_MN.shape[1] - 1
    spread = float(cosines_MN.median())
    if not others:
        return 1.0
    # Where half of them are 0, as where nothing was shared but zeros, passing says nothing.
    return max(0.0, 1 - others * allowed / spread) if spread > 0 else 0.0


def known_alone(shared: SharedGradient) -> bool:
    """Whether the batch is known to be one sentence."""
    return shared.known.batch_size == 1 or (
        shared.known.lengths is not None and len(shared.known.lengths) == 1
    )


def _open_size(shared: SharedGradient) -> bool:
    return shared.known.batch_size is None and shared.known.lengths is None and shared.known.labels is None


def _positions_alone(
    model: TextModel, places: EmbeddingSum, positions: _Positions | None, notes: list[str]
) -> EmbeddingRows | None:
    """Where no token shows in the word embedding's rows, a position's row still has to fit its token, at B = 1."""
    if positions is None:
        return EmbeddingRows(bag={}, notes=tuple(notes)) if notes else None
    count = len(positions.rows_TE)
    fitting: list[tuple[int, ...]] = [()] * count
    if places.across and places.offset_TE is not None:
        table_VE = model.word_embedding.weight.detach()
        norms_T = positions.rows_TE.norm(dim=1)
        passed: list[list[int]] = [[] for _ in range(count)]
        for start in range(0, model.vocab_size, 8192):
            tokens_WE = exact(table_VE[start : start + 8192]).cpu()
            there_TE = places.offset_TE[:count].cpu()
            along_WT = tokens_WE @ positions.rows_TE.T + (there_TE * positions.rows_TE).sum(1)
            cosine_WT = along_WT.abs() / _sum_norms(tokens_WE, there_TE) / norms_T
            for w, t in (cosine_WT <= _AMONG_ALL * positions.errors_T / norms_T).nonzero().tolist():
                passed[t].append(start + w)
        fitting = [tuple(ids) for ids in passed]
    notes.append(
        f"Only positions show: the longest sentence has {count + (model.task == 'causal-lm')} tokens."
        if not any(fitting)
        else "Tokens were told by the positions' rows alone: each is at right angles to its sum of embeddings."
    )
    return EmbeddingRows(
        bag={},
        places=((),) * count,
        closed=(False,) * count,
        could_be=tuple(fitting),
        confidence=(0.0,) * count,
        notes=tuple(notes),
    )
