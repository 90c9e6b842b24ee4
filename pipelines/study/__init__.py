"""Studies: which models are scored, made, run and kept; one model at a time is a study of one trial."""
