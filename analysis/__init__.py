"""Commands that read runs: tables, claims, figures, the report; and benchmarks."""
