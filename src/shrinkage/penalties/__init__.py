"""Penalties, by the structure of their proximal operator."""
