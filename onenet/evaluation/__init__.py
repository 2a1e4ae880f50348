"""Predictions on a data set and their scores: COCO metrics and duplicates."""
