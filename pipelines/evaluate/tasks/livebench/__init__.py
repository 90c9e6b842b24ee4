"""Three LiveBench categories."""
