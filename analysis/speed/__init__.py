"""The parts that `analysis/benchmark.py` measures, each against a plain version."""
