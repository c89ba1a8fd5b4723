"""What a gradient says outright: tokens, sentences and labels that are read off it, without optimizing anything.

- `rows`: the embeddings' gradients, row by row, from `lookups`, `placing` and `right_angles`.
- `subspace`, `completion`: the span of a layer's inputs, from its gradient; `vocabulary`: the tokens inside it.
- `proposals`: ranked tokens by position, for the matching attacks.
- `prefixes`: a decoder's sentences, from their `beginnings` (`later_inputs`) and `endings`, which `predictions` tell
  (`last_layers`, `label_fit`).
- `grouping`: an encoder's sentences, told apart (`pairs`, `checks`, `sentence_search`), proved and taken off one by one
  (`remainder`).
- `dropout`: tokens and sentences of a client that drops entries of the first layers' inputs.
- `adapters`: tokens and sentences, from gradients too narrow to span anything, as LoRA's are.
- `classes`: labels, from the classification head.
- `found`: the shape in which all of them say what they found.

The attacks `embedding`, `span` and `auto` put them together. This room knows no attack and no event loop but theirs.
"""
