"""Losses of heads that give something else than one class a sentence or the tokens of a text: a file each.

A new one is a file here that registers a `Loss`, or a class that an installed package names in the entry-point group
`textleak.models.losses`: the command line, loading, clients and attacks find it by the name of its task.
"""
