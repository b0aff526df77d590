"""Pre-training: stages with growth between them, checkpoints, the ledger."""
