"""Which parameters a rule penalizes, and how."""
