"""The process and the disk: files, signals, memory, several processes. Knows no detection."""
