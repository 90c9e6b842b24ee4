"""What is done with entries of the store: exported as checkpoints, and verified."""
