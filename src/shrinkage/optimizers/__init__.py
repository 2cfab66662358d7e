"""What an optimizer's step was: its metric, its state, and hooks next to it."""
