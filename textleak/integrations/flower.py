"""A mod of a Flower client: records the parameters that come in and those that go out. Flower itself isn't imported.

    app = ClientApp(mods=[LeakageMod(make_model, tokenizer, client=["train-mode", "fedavg:lr=0.01,steps=4"])])

The first mod is the outermost: it sees what leaves after all others, such as Flower's own differential privacy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from textleak.clients.base import CLIENTS, Client, composed
from textleak.errors import InputError
from textleak.integrations import networks
from textleak.integrations.procedure import Procedure
from textleak.integrations.recording import Place, Recording, record_sent
from textleak.models.base import Tensors
from textleak.settings import ClientConfig
from textleak.shared.formats import Names

_TRAIN = "train"


class LeakageMod:
    """Writes what each round's training changed, as files for `textleak audit`.

    Args:
        model: makes the network as the client app makes it; whatever weights it has are replaced.
        tokenizer: of the model.
        client: how the app trains, as `--client` takes it; none where an audit is to find out.
        out: folder that the files are written to.
        rounds: that are recorded, from 1; None for all.
        task: "classification", "causal-lm", "masked-lm", or "auto" for what the model's class says.
        know: what the server is told, as `--know` takes it.
        public: alias, hub id or folder under which a server has the weights that come in; None to write a copy.

    Attributes:
        recordings: what was written in this process, in order.

    Raises:
        InputError: a client that isn't there, or options that it doesn't take.
    """

    def __init__(
        self,
        model: Callable[[], nn.Module],
        tokenizer: Any,  # noqa: ANN401 - any library's
        *,
        client: str | Sequence[str] = (),
        out: Path | str = "audit",
        rounds: Collection[int] | None = (1,),
        task: str = "auto",
        know: str | None = None,
        public: str | None = None,
    ) -> None:
        self.recordings: list[Recording] = []
        self._model, self._tokenizer, self._task, self._rounds = model, tokenizer, task, rounds
        self._client = _kinds(client)
        self._place = Place(
            out=Path(out).absolute(), public=public, know=know
        )  # for workers, wherever they are

    def __call__(self, message: Any, context: Any, call_next: Callable[[Any, Any], Any]) -> Any:  # noqa: ANN401 - Flower's
        """Let the app answer, and record what it was sent and what it answers."""
        name = self._named(message, context)
        before = None if name is None else _arrays(message)
        reply = call_next(message, context)
        if name is not None and before and not reply.has_error():
            try:
                self._record(name, before, _arrays(reply))
            except InputError as error:  # what can't be recorded doesn't end the training that it is of
                warnings.warn(f"{name} was not recorded. {error}", stacklevel=2)
        return reply

    def _named(self, message: Any, context: Any) -> str | None:  # noqa: ANN401 - Flower's
        """What a round's files are called; None where it isn't recorded."""
        if not str(message.metadata.message_type).startswith(_TRAIN):
            return None
        number = _round_of(message)
        if self._rounds is not None and number not in {"", *map(str, self._rounds)}:
            return None
        client = context.node_config.get("partition-id", context.node_id)
        return f"round{number and f'-{number}'}-client-{client}"

    def _record(self, name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        network = self._model()
        trained = networks.trained(network, self._task)
        names = Names.of(trained.network)
        known = list(network.state_dict())
        came, left = (
            names.fit(_by_name(arrays, known), f"what {name} {verb}").tensors
            for arrays, verb in ((before, "was sent"), (after, "sends"))
        )
        moving = trained.moving
        values = {name: came[name] if name in came else p.detach() for name, p in moving.items()}
        sent = {name: left[name] - value for name, value in values.items() if name in left}
        if not sent:
            raise InputError(
                "None of the arrays that the client sends is a parameter that is trained.",
                why=f"They are called like {next(iter(left), 'nothing')}.",
                fix="Have model= make the network that the app trains.",
            )
        notes = () if self._client else ("How the client trains wasn't said: the audit has to tell.",)
        self.recordings.append(
            record_sent(
                name,
                self._place,
                trained=trained,
                tokenizer=self._tokenizer,
                before=values,
                sent=sent,
                procedure=Procedure(kinds=self._client, notes=notes),
                rows=None,
            )
        )


def _kinds(client: str | Sequence[str]) -> tuple[Client, ...]:
    """The kinds of client that texts name."""
    texts = [client] if isinstance(client, str) else list(client)
    choices = ClientConfig.model_validate({"client": texts}).client
    kinds = tuple(CLIENTS.build(choice.name, choice.options) for choice in choices)
    composed(kinds)  # whether they can be
    return kinds


def _round_of(message: Any) -> str:  # noqa: ANN401 - Flower's
    """The number of a message's round, as strategies write it among the settings, or older ones into the metadata."""
    told = [settings.get("server-round") for settings in message.content.config_records.values()]
    return str(
        next((number for number in told if number is not None), None) or message.metadata.group_id or ""
    )


def _arrays(message: Any) -> dict[str, Tensor]:  # noqa: ANN401 - Flower's
    """The parameters in a message, in order."""
    records = list(message.content.array_records.values())
    return dict(records[0].to_torch_state_dict()) if len(records) == 1 else {}


def _by_name(arrays: Mapping[str, Tensor], known: Sequence[str]) -> Tensors:
    """Arrays by parameter; Flower's NumPy clients have numbers in place of names, in the state dict's order."""
    numbered = all(name.isdecimal() for name in arrays) and len(arrays) == len(known)
    names = known if numbered else list(arrays)
    return dict(zip(names, arrays.values(), strict=True))
