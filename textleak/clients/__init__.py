"""Clients: public procedures that turn a private batch into what leaves the device. One kind, one file.

Both sides ask one question: what would this client send if the batch were X? The client asks it of the truth, the
server of its guesses. To add a kind: a file here with a frozen keyword-only dataclass under
`@CLIENTS.register("name")`, and a row in the contract test. Kinds compose in order.
"""

from textleak.clients.base import CLIENTS, Client, client_of, composed, untold

__all__ = ["CLIENTS", "Client", "client_of", "composed", "untold"]
