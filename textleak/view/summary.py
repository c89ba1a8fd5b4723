"""What a person is left with after a run: how much leaked in a sentence, the figures, the texts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from textleak.events import Stop
from textleak.view.glyphs import LEAKED, PARTLY, PROTECTED, STYLES
from textleak.view.statuses import ELSEWHERE, RIGHT, WRONG
from textleak.words import count_of, printable, seconds_in_words


def summary(result: Mapping[str, Any]) -> RenderableType:
    """What a finished run leaves on the screen: a sentence, the figures, the texts, the run folder."""
    pictures = "images" in result
    parts: list[RenderableType] = []
    if result.get("outcome") == "interrupted":
        parts.append(Text(Stop.INTERRUPTED.value, style="yellow"))
    parts.append(Text(how_much(result), style=_color_of(result)))
    parts.append(_picture_figures(result) if pictures else figures_of(result))
    texts = texts_of(result)
    if texts.row_count:
        parts += [Text(""), texts]
    untold = [words for name, words in _UNTOLD.items() if name in (result.get("know") or ())]
    parts.extend(Text(f"Note: {note}", style="yellow") for note in (*untold, *result.get("notes", ())))
    if result.get("run_dir"):
        parts += [Text(""), Text.assemble(("run folder ", "bright_black"), str(result["run_dir"]))]
        if pictures:
            parts.append(Text("  strip.png, recovery.gif, grid.png", style="bright_black"))
    return Group(*parts)


def how_much(result: Mapping[str, Any]) -> str:
    """How much leaked, or an audit's verdict, in a sentence; and a second where weights are random."""
    if "verdict" in result:
        return f"{result['verdict']}: {result['verdict_reason']}"
    said = _of_pictures(result) if "images" in result else _of_text(result)
    if result.get("weights") == "random":
        said += " On random weights: no statement about a trained model."
    return said


# What an answer came through, in words.
_CHANNELS = {
    "embedding": "the embedding gradient",
    "span": "the span of a layer's gradient",
    "replay": "replaying the client's steps",
}


def _of_text(result: Mapping[str, Any]) -> str:
    channel = _CHANNELS.get(str(result.get("channel")), "gradient matching")
    if result.get("token_match_rate") is None:
        return _unscored(result, channel)
    found = tokens_found(result)
    unknown = result.get("unknown_tokens") or 0
    lost = f"{count_of(unknown, 'token')} {'has' if unknown == 1 else 'have'} no entry in this model's vocabulary"
    if not found.all:
        return f"No text could be recovered: {lost}." if unknown else "No token was recovered."
    worst = max(found.recovered, found.in_place) / found.all
    # Our choice of steps.
    if found.in_place == found.all:
        amount = "All of the text"
    elif worst == 1:
        amount = "Every token"
    elif worst >= 0.75:
        amount = "Most of the text"
    elif worst >= 0.25:
        amount = "A part of the text"
    elif worst > 0:
        amount = "Little of the text"
    else:
        amount = ""
    apart = f"; {lost} and count nowhere" if unknown else ""
    if not amount:
        return f"No token was recovered: 0 of {found.all:,}{apart}."
    if unknown and amount == "All of the text":
        amount = "All of the text that the vocabulary has"
    return (
        f"{amount} leaked through {channel}: {found.recovered:,} of {count_of(found.all, 'token')} recovered, "
        f"{found.in_place:,} in place{apart}."
    )


def _unscored(result: Mapping[str, Any], channel: str) -> str:
    """What can be said without the truth."""
    if result.get("proof") == "span":
        return f"{count_of(result['proved_tokens'], 'token')} recovered through {channel}, each proved by it."
    if result.get("verified"):
        return f"The text was recovered through {channel}: its own gradient equals the shared one."
    if result.get("stop") == Stop.UNTOLD.value:
        return f"A text was found through {channel} whose own gradient equals the shared one; others fit as well."
    return f"A text was found through {channel}; without the truth nobody can say how much of it is right."


