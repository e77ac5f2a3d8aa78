"""Operators: anything with shape, dtype, device, a namespace, and `matmat` and/or `rmatmat`."""

from traceest.operators.abilities import can
from traceest.operators.base import Jacobian, LinearOperator, Operator
from traceest.operators.blocks import block_rmatmat, block_sqnorms, sketch_gram
from traceest.operators.convert import aslinearoperator
from traceest.operators.dense import DenseOperator
from traceest.operators.densify import to_dense
from traceest.operators.gram import Gram, gram
from traceest.operators.kronecker import kron
from traceest.operators.polynomials import identity, polynomial, symmetric_part
from traceest.operators.stack import Stack, vstack

__all__ = [
    "DenseOperator",
    "Gram",
    "Jacobian",
    "LinearOperator",
    "Operator",
    "Stack",
    "aslinearoperator",
    "block_rmatmat",
    "block_sqnorms",
    "can",
    "gram",
    "identity",
    "kron",
    "polynomial",
    "sketch_gram",
    "symmetric_part",
    "to_dense",
    "vstack",
]
