"""Partial traces: a kernel summed over the diagonal of some axes of its state, and kept on the others."""

from traceest.partial.estimator import partial_trace
from traceest.partial.result import PartialTrace

__all__ = ["PartialTrace", "partial_trace"]
