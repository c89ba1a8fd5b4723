"""What is found out about a network by running it: layers, attention, sums of embeddings, statistics."""
