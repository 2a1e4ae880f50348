"""Many runs: what an experiment asks for, processes and Slurm jobs, searches, what a sweep says."""
