"""One run in its own process: built from its config, trained, evaluated, written down."""
