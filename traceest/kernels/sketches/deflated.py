"""One kernel with a given basis deflated: exact on it, sampled on what it leaves; vjps alone beside the basis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from traceest import _array_api as aa
from traceest.kernels.sketches.base import Sketch
from traceest.operators.abilities import can
from traceest.operators.blocks import sketch_gram
from traceest.operators.metering import Meter
from traceest.operators.products import deflate
from traceest.uncertainty.estimate import Estimate
from traceest.uncertainty.ustatistics import Statistic, block_sum, jackknife, pair_mean, squared_mean


@dataclass
class Deflated(Sketch):
    """Q, Z = KQ and, of probes U = (I − QQᴴ)V, either G = ⟨JᴴU, JᴴU⟩ or KU, in K's unit.

        tr K = tr QᴴZ + E uᴴKu
        ‖K‖² = 2‖Z‖² − ‖QᴴZ‖² + ‖(I − QQᴴ)K(I − QQᴴ)‖²

    for self-adjoint K; the last term by the U-statistic of G, or by the mean of ‖(I − QQᴴ)Ku‖².
    """

    xp: Any
    on_basis: tuple[Any, Any]  # tr QᴴZ and 2‖Z‖² − ‖QᴴZ‖²
    G: Any  # (m, m) or None
    KU: Any
    U: Any
    units: list[Any]
    fields: dict[str, Any]
    targets: list[Any] = field(default_factory=list)
    groups: list[Sketch] = field(default_factory=list)

    def forms(self) -> Any:
        """UᴴKU with the basis' share, (1, m)."""
        xp = self.xp
        forms = xp.linalg.diagonal(self.G) if self.G is not None else aa.vdot(xp, self.U, self.KU)
        return (aa.real(xp, forms) + self.on_basis[0])[None, :]

    def trace(self, a: int) -> Statistic:
        """Tr QᴴZ + mean uᴴKu."""
        return block_sum(self.xp, self.forms())

    def squared_trace(self, a: int) -> Statistic:
        """The trace's square less its variance."""
        return squared_mean(self.xp, self.forms())

    def _product(self, a: int, b: int) -> Statistic:
        """‖K‖²."""
        if self.G is None:
            left = block_sum(self.xp, self.xp.sum(aa.abs2(self.xp, self.KU), axis=0)[None, :])
        else:
            left = pair_mean(self.xp, aa.abs2(self.xp, self.G)[None, :, None, :])
        return left.map(lambda x: x + self.on_basis[1])

    def _squared_distance(self, a: int, b: int) -> tuple[Statistic, Any]:
        """Of a kernel to itself."""
        return self.product(a, b).map(lambda x: 0 * x), self.units[a]

    def example_traces(self, a: int) -> Estimate | None:
        """None: the basis does not tell examples apart."""
        return None

    def estimate(self, statistic: Statistic, size: Any = 1.0, **fields: Any) -> Estimate:
        """With the delete-one jackknife."""
        return jackknife(self.xp, statistic, size, **self.fields, **fields)


def deflated(K: Any, Q: Any, V: Any) -> tuple[Deflated, Any, Any]:
    """The sketch, Z = KQ and what the probes V give by themselves: their Gram array of a Gram operator, else KV.

    Of K = JJᴴ it takes q vjps and jvps for Z and m vjps for the probes; of any other K, q + m products.
    """
    xp, meter = aa.namespace(K), Meter(K)
    Z, U, share = meter.op.matmat(Q), deflate(xp, Q, V), aa.adjoint(xp, Q) @ V
    J = meter.op.factor
    unit = xp.sum(aa.safe_scale(xp, Z))
    H = aa.adjoint(xp, Q) @ Z / unit
    trace = aa.real(xp, xp.sum(xp.linalg.diagonal(H)))
    norm2 = 2 * xp.sum(aa.abs2(xp, Z / unit)) - xp.sum(aa.abs2(xp, H))
    if J is not None and can(J, "rmatmat"):
        # JᴴV = JᴴU + JᴴQ(QᴴV): the probes' own Gram matrix costs nothing more
        G = xp.sum(sketch_gram(J, U), axis=(0, 2)) / unit
        mixed = (aa.adjoint(xp, U) @ Z / unit) @ share
        whole = G + mixed + aa.adjoint(xp, mixed) + aa.adjoint(xp, share) @ (H @ share)
        KU, own = None, (whole * unit)[None, :, None, :]
    else:
        G, KU = None, meter.op.matmat(U)
        own = KU + Z @ share
        KU = deflate(xp, Q, KU / unit)
    fields = {"method": "deflated", **meter.spent}
    return Deflated(xp, (trace, norm2), G, KU, U, [unit], fields), Z, own
