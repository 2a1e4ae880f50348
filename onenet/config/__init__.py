"""The configuration of a run: its keys and types, how Hydra composes it, what cannot work."""
