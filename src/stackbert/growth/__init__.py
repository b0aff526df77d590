"""Growing a trained model in depth."""
