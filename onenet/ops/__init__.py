"""Faster ways to the same numbers, and small helpers. Each says which plain lines it equals."""
