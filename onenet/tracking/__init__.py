"""Mirrors a run's folder to Weights & Biases, in a separate process."""
