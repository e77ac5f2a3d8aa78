"""Samplers grow until told to stop: the engines behind `traceest.trace`, each keeping all that was paid for."""

from traceest.estimators.hutchpp import Deflating
from traceest.estimators.sampler import Sampler
from traceest.estimators.sampling import Sampling, fhutch_sampling, hutchinson_sampling, rhutch_sampling
from traceest.samplers.exchangeable import Exchangeable

__all__ = [
    "Deflating",
    "Exchangeable",
    "Sampler",
    "Sampling",
    "fhutch_sampling",
    "hutchinson_sampling",
    "rhutch_sampling",
]
