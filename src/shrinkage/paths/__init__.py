"""A model trained at many strengths, each time from where it stood at the last: paths of solutions."""
