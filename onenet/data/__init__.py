"""Files to batches: the built-in shapes and COCO-format folders, sizes, normalisation."""
