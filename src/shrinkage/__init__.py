"""Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros."""

import gc

# What is imported stays. A collection in between would find nothing, and take as long as the import to walk through
# torch's objects.
_collects = gc.isenabled()
gc.disable()
try:
    from shrinkage.coupled import Coupled as Coupled
    from shrinkage.coupled import Member as Member
    from shrinkage.declare import regularize as regularize
    from shrinkage.errors import AttachmentError as AttachmentError
    from shrinkage.errors import GroupError as GroupError
    from shrinkage.errors import MetricError as MetricError
    from shrinkage.errors import ParameterError as ParameterError
    from shrinkage.errors import PlanError as PlanError
    from shrinkage.errors import SelectionError as SelectionError
    from shrinkage.errors import ShrinkageError as ShrinkageError
    from shrinkage.errors import ShrinkError as ShrinkError
    from shrinkage.errors import SparseFormatError as SparseFormatError
    from shrinkage.groups import Blocks as Blocks
    from shrinkage.groups import Columns as Columns
    from shrinkage.groups import Groups as Groups
    from shrinkage.groups import Heads as Heads
    from shrinkage.groups import Kernels as Kernels
    from shrinkage.groups import Rows as Rows
    from shrinkage.groups import Whole as Whole
    from shrinkage.metric import register_metric as register_metric
    from shrinkage.penalties import L0 as L0
    from shrinkage.penalties import L1 as L1
    from shrinkage.penalties import L2 as L2
    from shrinkage.penalties import MCP as MCP
    from shrinkage.penalties import SCAD as SCAD
    from shrinkage.penalties import Box as Box
    from shrinkage.penalties import Counted as Counted
    from shrinkage.penalties import ElasticNet as ElasticNet
    from shrinkage.penalties import FusedLasso as FusedLasso
    from shrinkage.penalties import Grouped as Grouped
    from shrinkage.penalties import GroupLasso as GroupLasso
    from shrinkage.penalties import GroupLInf as GroupLInf
    from shrinkage.penalties import Huber as Huber
    from shrinkage.penalties import L1Ball as L1Ball
    from shrinkage.penalties import LogSum as LogSum
    from shrinkage.penalties import Lp as Lp
    from shrinkage.penalties import MaxNorm as MaxNorm
    from shrinkage.penalties import MinMaxNorm as MinMaxNorm
    from shrinkage.penalties import NofM as NofM
    from shrinkage.penalties import NonNegative as NonNegative
    from shrinkage.penalties import Nuclear as Nuclear
    from shrinkage.penalties import Orthogonal as Orthogonal
    from shrinkage.penalties import Penalty as Penalty
    from shrinkage.penalties import Ridged as Ridged
    from shrinkage.penalties import Simplex as Simplex
    from shrinkage.penalties import SparseGroupLasso as SparseGroupLasso
    from shrinkage.penalties import SpectralBall as SpectralBall
    from shrinkage.penalties import TopK as TopK
    from shrinkage.penalties import Toward as Toward
    from shrinkage.penalties import UnitNorm as UnitNorm
    from shrinkage.penalties import Weighted as Weighted
    from shrinkage.plan import Plan as Plan
    from shrinkage.plan import Rule as Rule
    from shrinkage.regularizer import Regularizer as Regularizer
    from shrinkage.report import Report as Report
    from shrinkage.report import report as report
    from shrinkage.residuals import Residuals as Residuals
    from shrinkage.saved import restored as _restored  # noqa: F401  # files name it
    from shrinkage.shrink.coupled import CoupledChannels as CoupledChannels
    from shrinkage.shrink.layers import register_layer as register_layer
    from shrinkage.shrink.optimizer import shrink_optimizer_ as shrink_optimizer_
    from shrinkage.shrink.plan import ShrinkPlan as ShrinkPlan
    from shrinkage.shrink.plan import apply_plan as apply_plan
    from shrinkage.shrink.rules import coupling_rule as coupling_rule
    from shrinkage.shrink.semi_structured import to_semi_structured as to_semi_structured
    from shrinkage.shrink.shrink import Shrunk as Shrunk
    from shrinkage.shrink.shrink import shrink as shrink
    from shrinkage.shrink.sparse import SparseLinear as SparseLinear
    from shrinkage.shrink.sparsify import SparseReport as SparseReport
    from shrinkage.shrink.sparsify import Sparsified as Sparsified
    from shrinkage.shrink.sparsify import to_dense as to_dense
    from shrinkage.shrink.sparsify import to_sparse as to_sparse
    from shrinkage.shrink.summary import ShrinkReport as ShrinkReport
    from shrinkage.stationarity import strength_max as strength_max
    from shrinkage.threshold import threshold_ as threshold_
finally:
    if _collects:
        gc.enable()

__all__ = [
    "L0",
    "L1",
    "L2",
    "MCP",
    "SCAD",
    "AttachmentError",
    "Blocks",
    "Box",
    "Columns",
    "Counted",
    "Coupled",
    "CoupledChannels",
    "ElasticNet",
    "FusedLasso",
    "GroupError",
    "GroupLInf",
    "GroupLasso",
    "Grouped",
    "Groups",
    "Heads",
    "Huber",
    "Kernels",
    "L1Ball",
    "LogSum",
    "Lp",
    "MaxNorm",
    "Member",
    "MetricError",
    "MinMaxNorm",
    "NofM",
    "NonNegative",
    "Nuclear",
    "Orthogonal",
    "ParameterError",
    "Penalty",
    "Plan",
    "PlanError",
    "Regularizer",
    "Report",
    "Residuals",
    "Ridged",
    "Rows",
    "Rule",
    "SelectionError",
    "ShrinkError",
    "ShrinkPlan",
    "ShrinkReport",
    "ShrinkageError",
    "Shrunk",
    "Simplex",
    "SparseFormatError",
    "SparseGroupLasso",
    "SparseLinear",
    "SparseReport",
    "Sparsified",
    "SpectralBall",
    "TopK",
    "Toward",
    "UnitNorm",
    "Weighted",
    "Whole",
    "apply_plan",
    "coupling_rule",
    "register_layer",
    "register_metric",
    "regularize",
    "report",
    "shrink",
    "shrink_optimizer_",
    "strength_max",
    "threshold_",
    "to_dense",
    "to_semi_structured",
    "to_sparse",
]

__version__ = "0.1.0"
