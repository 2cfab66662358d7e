"""Budgets, penalties, pruning and small models from the start, compared on the same updates: `make budgets`."""
