"""Calls of a model with inputs like an example: compared, timed and counted."""
