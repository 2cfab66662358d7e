"""How a penalty changes weights and gradients: all in-place work on them is here."""
