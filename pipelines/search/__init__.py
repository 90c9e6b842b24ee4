"""Searching a merge method's parameters on one split, to be scored once on another."""
