"""The command line: parses, composes, calls one pipeline, renders."""