def _of_pictures(result: Mapping[str, Any]) -> str:
    psnr, count = result["psnr"], len(result["images"])
    what = "The picture" if count == 1 else f"The {count} pictures"
    if psnr is None:
        was = "was" if count == 1 else "were"
        if result.get("verified"):
            return f"{what} {was} recovered: the answer's own gradient equals the shared one."
        return f"{what} {was} looked for; without the truth nobody can say how near the answer is."
    # Our choice: at 30 dB an eye hardly tells the difference, at 20 dB it sees what is shown.
    if psnr >= 30:
        return f"{what} leaked: PSNR {psnr:.1f} dB, nearly identical to the original."
    if psnr >= 20:
        return f"{what} leaked in outline and color: PSNR {psnr:.1f} dB."
    if psnr >= 12:
        return f"Little of it leaked: PSNR {psnr:.1f} dB."
    return f"Nothing to be recognized was recovered: PSNR {psnr:.1f} dB."


def _color_of(result: Mapping[str, Any]) -> str:
    """Hot where much leaked, cool where nothing did."""
    if "images" in result:
        figure, much, some = result.get("psnr"), 20.0, 12.0
    else:
        figure, much, some = result.get("token_match_rate"), 0.75, 0.0
        if figure is not None:
            figure = max(figure, result.get("token_recall") or 0.0)
    if figure is None:
        return "bold"
    hot = figure >= much
    warm = figure >= some if some else figure > 0
    return f"bold {LEAKED if hot else PARTLY if warm else PROTECTED}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Tokens of the true sentences: recovered at any position, recovered in place, and how many there are."""

    recovered: int
    in_place: int
    all: int


def tokens_found(result: Mapping[str, Any]) -> Found:
    """What was recovered of a result's sentences."""
    recovered = in_place = total = 0
    for sentence in result.get("sentences", ()):
        # Rates times the count, not the tokens, as a redacted result has no tokens.
        count = int(sentence.get("tokens") or len(sentence.get("reference_tokens") or ()))
        total += count
        here = round((sentence.get("token_match_rate") or 0.0) * count)
        in_place += here
        recovered += max(here, round((sentence.get("token_recall") or 0.0) * count))
    return Found(recovered=recovered, in_place=in_place, all=total)


def grid() -> Table:
    """Rows of a name and what it says."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def figures_of(result: Mapping[str, Any]) -> RenderableType:
    """The figures of a run on text."""
    table = grid()
    if result.get("token_match_rate") is not None:
        table.add_row(
            "token match rate",
            f"{result['token_match_rate']:.2f}   recall {result['token_recall']:.2f}   "
            f"ROUGE-1/2/L {result['rouge1']:.2f}/{result['rouge2']:.2f}/{result['rougeL']:.2f}",
        )
    verified, distance = result.get("verified"), result.get("gradient_distance")
    if verified is None and result.get("verified_reason"):
        table.add_row("verified", "can't be told, see the notes")
    elif verified is None:
        changed = "not provable: the gradient was changed before it was shared"
        table.add_row("verified", changed if result.get("defense") else "not checked")
    else:
        words = "yes" if verified else "no"
        if verified and result.get("proof") == "span":
            words += ", the span of the first layers' inputs proves every token"
        short = verified and distance is not None and _short_type(result)
        if short:
            words += (
                f", the client computes in {short}, so that was repeated: the text's own gradient is {distance:.1e} "
                "away from the shared one (relative), which is that type's rounding"
            )
        elif distance is not None:
            words += f", the text's own gradient is {distance:.1e} away from the shared one (relative)"
        table.add_row("verified", words)
    if result.get("proof") == "span" and not verified:
        table.add_row("proved", f"{count_of(result['proved_tokens'], 'token')}, each by the span itself")
    if result.get("attack") or result.get("stop"):
        table.add_row("attack", attack_in_words(result))
    if result.get("tokens"):
        table.add_row(
            "size",
            f"{_sentences_in_words(result)}n = {count_of(result['tokens'], 'token')}, "
            f"{100 * (result.get('tokens_per_hidden') or 0):.2g} % of the hidden size D (n/D)",
        )
    seconds = result.get("seconds")
    if seconds is not None:
        table.add_row(
            "took",
            f"{count_of(result.get('evaluations') or 0, 'gradient evaluation')} in {seconds_in_words(seconds)}",
        )
    return table


def _sentences_in_words(result: Mapping[str, Any]) -> str:
    size = result.get("batch_size")
    return f"{count_of(size, 'sentence')}, " if size else ""


def _short_type(result: Mapping[str, Any]) -> str:
    """The type that a client's computation is rounded to where that is as coarse as a wrong token; "" elsewhere."""
    cast = any(str(kind).partition(":")[0] == "autocast" for kind in result.get("client") or ())
    return "bfloat16" if cast or result.get("dtype") == "bfloat16" else ""


