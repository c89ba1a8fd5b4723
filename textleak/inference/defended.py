"""What was done to a gradient before it was shared: entries set to 0, rounded to few levels, or noised."""

from __future__ import annotations

import torch
from torch import Tensor

from textleak.exact.lookups import tied
from textleak.inference.altered import altered, few_levels, levels_of, matrices_of, zeroed
from textleak.inference.base import Seen, Told, measured, per_cent
from textleak.inference.inputs import coarse_span, first_inputs
from textleak.inference.kind import sent_as
from textleak.inference.precision import coarse
from textleak.inference.vocabulary import words_of
from textleak.numerics import exact, singular_values

PRUNED, QUANTIZED, NOISED = "pruned", "quantized", "noised"
# How evenly noise fills a spectrum: the ratio of the smallest singular value to what noise alone makes it, at least
# (our choice; measured on minilm: 0.97 and more of noise, under 1e-3 of a gradient's own rounding).
_EVEN = 0.7
# Matrices that are decomposed, and their entries at least (our choice).
_LOOKED_AT, _ENTRIES = 8, 4096


def pruned(seen: Seen) -> Told:
    """The share of entries that were set to 0, beside whole rows and columns."""
    found, update = zeroed(seen), sent_as(seen).kind != "gradient"
    if found.share is None:
        why = "Rounding of the weights hides it." if update else "No matrix was sent to count in."
        return Told(what=PRUNED, value=None, evidence=why)
    which = "of weights too near to 0 to round them away" if update else "of matrices"
    figure = f"{per_cent(found.share)} of {found.total:,} entries {which} are 0, empty rows and columns aside"
    if not found.pruned:
        return Told(what=PRUNED, value=0.0, evidence=f"{figure}.")
    return Told(
        what=PRUNED, value=round(found.share, 4), evidence=f"{figure}: a gradient's own are almost never."
    )


def quantized(seen: Seen) -> Told:
    """How many levels entries have, where they are few."""
    if sent_as(seen).kind != "gradient":
        return Told(
            what=QUANTIZED, value=None, evidence="The step to the new weights hides the gradient's levels."
        )
    most = levels_of(seen)
    if most is None:
        return Told(what=QUANTIZED, value=None, evidence="No matrix was sent to count levels in.")
    if not few_levels(most):
        return Told(
            what=QUANTIZED, value=False, evidence=f"Matrices have up to {most:,} different sizes of entries."
        )
    kind = "signs alone" if most == 1 else f"{most} levels"
    return Told(what=QUANTIZED, value=most, evidence=f"No matrix has more than {most} sizes: {kind}.")


@measured
def noised(seen: Seen) -> Told:
    """The standard deviation of noise, by what fills the smallest dimensions of the spectra."""
    if sent_as(seen).kind != "gradient":
        return Told(what=NOISED, value=None, evidence="Rounding of the weights fills the spectra as well.")
    hidden = altered(seen)
    if hidden is not None:
        return Told(what=NOISED, value=None, evidence=hidden)
    span, words = first_inputs(seen), words_of(seen).rows
    if words is not None and not tied(seen.model):
        return Told(
            what=NOISED,
            value=0.0,
            evidence="Rows of the word embedding are exactly 0, which noise leaves none.",
        )
    if span is not None and span.clear and not coarse_span(seen, span):
        return Told(
            what=NOISED,
            value=0.0,
            evidence=f"The first layer's spectrum ends clearly after {span.rank} dimensions.",
        )
    matrices = matrices_of(seen, least=_ENTRIES)[:_LOOKED_AT]
    if coarse(seen, [name for name, _ in matrices]):
        return Told(what=NOISED, value=None, evidence="Rounding of the type it was computed in is as even.")
    found = [one for _, value in matrices if (one := _even_noise(value)) is not None]
    if len(found) < 2:
        return Told(
            what=NOISED, value=None, evidence="Nothing fills the spectra evenly, and none ends clearly."
        )
    sigma = sorted(found)[0]
    return Told(
        what=NOISED,
        value=float(f"{sigma:.2g}"),
        evidence=f"The smallest dimensions of {len(found)} matrices are as full as noise of {sigma:.3g} makes them.",
    )


def _even_noise(value: Tensor) -> float | None:
    """Noise that makes the lower half of a matrix' spectrum, where it has the shape that noise has; None otherwise."""
    s_S = singular_values(exact(value).cpu())
    generator = torch.Generator().manual_seed(0)
    drawn_S = singular_values(torch.randn(value.shape, generator=generator, dtype=torch.float64))
    half = len(s_S) // 2
    scale_S = s_S[half:] / drawn_S[half:]
    low, high = float(scale_S.min()), float(scale_S.max())
    return float(scale_S.median()) if high > 0 and low >= _EVEN * high else None


def changed(seen: Seen) -> str | None:
    """What was done to it that hides what training has left in it, in a sentence; None where nothing shows."""
    sigma = noised(seen).value
    return altered(seen) or (f"Noise of {sigma:g} was added, which hides it." if sigma else None)
