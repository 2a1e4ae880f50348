"""What a network finds, and how good that is: predictions, COCO metrics, duplicates."""
