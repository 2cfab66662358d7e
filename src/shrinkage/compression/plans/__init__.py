"""What stays of each tensor, as a plan, and the tensors that follow from it."""
