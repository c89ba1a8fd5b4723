"""Does it work on every architecture? A row for each family, built small from its configuration, with a real tokenizer.

    python -m tests.figures.architectures                  # all of them, some minutes
    python -m tests.figures.architectures mixtral bloom    # some

A family's network is drawn as its configuration draws it and may read texts as long as the family's do; a client shares
the gradient of one sentence without the embeddings, and `auto` attacks it. Each row is measured in a process of its own
with bounded memory, so that a crash is a row.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from tests import conftest
from textleak.attacks.base import to_end
from textleak.errors import TextleakError
from textleak.jobs.text import prepare
from textleak.models.loading.catalog import CATALOG
from textleak.models.loading.tokenizers import bundled_tokenizer
from textleak.settings import load_run_config

SENTENCE = "the nurse left the keys on the table"
# Seconds that a row may take beside the attack's own time limit: to load, and for a step that overruns it.
_BESIDE = 60.0

# Aliases that the bundled tokenizers go with.
_TOKENIZERS = {
    "words": "bert-tiny",
    "bytes": "gpt2",
    "bytes, roberta's": "roberta-base",
    "bytes, opt's": "opt-125m",
    "bytes, chat": "smollm2",
}
_SIZES = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
_STANDARD = {**_SIZES, "intermediate_size": 192}
_GROUPED = {**_STANDARD, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 96, "n_layer": 3, "n_head": 4}
_ROBERTA = {**_STANDARD, "max_position_embeddings": 514}
_RELATIVE = {
    **_STANDARD,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["c2p", "p2c"],
}
_ENDS = {"cls_token_id": 101, "sep_token_id": 102, "bos_token_id": 101, "eos_token_id": 102}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
_T5 = {
    **_ENDS,
    "decoder_start_token_id": 0,
    "d_model": 96,
    "d_kv": 24,
    "d_ff": 192,
    "num_layers": 2,
    "num_heads": 4,
}
_BART = {
    "d_model": 96,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 192,
    "decoder_ffn_dim": 192,
}
_BOTTLENECKS = {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}

# Model type: tokenizer and options.
ENCODERS: dict[str, tuple[str, dict[str, object]]] = {
    "bert": ("words", _STANDARD),
    "distilbert": ("words", {"dim": 96, "n_layers": 3, "n_heads": 4, "hidden_dim": 192}),
    "roberta": ("bytes, roberta's", _ROBERTA),
    "xlm-roberta": ("bytes, roberta's", _ROBERTA),
    "camembert": ("bytes, roberta's", _ROBERTA),
    "albert": ("words", {**_STANDARD, "embedding_size": 48}),
    "electra": ("words", {**_STANDARD, "embedding_size": 48}),
    "deberta": ("words", {**_RELATIVE, "max_relative_positions": -1}),
    "deberta-v2": (
        "words",
        {**_RELATIVE, "position_buckets": 32, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    "mpnet": ("words", _STANDARD),
    "mobilebert": ("words", {**_STANDARD, **_BOTTLENECKS, "intermediate_size": 64}),
    "modernbert": ("words", {**_STANDARD, **_ENDS}),
    "nomic_bert": ("words", _STANDARD),
    "convbert": ("words", {**_STANDARD, "embedding_size": 96}),
    "squeezebert": ("words", {**_STANDARD, "embedding_size": 96}),
    "funnel": ("words", {"d_model": 96, "n_head": 4, "d_head": 24, "d_inner": 192, "block_sizes": [1, 1]}),
    "longformer": ("bytes, roberta's", {**_ROBERTA, "attention_window": [16, 16, 16]}),
    "big_bird": ("words", {**_STANDARD, "attention_type": "original_full"}),
    "roformer": ("words", {**_STANDARD, "embedding_size": 96}),
    "fnet": ("words", {"hidden_size": 96, "num_hidden_layers": 3, "intermediate_size": 192}),
    "ibert": ("bytes, roberta's", _ROBERTA),
    "xlnet": ("words", {"d_model": 96, "n_layer": 3, "n_head": 4, "d_inner": 192}),
}
DECODERS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("bytes", _GPT2),
    "openai-gpt": ("bytes", _GPT2),
    "ctrl": ("bytes", {**_GPT2, "dff": 192}),
    "codegen": ("bytes", {**_GPT2, "rotary_dim": 16}),
    "gptj": ("bytes", {**_GPT2, "rotary_dim": 16}),
    "gpt_bigcode": ("bytes", _GPT2),
    "gpt_neo": (
        "bytes",
        {"hidden_size": 96, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    ),
    "gpt_neox": ("bytes", _STANDARD),
    "opt": (
        "bytes, opt's",
        {**_SIZES, "ffn_dim": 192, "word_embed_proj_dim": 48, "do_layer_norm_before": False},
    ),
    "xglm": ("bytes, opt's", {"d_model": 96, "num_layers": 3, "attention_heads": 4, "ffn_dim": 192}),
    "bloom": ("bytes", {"hidden_size": 96, "n_layer": 3, "n_head": 4}),
    "falcon": ("bytes", {**_SIZES, "multi_query": True, "parallel_attn": True}),
    "mpt": ("bytes", {"d_model": 96, "n_layers": 3, "n_heads": 4}),
    "llama": ("bytes, chat", _GROUPED),
    "mistral": ("bytes, chat", _GROUPED),
    "qwen2": ("bytes, chat", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("bytes, chat", {**_GROUPED, "head_dim": 24}),
    "gemma": ("bytes", {**_GROUPED, "head_dim": 24}),
    "gemma2": ("bytes", {**_GROUPED, "head_dim": 24}),
    "gemma3_text": ("bytes", {**_GROUPED, "head_dim": 24}),
    "phi": ("bytes", {**_STANDARD, "partial_rotary_factor": 0.5}),
    "phi3": ("bytes", {**_GROUPED, "pad_token_id": 0}),
    "olmo": ("bytes", _STANDARD),
    "olmo2": ("bytes", _GROUPED),
    "stablelm": ("bytes", _GROUPED),
    "granite": (
        "bytes",
        {**_GROUPED, "logits_scaling": 8.0, "residual_multiplier": 0.22, "embedding_multiplier": 12.0},
    ),
    "cohere": ("bytes", _GROUPED),
    "mixtral": ("bytes, chat", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": (
        "bytes, chat",
        {**_STANDARD, "num_key_value_heads": 4, **_EXPERTS, "shared_expert_intermediate_size": 64},
    ),
    "deepseek_v3": (
        "bytes",
        {
            **_STANDARD,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 64,
            "q_lora_rank": 48,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 24,
            "first_k_dense_replace": 1,
        },
    ),
    "mamba": ("bytes", {"hidden_size": 96, "num_hidden_layers": 3, "state_size": 8}),
    "rwkv": ("bytes", {"hidden_size": 96, "num_hidden_layers": 3, "attention_hidden_size": 96}),
}
BOTH: dict[str, tuple[str, dict[str, object]]] = {
    "t5": ("words", _T5),
    "mt5": ("words", _T5),
    "umt5": ("words", _T5),
    "bart": ("bytes, roberta's", _BART),
    "mbart": ("bytes, roberta's", _BART),
    "pegasus": ("bytes, roberta's", _BART),
}
FAMILIES = {**ENCODERS, **DECODERS, **BOTH}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a family.

    Attributes:
        family: its model type.
        match: token match rate; None where there is no answer.
        proof: what proves the answer, "" for nothing.
        channel: what gave the tokens away.
        seconds: CPU time of the attack, its proof counted.
        said: notes beside the answer, or why there is none.
        crashed: whether `said` is anything but an error of three parts.
    """

    family: str
    match: float | None = None
    proof: str = ""
    channel: str = ""
    seconds: float | None = None
    said: str = ""
    crashed: bool = False


