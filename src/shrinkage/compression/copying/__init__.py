"""Copies of a model that share nothing with it."""
