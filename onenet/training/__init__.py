"""How weights are learnt: the loop, the optimiser and its schedule, checkpoints, a stopwatch."""
