"""The repository's own tools, run by the Makefile. Not part of the wheel."""
