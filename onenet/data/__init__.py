"""Data sets: the built-in `shapes` and any COCO-format folder. Reading them needs no torch."""
