"""Penalties, by the structure of their proximal operator."""

from shrinkage.penalties.balls import L1Ball as L1Ball
from shrinkage.penalties.balls import MaxNorm as MaxNorm
from shrinkage.penalties.balls import MinMaxNorm as MinMaxNorm
from shrinkage.penalties.balls import Simplex as Simplex
from shrinkage.penalties.balls import SpectralBall as SpectralBall
from shrinkage.penalties.balls import UnitNorm as UnitNorm
from shrinkage.penalties.base import Penalty as Penalty
from shrinkage.penalties.box import Box as Box
from shrinkage.penalties.constraints import Constraint as Constraint
from shrinkage.penalties.constraints import NofM as NofM
from shrinkage.penalties.constraints import TopK as TopK
from shrinkage.penalties.convex import L1 as L1
from shrinkage.penalties.convex import L2 as L2
from shrinkage.penalties.convex import ElasticNet as ElasticNet
from shrinkage.penalties.convex import Huber as Huber
from shrinkage.penalties.counting import L0 as L0
from shrinkage.penalties.counting import Counted as Counted
from shrinkage.penalties.counting import Lp as Lp
from shrinkage.penalties.elementwise import Elementwise as Elementwise
from shrinkage.penalties.fused import FusedLasso as FusedLasso
from shrinkage.penalties.group_linf import GroupLInf as GroupLInf
from shrinkage.penalties.grouped import Grouped as Grouped
from shrinkage.penalties.grouped import GroupLasso as GroupLasso
from shrinkage.penalties.matrix import Nuclear as Nuclear
from shrinkage.penalties.matrix import Orthogonal as Orthogonal
from shrinkage.penalties.nonconvex import MCP as MCP
from shrinkage.penalties.nonconvex import SCAD as SCAD
from shrinkage.penalties.nonconvex import LogSum as LogSum
from shrinkage.penalties.nonnegative import NonNegative as NonNegative
from shrinkage.penalties.ridged import Ridged as Ridged
from shrinkage.penalties.sparse_group import SparseGroupLasso as SparseGroupLasso
from shrinkage.penalties.toward import Toward as Toward
from shrinkage.penalties.weighted import Weighted as Weighted

__all__ = [
    "L0",
    "L1",
    "L2",
    "MCP",
    "SCAD",
    "Box",
    "Constraint",
    "Counted",
    "ElasticNet",
    "Elementwise",
    "FusedLasso",
    "GroupLInf",
    "GroupLasso",
    "Grouped",
    "Huber",
    "L1Ball",
    "LogSum",
    "Lp",
    "MaxNorm",
    "MinMaxNorm",
    "NofM",
    "NonNegative",
    "Nuclear",
    "Orthogonal",
    "Penalty",
    "Ridged",
    "Simplex",
    "SparseGroupLasso",
    "SpectralBall",
    "TopK",
    "Toward",
    "UnitNorm",
    "Weighted",
]
