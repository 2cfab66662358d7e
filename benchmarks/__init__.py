"""What a regularizer costs: always a ratio to a rival on the same work in the same run, never a timed test."""

import os

# Read when torch is imported: its profiler tells of every start and stop, and of memory that was there before it.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
