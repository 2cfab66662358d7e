"""Linear layers that store their nonzero weights alone."""
