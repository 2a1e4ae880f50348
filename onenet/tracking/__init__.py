"""Weights & Biases as a mirror of a run's folder, made by a process of its own."""
