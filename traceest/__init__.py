"""traceest: traces, norms and effective ranks of operators too large to write down, with honest error bars.

The flow: model → Jacobian → kernel K → estimator → Estimate. Models enter through `traceest_adapters`; here
is everything after that, for any operator that can be multiplied by, on any Array-API backend.
"""

from traceest import probes
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
    can,
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
    "can",
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
