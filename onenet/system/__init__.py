"""Processes and files: signals, memory, distributed training. Independent of detection."""
