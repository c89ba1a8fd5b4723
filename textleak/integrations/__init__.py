"""Recorders for real training loops: they write what would leave the client, for `textleak audit` to read.

- `plain`: any loop of torch, by hooks on the optimizer; `textleak.record`.
- `transformers`: a callback of the Hugging Face Trainer.
- `flower`: a mod of a Flower client.
- `peft`, `opacus`: what these put around models and optimizers, in the words of `--client` and `--defense`.
- `networks`, `watching`, `procedure`, `recording`: what is trained, what passed through it, how, and the files.
"""
