"""What a run is on disk: its folder, its id, the evaluations asked of it."""
