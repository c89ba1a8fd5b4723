"""From a name to a network: catalog, places on disk or the hub, tokenizers, text and image models."""
