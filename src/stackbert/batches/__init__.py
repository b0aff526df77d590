"""What a training step sees, as a pure function of its number."""
