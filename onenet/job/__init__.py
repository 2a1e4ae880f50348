"""One run in its own process: builds the model, trains it, evaluates it, writes the results."""
