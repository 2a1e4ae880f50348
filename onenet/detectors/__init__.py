"""One module a detector."""
