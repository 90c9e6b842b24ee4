"""Checkpoints: found, read from headers, mapped, hashed and written; the only door for files that others made."""
