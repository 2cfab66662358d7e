"""
Penalties compared
==================

What a weight costs, the derivative, and what is left of a weight after the proximal operator. Penalties that are not
convex shrink large weights less, or not at all.
"""

from shrinkage import L1, MCP, SCAD, LogSum
from shrinkage.pictures.curves import compare

penalties = {"L1": L1(1.0), "MCP": MCP(1.0), "SCAD": SCAD(1.0), "LogSum": LogSum(1.0, epsilon=1.0)}

# %%
# Any penalty can be drawn, also one of your own.

figure = compare(penalties, title="L1(1), MCP(1), SCAD(1), LogSum(1, epsilon=1)")
