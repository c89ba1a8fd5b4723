"""Where private data for an audit comes from: sentences, pictures, the hub, bundled samples, planted secrets."""
