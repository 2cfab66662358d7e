"""What a regularizer costs: always a ratio to a rival on the same work in the same run, never a timed test."""
