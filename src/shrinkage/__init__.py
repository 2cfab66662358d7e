"""Regularize the weights of PyTorch models, layer by layer: no term in the loss, exact zeros."""

from importlib.metadata import PackageNotFoundError, version

from shrinkage.declare import regularize as regularize
from shrinkage.errors import AttachmentError as AttachmentError
from shrinkage.errors import GroupError as GroupError
from shrinkage.errors import MetricError as MetricError
from shrinkage.errors import ParameterError as ParameterError
from shrinkage.errors import SelectionError as SelectionError
from shrinkage.errors import ShrinkageError as ShrinkageError
from shrinkage.groups import Columns as Columns
from shrinkage.groups import Groups as Groups
from shrinkage.groups import Heads as Heads
from shrinkage.groups import Kernels as Kernels
from shrinkage.groups import Rows as Rows
from shrinkage.groups import Whole as Whole
from shrinkage.metric import register_metric as register_metric
from shrinkage.penalties import L1 as L1
from shrinkage.penalties import L2 as L2
from shrinkage.penalties import ElasticNet as ElasticNet
from shrinkage.penalties import Grouped as Grouped
from shrinkage.penalties import GroupLasso as GroupLasso
from shrinkage.penalties import Penalty as Penalty
from shrinkage.plan import Plan as Plan
from shrinkage.plan import Rule as Rule
from shrinkage.regularizer import Regularizer as Regularizer
from shrinkage.report import Report as Report
from shrinkage.report import report as report
from shrinkage.threshold import threshold_ as threshold_

__all__ = [
    "L1",
    "L2",
    "AttachmentError",
    "Columns",
    "ElasticNet",
    "GroupError",
    "GroupLasso",
    "Grouped",
    "Groups",
    "Heads",
    "Kernels",
    "MetricError",
    "ParameterError",
    "Penalty",
    "Plan",
    "Regularizer",
    "Report",
    "Rows",
    "Rule",
    "SelectionError",
    "ShrinkageError",
    "Whole",
    "register_metric",
    "regularize",
    "report",
    "threshold_",
]

try:
    __version__ = version("shrinkage")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"