def write(family: str, folder: Path) -> Path:
    """Configuration and tokenizer of a family, without weights, in a folder of its own.

    Args:
        family: of `FAMILIES`.
        folder: where that folder is made.
    """
    kind, options = FAMILIES[family]
    tokenizer = bundled_tokenizer(CATALOG[_TOKENIZERS[kind]])
    return conftest.write_network(family, tokenizer, options, folder / family)


def measured(family: str, sentences: Sequence[str], time_limit: float) -> Row:
    """A family's row, measured here."""
    with tempfile.TemporaryDirectory() as made:
        try:
            settings = {
                "model": str(write(family, Path(made))),
                "weights": "random",
                "sentences": list(sentences),
                "share": "no-embeddings",
                "attack": f"auto:time_limit={time_limit:g}",
            }
            job = prepare(load_run_config(None, settings, ()))
            began = time.process_time()
            recovery = to_end(job.steps())
            result = job.result(recovery, outcome="done", seconds=time.process_time() - began, run_dir=None)
        except TextleakError as error:
            return Row(family=family, said=" ".join(str(error).replace(f"{made}/", "").split()))
    return Row(
        family=family,
        match=result["token_match_rate"],
        proof=result["proof"] or "",
        channel=result["channel"],
        seconds=result["seconds"],
        said=" ".join((*result["notes"], *(() if result["verified"] else [recovery.stop.value]))),
    )


def apart(family: str, sentences: Sequence[str], *, time_limit: float, memory: float) -> Row:
    """A family's row, measured in a process that may take so many seconds and GB."""
    processes = multiprocessing.get_context("fork")
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=_tell, args=(theirs, family, sentences, time_limit, memory))
    child.start()
    theirs.close()
    try:
        if not ours.poll(time_limit + _BESIDE):
            return Row(family=family, said=f"no end {_BESIDE:g} s after the time limit", crashed=True)
        return ours.recv()
    except EOFError:
        child.join()
        return Row(family=family, said=f"its process died ({child.exitcode})", crashed=True)
    finally:
        child.kill()
        child.join()


def _tell(to: Connection, family: str, sentences: Sequence[str], time_limit: float, memory: float) -> None:
    """Measure a family in a process of its own, and send the row."""
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        row = measured(family, sentences, time_limit)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        said += f" ({Path(where.filename).name}:{where.lineno})"
        row = Row(family=family, said=said, crashed=True)
    to.send(row)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Rows as lines of a Markdown table."""
    yield "| family | match | proof | channel | seconds | |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        match = "–" if row.match is None else f"{row.match:.2f}"
        seconds = "–" if row.seconds is None else f"{row.seconds:.1f}"
        said = f"**{row.said}**" if row.crashed else row.said
        cells = (row.family, match, row.proof or "–", row.channel or "–", seconds, said.replace("|", "\\|"))
        yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "families", nargs="*", help=f"of {', '.join(FAMILIES)}; all of them where none is named"
    )
    parser.add_argument("--sentence", action="append", help=f"repeat it: one batch ({SENTENCE!r})")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for an attack")
    parser.add_argument("--memory", type=float, default=6.0, help="GB for a process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for family in options.families or FAMILIES:
        rows.append(
            apart(
                family, options.sentence or [SENTENCE], time_limit=options.time_limit, memory=options.memory
            )
        )
        sys.stderr.write(f"{rows[-1]}\n")
    sys.stdout.write("\n".join(table(rows)) + "\n")


if __name__ == "__main__":
    main()
