"""What a person is left with after a run: how much leaked in a sentence, the figures, the texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from textleak.events import EARLY, Stop
from textleak.scoring.headline import GUESSED_DB, SEEN_DB, how_much
from textleak.view.glyphs import PARTLY, STYLES, heat
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


def _color_of(result: Mapping[str, Any]) -> str:
    """Hot where much leaked, cool where nothing did; neither where that can't be said of an attack cut off."""
    through = result.get("stop") not in EARLY
    if "images" in result:
        psnr = result.get("psnr")
        color = "" if psnr is None else heat(psnr, much=SEEN_DB, some=GUESSED_DB, through=through)
    elif result.get("token_match_rate") is None:
        color = ""
    else:
        leaked = max(result["token_match_rate"], result.get("token_recall") or 0.0)
        color = PARTLY if not leaked and result.get("named_tokens") else heat(leaked, through=through)
    return f"bold {color}".rstrip()


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
    casts = [str(kind) for kind in result.get("client") or () if str(kind).partition(":")[0] == "autocast"]
    if casts and "dtype=fp16" in casts[0]:
        return "float16"
    return "bfloat16" if casts or result.get("dtype") == "bfloat16" else ""


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
_PARTS = {
    "matching": "match",
    "inputs together": "replay",
    "moved rows": "replay",
    "adapters' directions": "replay",
}


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
