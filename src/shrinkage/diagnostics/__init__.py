"""What holds of a model now: zeros, residuals and duality gaps."""
