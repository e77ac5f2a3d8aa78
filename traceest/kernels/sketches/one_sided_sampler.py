"""The same probes through the factors of one or several kernels, vjps alone or jvps alone: as many as it takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from traceest import _array_api as aa
from traceest import _validation as check
from traceest.kernels.sketches.one_sided import Grams, Run
from traceest.kernels.sketches.request import Request
from traceest.kernels.sketches.sampler import SketchSampler
from traceest.operators.abilities import can
from traceest.operators.base import Derived
from traceest.operators.blocks import block_sqnorms, grouped_gram, n_blocks
from traceest.operators.layout import layout
from traceest.operators.metering import Meter
from traceest.operators.sketched import HELD, PIECE, BlockSketch
from traceest.probes import Probes, of_pairs
from traceest.uncertainty.ustatistics import Invariant


class OneSidedSampler(SketchSampler):
    """Gram arrays of sketches J_bᴴs_{b,i}, each new one paired with all before.

    For that the sketches themselves are held, in whichever form the factor has for them, as long as they fit `HELD`
    and the factor has one (a stack of batches has none). Where they do not, the probes of each growth are a run of
    their own, paired with each other alone. So it is for what a checkpoint brings, which has arrays only.

    Centred, s is replaced by Hs: JᴴHs_{b,i} = g_{b,i} − (1ᵀs_{b,i}/n) Jᴴ1, so that one more column, the ones, gives the
    Gram matrix of the centred sketches without a difference of large numbers.
    """

    steady = True

    def __init__(self, Ks: list[Any], request: Request) -> None:
        caller, Js, self.forward = request.caller, [K.factor for K in Ks], False
        if not all(can(J, "rmatmat") for J in Js):
            if len(Js) > 1 or request.n_extra or request.groups:
                check.require_side(next(J for J in Js if not can(J, "rmatmat")), "rmatmat", caller)
            J = Js[0]  # JᴴJ has the same trace and norm as JJᴴ, and its vjps are J's jvps
            Js, self.forward = [Derived((J.shape[1], J.shape[0]), like=J, rmatmat=J.matmat)], True
        counts = {n_blocks(J) for J in Js}
        # Kernels that tell different blocks apart share probes, not blocks: all of them are one block then.
        self.B, n = counts.pop() if len(counts) == 1 else 1, Js[0].shape[0]
        check.check_probes(request.probes, n, Js[0], caller)
        rows = layout(Js[0], self.B)
        law, probes = request.distribution or of_pairs(rows), request.probes
        stream = Probes(n, Js[0], rng=request.rng, distribution=law, n_blocks=self.B, layout=rows, probes=probes)
        super().__init__(Ks, request, Js, stream)
        self.Js = Js
        self.known = probes is None or request.distribution is not None
        self.law = Invariant.of(law, n // self.B, aa.is_complex(self.xp, stream.dtype)) if self.known else None
        self.runs: list[Run] = []
        self.sizes: list[int] = []
        self.held: list[Held] | None = None

    @property
    def n_samples(self) -> int:
        """Probes so far."""
        return sum(self.sizes)

    @property
    def least(self) -> int:  # type: ignore[override]
        """Fewest probes to a growth: a run of its own has to have pairs, with one left out too."""
        return 1 if self.held is not None else 3

    def grow(self, k: int, last: bool = False) -> None:
        """Send k more probes through the factors; if they are the `last`, nothing is held."""
        V = self.stream.take(k)
        self.witness = V[:, :1] if self.witness is None else self.witness
        means = None
        if self.request.centred:
            means = self.xp.sum(self.xp.reshape(V, (self.B, self.stream.n // self.B, k)), axis=1) / self.stream.n
        if last or not self._may_hold(k):
            self.held = None
            columns = V if self.extra is None else aa.concat_columns(self.xp, [V, self.extra])
            of_kernels = [self._grams(J, columns) for J in self.meter.ops]
            self.runs.append(Run(of_kernels, means))
            self.sizes.append(k)
            return
        if self.held is None:
            self.held = [Held(meter, J, self.B, self.extra) for meter, J in zip(self.meter.each, self.Js, strict=True)]
            self.sizes.append(0)
        else:
            before = self.runs.pop()
            means = None if means is None else aa.concat_columns(self.xp, [before.means, means])
        for one in self.held:
            one.add(V)
        self.runs.append(Run([[one.whole()] for one in self.held], means))
        self.sizes[-1] += k

    def _may_hold(self, k: int) -> bool:
        """Whether k more sketches may be held, for later ones to meet them."""
        if self.runs and self.held is None:
            return False
        columns, room = self.n_samples + k + self.request.n_extra, HELD // len(self.Js)
        return all(_holdable(J, columns, room) for J in self.Js)

    def _grams(self, J: Any, V: Any) -> list[Any]:
        """The Gram arrays of every group and, last, of all columns."""
        return [as_blocks(self.xp, G, self.B) for G in grouped_gram(J, V, self.request.groups)]

    def sketch(self) -> Grams:
        """What there is so far."""
        spent = self.meter.spent
        if self.forward:
            spent = {"n_matvecs": spent["n_rmatvecs"], "n_rmatvecs": spent["n_matvecs"]}
        method = "block U-statistic" if self.B > 1 else "U-statistic"
        fields = {"method": method, **spent}
        doubt, sizes = self.stream.doubt_of_pairs(self.known), tuple(self.sizes)
        return Grams(self.xp, self.runs, self.request.target_norm, sizes, fields, self.law, doubt)

    def predicted(self, stderr: float) -> float:
        """Of a variance a/m + b/m², by single probes and by pairs, through the last two looks.

        One look alone does not tell them apart: the smaller number is hoped for then, which leaves a look to do so.
        """
        (k, before), (m, now) = (self.looks[-2:] if len(self.looks) > 1 else self.looks * 2)[-2:]
        a = 0.0
        if m > k and math.isfinite(before):
            a = min(max(((m * now) ** 2 - (k * before) ** 2) / (m - k), 0.0), m * now**2)
        b = m * (m * now**2 - a)
        return float(a + math.sqrt(a * a + 4 * b * stderr**2)) / (2 * stderr**2)

    # -- written down and taken up again ----------------------------------------------------------------
    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of a state; those that are empty are missing."""
        return ("witness", "looks", "sizes", "grams", "means")

    def fits(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether the state's array of that name may have this shape and dtype."""
        if name == "sizes":
            return len(shape) == 1 and dtype.kind == "i"
        return super().fits(name, shape, dtype) and (name != "grams" or len(shape) == 1)

    def sound(self, name: str, x: np.ndarray) -> bool:
        """Whether a state's array of that name may hold these numbers."""
        return bool(np.all(x > 0)) if name == "sizes" else super().sound(name, x)

    def state(self) -> dict[str, Any]:
        """All that the sampler knows, by name: the Gram arrays of all runs and kernels, one behind the other."""
        flat = [self.xp.reshape(G[0], (-1,)) for run in self.runs for G in run.grams]
        own = {"sizes": np.asarray(self.sizes, dtype=np.int64), "grams": self.xp.concat(flat)}
        if self.request.centred:
            own["means"] = aa.concat_columns(self.xp, [run.means for run in self.runs])
        return super().state() | own

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`, with runs of their own."""
        sizes = [int(k) for k in state["sizes"]] if "sizes" in state else []
        sides = [self.B * (k + self.request.n_extra) for k in sizes]
        entries = len(self.Ks) * sum(side * side for side in sides)
        means = state.get("means")
        whole = sum(sizes) == state["drawn"] > 0 and "grams" in state and state["grams"].shape == (entries,)
        if not whole or (means is not None) != self.request.centred:
            raise ValueError("its arrays and counts do not belong to one run")
        if means is not None and means.shape != (self.B, sum(sizes)):
            raise ValueError("its means are not of its probes")
        super().restore(state)
        start, first, self.runs = 0, 0, []
        for k, side in zip(sizes, sides, strict=True):
            grams = []
            for _ in self.Ks:
                G = state["grams"][start : start + side * side]
                grams.append([self.xp.reshape(G, (self.B, side // self.B, self.B, side // self.B))])
                start += side * side
            self.runs.append(Run(grams, None if means is None else means[:, first : first + k]))
            first += k
        self.sizes, self.held = sizes, None

    def witnessed(self) -> list[tuple[Any, Any]]:
        """‖J_bᴴv_b‖² of the first probe, as it is now and as it was, of every kernel that tells the blocks apart."""
        found = []
        for J, of_kernel in zip(self.meter.ops, self.runs[0].grams, strict=True):
            G = of_kernel[0][:, 0, :, 0]
            before = aa.real(self.xp, self.xp.linalg.diagonal(G))
            if n_blocks(J) == self.B:
                found.append((block_sqnorms(J, self.witness)[:, 0], before))
            else:
                found.append((aa.real(self.xp, self._grams(J, self.witness)[-1])[:, 0, 0, 0], before))
        return found


class Held:
    """The sketches of one kernel's factor, and the Gram array of all of them."""

    def __init__(self, meter: Meter, J: Any, B: int, extra: Any) -> None:
        self.meter, self.J, self.B, self.xp = meter, J, B, aa.namespace(J)
        self.sketches: list[BlockSketch] = []
        self.G: Any = None  # (B, m, B, m)
        self.beside: tuple[Any, Any, Any] | None = None  # extra columns: sketch, G with probes, own
        if extra is not None:
            sketch = self._sketched(extra)
            self.beside = (sketch, None, self._gram(sketch, sketch))

    def add(self, V: Any) -> None:
        """Multiply V, a piece at a time, and pair it with itself and all before."""
        step = max(1, PIECE // max(1, self.J.sketch_bytes))
        for i in range(0, V.shape[1], step):
            self._add(self._sketched(V[:, i : min(i + step, V.shape[1])]))

    def _add(self, new: BlockSketch) -> None:
        xp, own = self.xp, self._gram(new, new)
        if self.G is None:
            self.G = own
        else:
            above = xp.concat([self._gram(old, new) for old in self.sketches], axis=1)
            self.G = _bordered(xp, self.G, above, own)
        self.sketches.append(new)
        if self.beside is not None:
            sketch, beside, corner = self.beside
            more = self._gram(new, sketch)
            self.beside = (sketch, more if beside is None else xp.concat([beside, more], axis=1), corner)

    def whole(self) -> Any:
        """With the extra columns behind the probes."""
        return self.G if self.beside is None else _bordered(self.xp, self.G, *self.beside[1:])

    def _sketched(self, V: Any) -> BlockSketch:
        if not can(self.J, "block_sketch"):
            made: BlockSketch = self.meter.op.block_sketch(V)
            return made
        self.meter.charge(0, V.shape[1])
        own: BlockSketch = self.J.block_sketch(V)
        return own

    def _gram(self, one: BlockSketch, other: BlockSketch) -> Any:
        return as_blocks(self.xp, one.gram(other, None)[0, ...], self.B)


def _bordered(xp: Any, G: Any, above: Any, corner: Any) -> Any:
    """[[G, above], [aboveᴴ, corner]]."""
    below = aa.conj(xp, xp.permute_dims(above, (2, 3, 0, 1)))
    return xp.concat([xp.concat([G, above], axis=3), xp.concat([below, corner], axis=3)], axis=1)


def _holdable(J: Any, columns: int, room: int) -> bool:
    """Whether sketches of so many columns may be held: in a small form of the factor's, or as they are made anyway."""
    return columns * int(J.sketch_bytes) <= room if can(J, "block_sketch") else not can(J, "sketch_gram")


def as_blocks(xp: Any, G: Any, B: int) -> Any:
    """G of more blocks than B = 1 summed over them: the Gram matrix of the sums of the blocks' sketches."""
    return G if G.shape[0] == B else xp.sum(G, axis=(0, 2))[None, :, None, :]


def one_sided(Ks: list[Any], request: Request) -> Grams:
    """Send the probes of a fixed budget, and what else was asked for, through every factor."""
    sampler = OneSidedSampler(Ks, request)
    sampler.grow(request.n_drawn(2), last=True)
    return sampler.sketch()
