"""A batch from the gradients of LoRA's adapters, at any rank.

An adapter's gradient has too few rows to span what its layer reads, but that is sparse in a dictionary that is known.

- `measured`: the layers that adapters measure.
- `pursuit`: which of many known vectors make a few measurements.
- `bag`: the tokens of the batch, from the first layers' adapters.
- `places`: where they stand, where positions are in what the first layers read.
- `within`: how much of what layers further in read of a sentence lies in what adapters measure, and
- `moves`: what a sentence may be, and what it may change to;
- `batches`: the sentences of an encoder's batch, by that.
- `growth`: a decoder's beginnings, one token longer at a time, from the later layers'.
- `endings`: the last tokens, which no layer reads.
- `sentences`: all of these, one after the other.
- `narrow`: what B reads, which is a few numbers of each input, more than a short text has tokens, and
- `narrow_text`: a decoder's text by that, in the first round too, where B is 0, and behind a step of AdamW.
"""
