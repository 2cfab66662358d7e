"""Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros."""

import gc

# What is imported stays. A collection in between would find nothing, and take as long as the import to walk through
# torch's objects.
_collects = gc.isenabled()
gc.disable()
try:
    from shrinkage.compression.coupled_channels import CoupledChannels as CoupledChannels
    from shrinkage.compression.plans.applying import apply_plan as apply_plan
    from shrinkage.compression.plans.layers import register_layer as register_layer
    from shrinkage.compression.plans.optimizer_state import shrink_optimizer_ as shrink_optimizer_
    from shrinkage.compression.plans.shrink_plan import ShrinkPlan as ShrinkPlan
    from shrinkage.compression.removal.summary import ShrinkReport as ShrinkReport
    from shrinkage.compression.shrink import Shrunk as Shrunk
    from shrinkage.compression.shrink import shrink as shrink
    from shrinkage.compression.smaller_files import load_smaller as load_smaller
    from shrinkage.compression.smaller_files import save_smaller as save_smaller
    from shrinkage.compression.sparse.conversion import SparseReport as SparseReport
    from shrinkage.compression.sparse.conversion import Sparsified as Sparsified
    from shrinkage.compression.sparse.conversion import to_dense as to_dense
    from shrinkage.compression.sparse.conversion import to_sparse as to_sparse
    from shrinkage.compression.sparse.semi_structured import to_semi_structured as to_semi_structured
    from shrinkage.compression.sparse.sparse_linear import SparseLinear as SparseLinear
    from shrinkage.compression.threshold import threshold_ as threshold_
    from shrinkage.compression.tracing.operators import coupling_rule as coupling_rule
    from shrinkage.diagnostics.report import Report as Report
    from shrinkage.diagnostics.report import report as report
    from shrinkage.diagnostics.residuals import Residuals as Residuals
    from shrinkage.diagnostics.strength_max import strength_max as strength_max
    from shrinkage.diagnostics.suggested_strengths import SuggestedStrengths as SuggestedStrengths
    from shrinkage.diagnostics.suggested_strengths import suggest_strengths as suggest_strengths
    from shrinkage.errors import ActivityError as ActivityError
    from shrinkage.errors import AttachmentError as AttachmentError
    from shrinkage.errors import GroupError as GroupError
    from shrinkage.errors import MetricError as MetricError
    from shrinkage.errors import ParameterError as ParameterError
    from shrinkage.errors import PlanError as PlanError
    from shrinkage.errors import SelectionError as SelectionError
    from shrinkage.errors import ShrinkageError as ShrinkageError
    from shrinkage.errors import ShrinkError as ShrinkError
    from shrinkage.errors import SparseFormatError as SparseFormatError
    from shrinkage.optimizers.registry import register_metric as register_metric
    from shrinkage.paths.path import Path as Path
    from shrinkage.paths.point import Point as Point
    from shrinkage.paths.warm_starts import path as path
    from shrinkage.penalties.addition import register_sum as register_sum
    from shrinkage.penalties.balls import L1Ball as L1Ball
    from shrinkage.penalties.balls import MaxNorm as MaxNorm
    from shrinkage.penalties.balls import MinMaxNorm as MinMaxNorm
    from shrinkage.penalties.balls import Simplex as Simplex
    from shrinkage.penalties.balls import SpectralBall as SpectralBall
    from shrinkage.penalties.balls import UnitNorm as UnitNorm
    from shrinkage.penalties.base import Penalty as Penalty
    from shrinkage.penalties.box import Box as Box
    from shrinkage.penalties.budget import Budget as Budget
    from shrinkage.penalties.common_schedules import Cosine as Cosine
    from shrinkage.penalties.common_schedules import Cubic as Cubic
    from shrinkage.penalties.common_schedules import Ramp as Ramp
    from shrinkage.penalties.common_schedules import Steps as Steps
    from shrinkage.penalties.constraints import NofM as NofM
    from shrinkage.penalties.constraints import TopK as TopK
    from shrinkage.penalties.controls import Bound as Bound
    from shrinkage.penalties.controls import Corrected as Corrected
    from shrinkage.penalties.convex import L1 as L1
    from shrinkage.penalties.convex import L2 as L2
    from shrinkage.penalties.convex import ElasticNet as ElasticNet
    from shrinkage.penalties.convex import Huber as Huber
    from shrinkage.penalties.counting import L0 as L0
    from shrinkage.penalties.counting import Counted as Counted
    from shrinkage.penalties.counting import Lp as Lp
    from shrinkage.penalties.coupled_groups import Coupled as Coupled
    from shrinkage.penalties.coupled_groups import Member as Member
    from shrinkage.penalties.fused import FusedLasso as FusedLasso
    from shrinkage.penalties.group_linf import GroupLInf as GroupLInf
    from shrinkage.penalties.grouped import Grouped as Grouped
    from shrinkage.penalties.grouped import GroupLasso as GroupLasso
    from shrinkage.penalties.groups import Blocks as Blocks
    from shrinkage.penalties.groups import Columns as Columns
    from shrinkage.penalties.groups import Groups as Groups
    from shrinkage.penalties.groups import Heads as Heads
    from shrinkage.penalties.groups import Kernels as Kernels
    from shrinkage.penalties.groups import Rows as Rows
    from shrinkage.penalties.groups import Whole as Whole
    from shrinkage.penalties.matrix import Nuclear as Nuclear
    from shrinkage.penalties.matrix import Orthogonal as Orthogonal
    from shrinkage.penalties.nonconvex import MCP as MCP
    from shrinkage.penalties.nonconvex import SCAD as SCAD
    from shrinkage.penalties.nonconvex import LogSum as LogSum
    from shrinkage.penalties.nonnegative import NonNegative as NonNegative
    from shrinkage.penalties.pickling import restored as _restored  # noqa: F401  # files name it
    from shrinkage.penalties.ridged import Ridged as Ridged
    from shrinkage.penalties.sparse_group import SparseGroupLasso as SparseGroupLasso
    from shrinkage.penalties.toward import Toward as Toward
    from shrinkage.penalties.weighted import Weighted as Weighted
    from shrinkage.selection.plan import Plan as Plan
    from shrinkage.selection.rules import Rule as Rule
    from shrinkage.selection.rules_from_data import rules_from as rules_from
    from shrinkage.training.activities import Activities as Activities
    from shrinkage.training.freeze import freeze_zeros as freeze_zeros
    from shrinkage.training.progress import BudgetProgress as BudgetProgress
    from shrinkage.training.regularize import regularize as regularize
    from shrinkage.training.regularizer import Regularizer as Regularizer
finally:
    if _collects:
        gc.enable()

__all__ = [
    "L0",
    "L1",
    "L2",
    "MCP",
    "SCAD",
    "Activities",
    "ActivityError",
    "AttachmentError",
    "Blocks",
    "Bound",
    "Box",
    "Budget",
    "BudgetProgress",
    "Columns",
    "Corrected",
    "Cosine",
    "Counted",
    "Coupled",
    "CoupledChannels",
    "Cubic",
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
    "Path",
    "Penalty",
    "Plan",
    "PlanError",
    "Point",
    "Ramp",
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
    "Steps",
    "SuggestedStrengths",
    "TopK",
    "Toward",
    "UnitNorm",
    "Weighted",
    "Whole",
    "apply_plan",
    "coupling_rule",
    "freeze_zeros",
    "load_smaller",
    "path",
    "register_layer",
    "register_metric",
    "register_sum",
    "regularize",
    "report",
    "rules_from",
    "save_smaller",
    "shrink",
    "shrink_optimizer_",
    "strength_max",
    "suggest_strengths",
    "threshold_",
    "to_dense",
    "to_semi_structured",
    "to_sparse",
]

__version__ = "0.1.0"
