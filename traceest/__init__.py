"""traceest: traces, norms and effective ranks of operators too large to write down, with honest error bars.

The flow: model → Jacobian → kernel K → estimator → Estimate. Models enter through `traceest_adapters`; here
is everything after that, for any operator that can be multiplied by, on any Array-API backend.
"""

from traceest import probes
from traceest._sources import door as _door
from traceest.checks import CheckReport, check
from traceest.estimators import exact, fhutch, hutchinson, hutchpp, na_hutchpp, nystrompp, rhutch, xnystrace, xtrace
from traceest.estimators.diagonal import diagonal
from traceest.estimators.polynomial import trace_of_polynomial
from traceest.kernels import (
    Summary,
    alignment,
    centred_alignment,
    effective_rank,
    frobenius_norm,
    relative_distance,
    summary,
    target_alignment,
)
from traceest.kernels.inner_product import inner_product
from traceest.operators import (
    DenseOperator,
    Gram,
    Jacobian,
    LinearOperator,
    Operator,
    Stack,
    aslinearoperator,
    gram,
    identity,
    kron,
    polynomial,
    symmetric_part,
    to_dense,
    vstack,
)
from traceest.partial import PartialTrace, partial_trace
from traceest.spectrum import (
    Eigenvalues,
    SpectralDensity,
    eigenvalues,
    entropy_rank,
    logdet,
    schatten_norm,
    spectral_density,
    spectral_norm,
    trace_of_function,
)
from traceest.trace import trace
from traceest.tracking import Checkpoint, Tracker
from traceest.uncertainty.estimate import ConfidenceInterval, Estimate, merge
from traceest.uncertainty.storage import load, save

# The public calls, of which results are marked with what they were made of.
alignment = _door(alignment)
centred_alignment = _door(centred_alignment)
diagonal = _door(diagonal)
effective_rank = _door(effective_rank)
eigenvalues = _door(eigenvalues)
entropy_rank = _door(entropy_rank)
exact = _door(exact)
fhutch = _door(fhutch)
frobenius_norm = _door(frobenius_norm)
hutchinson = _door(hutchinson)
hutchpp = _door(hutchpp)
inner_product = _door(inner_product)
logdet = _door(logdet)
na_hutchpp = _door(na_hutchpp)
nystrompp = _door(nystrompp)
partial_trace = _door(partial_trace)
relative_distance = _door(relative_distance)
rhutch = _door(rhutch)
schatten_norm = _door(schatten_norm)
spectral_density = _door(spectral_density)
spectral_norm = _door(spectral_norm)
summary = _door(summary)
target_alignment = _door(target_alignment)
trace = _door(trace)
trace_of_function = _door(trace_of_function)
trace_of_polynomial = _door(trace_of_polynomial)
xnystrace = _door(xnystrace)
xtrace = _door(xtrace)

__version__ = "0.1.0"

__all__ = [
    "CheckReport",
    "Checkpoint",
    "ConfidenceInterval",
    "DenseOperator",
    "Eigenvalues",
    "Estimate",
    "Gram",
    "Jacobian",
    "LinearOperator",
    "Operator",
    "PartialTrace",
    "SpectralDensity",
    "Stack",
    "Summary",
    "Tracker",
    "alignment",
    "aslinearoperator",
    "centred_alignment",
    "check",
    "diagonal",
    "effective_rank",
    "eigenvalues",
    "entropy_rank",
    "exact",
    "fhutch",
    "frobenius_norm",
    "gram",
    "hutchinson",
    "hutchpp",
    "identity",
    "inner_product",
    "kron",
    "load",
    "logdet",
    "merge",
    "na_hutchpp",
    "nystrompp",
    "partial_trace",
    "polynomial",
    "probes",
    "relative_distance",
    "rhutch",
    "save",
    "schatten_norm",
    "spectral_density",
    "spectral_norm",
    "summary",
    "symmetric_part",
    "target_alignment",
    "to_dense",
    "trace",
    "trace_of_function",
    "trace_of_polynomial",
    "vstack",
    "xnystrace",
    "xtrace",
]
