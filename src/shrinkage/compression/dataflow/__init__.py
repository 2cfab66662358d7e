"""What the values in a graph depend on."""
