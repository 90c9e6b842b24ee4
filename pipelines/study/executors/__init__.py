"""Executors: the same jobs on this process or on many workers."""
