"""How a call of the native kernels is laid out in memory: the structs and numbers of the C sources, in their
order."""

import ctypes
import struct
from enum import IntEnum

POINTER, INT64, INT32, DOUBLE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_double


class Type(IntEnum):
    """Types of tensors."""

    FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)


class Form(IntEnum):
    """What a call moves."""

    ELEMENTS, GROUPS, COUPLED = range(3)


class Code(IntEnum):
    """Operations of which the proximal operator of an element is made."""

    SOFT, DIVIDE, RIDGE, HUBER, FIRM, CLIPPED, LOG, HARD, HALF, TWO_THIRDS = range(10)
    WEIGH, POSITIVE, BOUNDED, CLAMP, KEEP, COUNT, LEAVE, RETURN = range(10, 18)


class Act(IntEnum):
    """What a call does with tensors that are ranked."""

    COUNT, LOOK, CUT, RESTORE = range(4)


class Op(ctypes.Structure):
    """One operation, and its numbers."""

    _fields_ = (("code", INT64), ("a", DOUBLE), ("b", DOUBLE), ("c", DOUBLE))


class Step(ctypes.Structure):
    """The step is lr, or lr / (sqrt(moment / correction) + eps)."""

    _fields_ = (("lr", DOUBLE), ("eps", DOUBLE), ("correction", DOUBLE))


class Shape(ctypes.Structure):
    """The sizes and strides of a tensor, and its type as torch numbers it."""

    _fields_ = (("sizes", POINTER), ("dim", INT64), ("type", INT32), ("spare", INT32))


class Search(ctypes.Structure):
    """Where tensors of Python are, what they have to be, and where to write the addresses of their numbers."""

    _fields_ = (*((name, POINTER) for name in ("shapes", "tensors", "found")), ("count", INT64))


class Torch(ctypes.Structure):
    """Functions of torch that tell what a tensor is, classes of tensors, and where tensors of Python have theirs."""

    _fields_ = (
        *((name, POINTER) for name in ("layout", "device", "type", "dim", "sizes", "strides", "address")),
        ("kinds", INT64 * 2),
        *((name, INT64) for name in ("class_place", "place")),
    )


class Job(ctypes.Structure):
    """One tensor, as (batch, outer, slices, inner) in the order of memory; batch and slices tell groups apart."""

    _fields_ = (
        *((name, POINTER) for name in ("w", "moment", "extra", "order", "starts")),
        *((name, INT64) for name in ("batch", "outer", "slices", "inner")),
        ("step", Step),
        ("weight", DOUBLE),
        *((name, INT32) for name in ("type", "moment_type", "extra_type", "begin")),
        *((name, INT64) for name in ("block", "tasks")),
    )


class Call(ctypes.Structure):
    """Tensors that are moved together."""

    _fields_ = (
        *((name, POINTER) for name in ("jobs", "ws", "moments")),
        ("searches", INT64 * 2),
        *((name, POINTER) for name in ("steps", "ops", "norm_ops", "weights", "blocks")),
        *((name, DOUBLE) for name in ("linear", "quadratic")),
        *((name, INT64) for name in ("count", "op_count", "norm_op_count", "block_count")),
        *((name, INT32) for name in ("form", "wide", "metric", "threads", "exact", "alike")),
    )


class Held(ctypes.Structure):
    """One tensor whose zeros may be held, its gradient, two running sums of gradients that take turns, and the mask."""

    _fields_ = (
        *((name, POINTER) for name in ("w", "grad")),
        ("sums", INT64 * 2),
        *((name, POINTER) for name in ("mask", "room")),
        *((name, INT64) for name in ("batch", "outer", "slices", "inner")),
        ("weights", DOUBLE * 2),
        *((name, DOUBLE) for name in ("share", "sign", "slope", "group_slope", "group_weight", "most")),
        *((name, INT64) for name in ("place", "size", "tasks")),
        *((name, INT32) for name in ("type", "grad_type")),
    )


class Holding(ctypes.Structure):
    """Tensors whose zeros are held together."""

    _fields_ = (
        *((name, POINTER) for name in ("held", "ws", "grads")),
        ("searches", INT64 * 2),
        ("count", INT64),
        *((name, INT32) for name in ("turn", "wide", "threads", "spare")),
    )


class Ranked(ctypes.Structure):
    """One tensor whose elements are ranked by size: a digit that is counted, a window, and what stays."""

    _fields_ = (
        *((name, POINTER) for name in ("w", "aside", "room", "counts")),
        *((name, INT64) for name in ("size", "spare", "low", "high", "above", "inside", "back", "pattern", "ties")),
        *((name, INT64) for name in ("prefix", "shift", "bits", "tasks")),
        *((name, INT32) for name in ("type", "padding")),
    )


def is_right(native: ctypes.CDLL) -> bool:
    """Return whether a library has these structs, and whether its soft threshold and its rows are right."""
    native.shrinkage_size.argtypes, native.shrinkage_size.restype = [ctypes.c_int], INT64
    sizes = [native.shrinkage_size(which) for which in range(7)]
    if sizes != [ctypes.sizeof(kind) for kind in (Op, Job, Call, Held, Holding, Search, Ranked)]:
        return False
    soft = moved(native, Form.ELEMENTS, [-3.0, 0.5, 2.0], [Op(Code.SOFT, 1.0)], moments=None)
    rows = moved(native, Form.GROUPS, [3.0, 4.0, 0.1, 0.2], [], moments=[0.0, 0.0, 0.0, 0.0])
    return soft == [-2.0, 0.0, 1.0] and rows[2:] == [0.0, 0.0] and all(map(near, rows, [2.4, 3.2, 0.0, 0.0]))


def near(one: float, other: float) -> bool:
    """Return whether two numbers are equal to the rounding of float32."""
    return abs(one - other) < 1e-5


def moved(native: ctypes.CDLL, form: Form, w: list[float], ops: list[Op], moments: list[float] | None) -> list[float]:
    """Return `w` after a call in float32, elements or rows of two, with a step and a strength of 1."""
    width = 2 if form == Form.GROUPS else len(w)
    values = (ctypes.c_float * len(w))(*w)
    second = (ctypes.c_float * len(w))(*(moments or []))
    job = Job(batch=1, outer=1, slices=len(w) // width, inner=width, weight=1.0)
    ws, seconds = POINTER(ctypes.addressof(values)), POINTER(ctypes.addressof(second) if moments else None)
    step = Step(1.0, 0.0, 1.0)
    program = (Op * max(len(ops), 1))(*ops)
    call = Call(*map(ctypes.addressof, (job, ws, seconds)), linear=1.0, count=1, op_count=len(ops))
    call.steps, call.ops, call.norm_ops = map(ctypes.addressof, (step, program, program))
    call.form, call.metric, call.threads = form, int(moments is not None), 1
    native.shrinkage_prox(ctypes.byref(call))
    return list(struct.unpack(f"{len(w)}f", values))
