"""Programming tasks whose programs run with limits."""
