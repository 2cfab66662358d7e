"""Penalties, by the structure of their proximal operator."""

from shrinkage.penalties.base import Penalty as Penalty
from shrinkage.penalties.elementwise import L1 as L1
from shrinkage.penalties.elementwise import L2 as L2
from shrinkage.penalties.elementwise import ElasticNet as ElasticNet
from shrinkage.penalties.elementwise import Elementwise as Elementwise
from shrinkage.penalties.grouped import Grouped as Grouped
from shrinkage.penalties.grouped import GroupLasso as GroupLasso

__all__ = ["L1", "L2", "ElasticNet", "Elementwise", "GroupLasso", "Grouped", "Penalty"]
