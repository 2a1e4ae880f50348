"""Faster equivalents of plain code, and small helpers. Each states the plain code it equals."""
