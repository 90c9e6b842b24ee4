"""Singular values and polar factors, and what of them is cached between merges."""
