"""The seven TRACE tasks."""
