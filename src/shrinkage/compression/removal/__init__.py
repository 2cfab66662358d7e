"""Which channels are removed, and what their removal changes."""
