"""Sketches of kernels: the same probes through one or several of them, from which every statistic is computed."""

from traceest.kernels.sketches.base import Sketch
from traceest.kernels.sketches.exact import exact
from traceest.kernels.sketches.fused import fused
from traceest.kernels.sketches.request import Groups, Method, Request, kernels_of_one_state
from traceest.kernels.sketches.route import by_blocks, by_columns, exact_cost, route, sketch

__all__ = [
    "Groups",
    "Method",
    "Request",
    "Sketch",
    "by_blocks",
    "by_columns",
    "exact",
    "exact_cost",
    "fused",
    "kernels_of_one_state",
    "route",
    "sketch",
]
