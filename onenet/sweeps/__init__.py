"""Many runs: which ones an experiment asks for, starting them, searches, what a sweep says."""
