"""Proximal operators and projections as functions of tensors: no state, no penalty, no optimizer."""
