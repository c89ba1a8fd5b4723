"""What a gradient says outright: tokens, sentences and labels that are read off it, without optimizing anything.

- `rows`: the embeddings' gradients, row by row.
- `subspace`, `completion`: the span of a layer's inputs, from its gradient; `vocabulary`: the tokens inside it.
- `proposals`: ranked tokens by position, for the matching attacks.
- `prefixes`, `predictions`: a decoder's sentences, from beginnings and what they predict.
- `pairs`, `checks`, `remainder`, `grouping`: an encoder's sentences, told apart, proved and taken off one by one.
- `adapters`: tokens and a decoder's sentences, from gradients too narrow to span anything, as LoRA's are.
- `classes`: labels, from the classification head.
- `found`: the shape in which all of them say what they found.

The attacks `embedding`, `span` and `auto` put them together. This room knows no attack and no event loop but theirs.
"""
