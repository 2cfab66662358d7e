"""Channels followed through the graph of a model."""
