"""Operators: anything with shape, dtype, device, a namespace, and `matmat` and/or `rmatmat`."""

from traceest.operators.base import Jacobian, LinearOperator, Operator
from traceest.operators.blocks import block_rmatmat, block_sqnorms, sketch_gram
from traceest.operators.convert import aslinearoperator
from traceest.operators.dense import DenseOperator
from traceest.operators.gram import Gram, gram

__all__ = [
    "DenseOperator",
    "Gram",
    "Jacobian",
    "LinearOperator",
    "Operator",
    "aslinearoperator",
    "block_rmatmat",
    "block_sqnorms",
    "gram",
    "sketch_gram",
]
