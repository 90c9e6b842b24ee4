"""Task files of our own, in lm-eval's format, each with the functions it names beside it."""
