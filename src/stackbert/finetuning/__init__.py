"""Whether what was learnt transfers: fine-tuning on GLUE, SQuAD and a user's own data."""
