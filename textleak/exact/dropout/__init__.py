"""Tokens and sentences behind dropout: the client drops entries of the first layers' inputs, and that hides none.

- `frame`: what a dropped input is, in which every entry of a vector equals the token's own or what is dropped.
- `fits`: vectors of a span that equal a target in most entries and 0 in all others.
- `occurrences`: the search for all inputs that a gradient shows, with the proof of each one's token.
- `arrangement`: which of them stand in one sentence.
- `passes`: whose copies they are, where several steps show each sentence anew.
- `sentences`: all of it, from a server's view to sentences with their labels.
"""
