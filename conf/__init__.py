"""Configuration: Hydra groups (one YAML a choice), their typed schema, and composition."""
