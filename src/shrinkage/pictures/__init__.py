"""Pictures of penalties, constraints and weights, and a page that holds them."""
