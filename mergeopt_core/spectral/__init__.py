"""Singular values, polar factors and what of them can be kept between merges."""
