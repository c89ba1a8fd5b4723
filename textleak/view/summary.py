"""What a person is left with after a run: how much leaked in a sentence, the figures, the texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from textleak.events import Stop
from textleak.view.glyphs import STYLES
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
    parts.extend(Text(f"Note: {note}", style="yellow") for note in result.get("notes", ()))
    if result.get("run_dir"):
        parts += [Text(""), Text.assemble(("run folder ", "bright_black"), str(result["run_dir"]))]
        if pictures:
            parts.append(Text("  strip.png, recovery.gif, grid.png", style="bright_black"))
    return Group(*parts)


def how_much(result: Mapping[str, Any]) -> str:
    """One sentence: how much of the text, or of the pictures, leaked; an audit's verdict."""
    if "verdict" in result:
        return f"{result['verdict']}: {result['verdict_reason']}"
    return _of_pictures(result) if "images" in result else _of_text(result)


def _of_text(result: Mapping[str, Any]) -> str:
    rate = result.get("token_match_rate")
    channel = {"embedding": "the embedding gradient", "span": "the span of a layer's gradient"}.get(
        str(result.get("channel")), "gradient matching"
    )
    if rate is None:
        if result.get("proof") == "span":
            return f"{count_of(result['proved_tokens'], 'token')} recovered through {channel}, each proved by it."
        if result.get("verified"):
            return f"The text was recovered through {channel}: its own gradient equals the shared one."
        if result.get("stop") == Stop.UNTOLD.value:
            return f"A text was found through {channel} whose own gradient equals the shared one; others fit as well."
        return (
            f"A text was found through {channel}; without the truth nobody can say how much of it is right."
        )
    if rate == 1:
        amount = "All of the text leaked"
    elif rate >= 0.75:
        amount = "Most of the text leaked"
    elif rate >= 0.25:
        amount = "A part of the text leaked"
    elif rate > 0:
        amount = "Little of the text leaked"
    else:
        return "No token was recovered at its place."
    right, total = tokens_right(result)
    words = f"{right} of {count_of(total, 'token')}"
    rest = "is right, at its place" if right == 1 else "are right, each at its place"
    return f"{amount} through {channel}: {words} {rest}."


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
        return f"{what} leaked: PSNR {psnr:.1f} dB, hardly to be told from the original."
    if psnr >= 20:
        return f"{what} leaked in outline and color: PSNR {psnr:.1f} dB."
    if psnr >= 12:
        return f"Little of it leaked: PSNR {psnr:.1f} dB."
    return f"Nothing to be recognized was recovered: PSNR {psnr:.1f} dB."


def _color_of(result: Mapping[str, Any]) -> str:
    """Red where much leaked, green where nothing did."""
    figure = result.get("psnr" if "images" in result else "token_match_rate")
    if figure is None:
        return "bold"
    if "images" in result:
        much, some = figure >= 20, figure >= 12
    else:
        much, some = figure >= 0.75, figure > 0
    return "bold red" if much else "bold yellow" if some else "bold green"


def tokens_right(result: Mapping[str, Any]) -> tuple[int, int]:
    """Positions that are right in a result's sentences, and how many there are."""
    right = total = 0
    for sentence in result.get("sentences", ()):
        # The rate times the count, not the tokens, as a redacted result has no tokens.
        count = int(sentence.get("tokens") or len(sentence.get("reference_tokens") or ()))
        total += count
        right += round((sentence.get("token_match_rate") or 0.0) * count)
    return right, total


def grid(columns: int = 2) -> Table:
    """Rows of a name and what it says."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    for _ in range(columns - 1):
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
        changed = "can't be said, as the gradient was changed before it was shared"
        table.add_row("verified", changed if result.get("defense") else "not checked")
    else:
        words = "yes" if verified else "no"
        if verified and result.get("proof") == "span":
            words += ", the span of the first layers' inputs proves every token"
        if distance is not None:
            words += f", the text's own gradient is {distance:.1e} away from the shared one (relative)"
        table.add_row("verified", words)
    if result.get("proof") == "span" and not verified:
        table.add_row("proved", f"{count_of(result['proved_tokens'], 'token')}, each by the span itself")
    if result.get("stop") and not verified:
        table.add_row("ended because", Text(str(result["stop"])))
    if result.get("weights") == "random":
        table.add_row("weights", "random: take pretrained ones for a figure about a real model")
    if result.get("tokens"):
        table.add_row(
            "size",
            f"{result.get('batch_size')} in the batch, n = {count_of(result['tokens'], 'token')}, "
            f"n/D = {result.get('tokens_per_hidden', 0):.2g}",
        )
    seconds = result.get("seconds")
    if seconds is not None:
        table.add_row(
            "took", f"{seconds_in_words(seconds)}, {count_of(result.get('evaluations') or 0, 'evaluation')}"
        )
    return table


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
    table.add_row("ended because", Text(str(result["stop"])))
    if result.get("weights") == "random":
        table.add_row("weights", "random")
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
    """The recovered text, its words green where they are right, yellow elsewhere, red where wrong."""
    reference, recovered = sentence.get("reference"), str(sentence["recovered"])
    if reference is None:
        return Text(printable(recovered, kept="\n"))
    if sentence.get("exact"):
        return Text(printable(recovered, kept="\n"), style="green")
    true = str(reference).lower().split()
    left = Counter(true)
    text = Text()
    for index, word in enumerate(recovered.split(" ")):
        at_home = index < len(true) and true[index] == word.lower()
        style = STYLES[RIGHT] if at_home else STYLES[ELSEWHERE] if left[word.lower()] else STYLES[WRONG]
        text.append(" " if index else "").append(printable(word, kept="\n"), style=style)
    return text
