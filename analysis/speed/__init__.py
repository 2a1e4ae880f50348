"""What `analysis/benchmark.py` measures, each part beside a plain version of it."""
