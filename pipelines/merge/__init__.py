"""Merging: checkpoints as they are, recipes, and the one stream of merged tensors that feeds memory and disk."""