# What is kept from an attack, by the word of `--know`.
_UNTOLD = {
    "no-client": "The attack wasn't told how the client trains: it took the gradient for that of one plain step.",
    "no-defense": "The attack wasn't told of the defense: it took the gradient for an undefended one.",
}


def attack_in_words(result: Mapping[str, Any]) -> Text:
    """Which attack ran, which of its parts the answer came from, and why it ended, in a line."""
    name, part = str(result.get("attack") or "?"), str(result.get("channel") or "")
    words = name if not part or name != "auto" else f"{name} (the answer is {_PARTS.get(part, part)}'s)"
    return Text(f"{words}; ended: {result['stop']}" if result.get("stop") else words)


# The attacks that a channel's answers are of.
_PARTS = {"matching": "match"}


def _picture_figures(result: Mapping[str, Any]) -> RenderableType:
    table = grid()
    for number, image in enumerate(result["images"]):
        words = f"label {image['recovered_label']}"
        if image["psnr"] is not None:
            words = f"PSNR {image['psnr']:.1f} dB   MSE {image['mse']:.1e}   SSIM {image['ssim']:.3f}"
        if image.get("lpips") is not None:
            words += f"   LPIPS {image['lpips']:.3f}"
        if image["label"] is not None:
            right = image["label"] == image["recovered_label"]
            words += f"   label {image['recovered_label']}, " + (
                "right" if right else f"wrong: it is {image['label']}"
            )
        table.add_row(f"picture {number + 1}", words)
    distance = result.get("gradient_distance")
    if distance is not None:
        words = f"{distance:.1e} from the shared one (relative)"
        if result.get("defense"):
            words += ", which was changed before it was shared"
        table.add_row("own gradient", words)
    table.add_row("attack", attack_in_words(result))
    seconds = result["seconds"]
    table.add_row("took", f"{seconds:.1f} s, {count_of(result['evaluations'], 'evaluation')}")
    return table


def texts_of(result: Mapping[str, Any]) -> Table:
    """References beside what was recovered of them."""
    texts = grid()
    for sentence in result.get("sentences", ()):
        if sentence.get("reference") is not None:
            texts.add_row("reference", Text(printable(str(sentence["reference"]), kept="\n")))
        if sentence.get("recovered") is not None:
            texts.add_row("recovered", _marked(sentence))
    for text in result.get("surplus", ()):
        texts.add_row("surplus", Text(printable(str(text), kept="\n"), style="bright_black"))
    return texts


def _marked(sentence: Mapping[str, Any]) -> Text:
    """The recovered text, its words colored by what leaked: in place, elsewhere, not at all."""
    reference, recovered = sentence.get("reference"), str(sentence["recovered"])
    if reference is None:
        return Text(printable(recovered, kept="\n"))
    if sentence.get("exact"):
        return Text(printable(recovered, kept="\n"), style=STYLES[RIGHT])
    true = str(reference).lower().split()
    left = Counter(true)
    text = Text()
    for index, word in enumerate(recovered.split(" ")):
        at_home = index < len(true) and true[index] == word.lower()
        style = STYLES[RIGHT] if at_home else STYLES[ELSEWHERE] if left[word.lower()] else STYLES[WRONG]
        text.append(" " if index else "").append(printable(word, kept="\n"), style=style)
    return text
