"""Statistics of kernels: Frobenius norm, effective rank, alignments, each alone or all from one sketch.

Of K = JJᴴ they come from one-sided products alone, by the block U-statistic of
`traceest.uncertainty.ustatistics`: m probes through J give trace, norm and alignment together. Of any other
operator they come from products v ↦ Kv. Ratios carry jackknife errors.
"""

from traceest.kernels.alignments import alignment, centred_alignment, relative_distance, target_alignment
from traceest.kernels.norms import effective_rank, frobenius_norm
from traceest.kernels.summary import Summary, summary

__all__ = [
    "Summary",
    "alignment",
    "centred_alignment",
    "effective_rank",
    "frobenius_norm",
    "relative_distance",
    "summary",
    "target_alignment",
]
