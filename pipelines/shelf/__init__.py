"""Upkeep of the store: what it is referred to by, whether it still holds, what may go, and how it is taken out."""
