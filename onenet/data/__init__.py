"""From files to batches: the built-in shapes, data in COCO format, sizes, normalisation."""
