"""Estimators with a fixed budget: pure functions of operator and random numbers, one file a family."""

from traceest.estimators.exact import exact
from traceest.estimators.hutchinson import fhutch, hutchinson, rhutch
from traceest.estimators.hutchpp import hutchpp
from traceest.estimators.nystrom import na_hutchpp, nystrompp
from traceest.estimators.xtrace import xnystrace, xtrace

__all__ = ["exact", "fhutch", "hutchinson", "hutchpp", "na_hutchpp", "nystrompp", "rhutch", "xnystrace", "xtrace"]
