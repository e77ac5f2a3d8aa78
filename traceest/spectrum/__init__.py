"""Spectra of self-adjoint operators: extreme eigenvalues, norms, and functions and densities of all of them."""

from traceest.spectrum.density import SpectralDensity, spectral_density
from traceest.spectrum.eigenvalues import Eigenvalues, eigenvalues
from traceest.spectrum.entropy import entropy_rank
from traceest.spectrum.functions import logdet, schatten_norm, trace_of_function
from traceest.spectrum.norm import spectral_norm

__all__ = [
    "Eigenvalues",
    "SpectralDensity",
    "eigenvalues",
    "entropy_rank",
    "logdet",
    "schatten_norm",
    "spectral_density",
    "spectral_norm",
    "trace_of_function",
]
