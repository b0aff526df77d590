"""Fine-tuning on GLUE, SQuAD or a user's own data: several seeds, intervals, a plain verdict."""
