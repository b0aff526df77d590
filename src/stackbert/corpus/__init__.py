"""From text to token ids on the disk."""
