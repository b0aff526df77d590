"""What a model has learned: linear probes of frozen layers, minimal pairs, held-out loss."""
