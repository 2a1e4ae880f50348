"""A run on disk: its folder, its id, its requests and its evaluations."""
