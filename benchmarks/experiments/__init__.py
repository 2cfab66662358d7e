"""Does a training run solve the stated problem? Slow experiments with outside solutions: `make experiments`."""
