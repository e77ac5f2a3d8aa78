"""Functions whose derivative by a parameter is known: what each argument's gradient for one example is made of.

``UNDERSTOOD[f](z, *args, **kwargs)`` gives a term for each argument of the call ``z = f(*args, **kwargs)`` that may be
a parameter. What it says is not relied upon: `traceest_adapters.torch.per_example.ghost_norms` compares it with
PyTorch's gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from traceest_adapters.torch.per_example.factors import Factor, Outer, Vector
from traceest_adapters.torch.per_example.lookup import Lookup


class Term(NamedTuple):
    """A parameter's gradient by one call: ``factor(x, δ)``.

    δ is the derivative by z, (c, B, M, …), and x the other argument, (B, M, …): the leading axes of either (`rows` of
    them) are brought into an example axis and one of its M rows.
    """

    parameter: Any
    rows: int
    x: torch.Tensor | None
    factor: Callable[[Any, torch.Tensor], Factor]


def _matrix(x: Any, d: torch.Tensor) -> Outer:
    """W in z = x Wᵀ."""
    return Outer(d[..., None, :], x[None, ..., None, :])


def _affine(x: Any, d: torch.Tensor) -> Outer:
    """W and b in z = x Wᵀ + b, as one weight: b's input is 1."""
    return _matrix(F.pad(x, (0, 1), value=1.0), d)


def joined(weight: Any, bias: Any, width: int) -> Callable[[Any, torch.Tensor], Factor] | None:
    """The factor of both parameters of a call with so many outputs, where they are such a weight and bias."""
    return _affine if weight is _matrix and bias is _elementwise((width,)) else None


def swapped(factor: Callable[[Any, torch.Tensor], Factor]) -> Callable[[Any, torch.Tensor], Factor] | None:
    """The same of the transposed parameter, where there is one."""
    turned: dict[Any, Any] = {_matrix: _transposed, _transposed: _matrix}
    return turned.get(factor)


def _transposed(x: Any, d: torch.Tensor) -> Outer:
    """W in z = x W."""
    return Outer(*reversed(_matrix(x, d)))


@lru_cache(maxsize=256)  # so that equal layers have equal factors
def _elementwise(shape: tuple[int, ...], of: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:
    """The factor of s in z = of(x) ∘ s, or in z = x + s (where x is not needed), for s of that shape."""
    core = _without_leading_ones(shape)
    summed = [2, *(3 + j for j, n in enumerate(core) if n == 1)]

    def factor(x: torch.Tensor | None, d: torch.Tensor) -> Vector:
        if x is not None:
            d = d * (x if of is None else of(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
        return Vector(d.sum(summed).reshape(*d.shape[:2], -1))

    return factor


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((j for j, n in enumerate(shape) if n != 1), len(shape))
    return tuple(shape[first:])


# -- one describer a function, with the function's own arguments -------------------------------------------
def _linear(z: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> Iterator[Term]:
    yield Term(weight, z.ndim - 1, input, _matrix)
    if bias is not None:
        yield Term(bias, z.ndim - 1, None, _elementwise(bias.shape))


def _matmul(z: torch.Tensor, input: torch.Tensor, other: torch.Tensor) -> Iterator[Term]:
    if other.ndim == 2 and input.ndim > 1:
        yield Term(other, z.ndim - 1, input, _transposed)


def _addmm(
    z: torch.Tensor, input: torch.Tensor, mat1: torch.Tensor, mat2: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> Iterator[Term]:
    if beta == alpha == 1:
        yield from _broadcast(z, input, None)
        yield from _matmul(z, mat1, mat2)


def _embedding(
    z: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Iterator[Term]:
    size = len(weight)
    if max_norm is not None or scale_grad_by_freq:
        return

    def factor(words: Any, d: torch.Tensor) -> Lookup:
        if padding_idx is not None:
            d = d * (words != padding_idx % size)[..., None]
        return Lookup(words, d, size)

    yield Term(weight, input.ndim, input, factor)


def _conv(
    z: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Iterator[Term]:
    n = weight.ndim - 2
    if input.ndim != weight.ndim:
        return
    kernel, stride, dilation = weight.shape[2:], _tuple(stride, n), _tuple(dilation, n)
    pads = _padding(padding, kernel, dilation)

    def patches(x: torch.Tensor) -> torch.Tensor:
        """(N, C, *S) → (N, T, groups, C/groups · kernel)."""
        x = F.pad(x, [side for pair in reversed(pads) for side in pair])
        for j, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
            x = x.unfold(2 + j, d * (k - 1) + 1, s)[..., ::d]
        x = x.movedim(1, 1 + n)  # (N, *positions, C, *kernel)
        return x.reshape(len(x), prod(x.shape[1 : 1 + n]), groups, -1)

    def factor(x: torch.Tensor, d: torch.Tensor) -> Outer:
        right = patches(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1, 2)
        left = d.flatten(4).mT.flatten(2, 3).unflatten(-1, (groups, -1))
        return Outer(left, right[None])

    yield Term(weight, 1, input, factor)
    if bias is not None:
        yield Term(bias, 1, None, _elementwise((len(bias), *(1 for _ in range(n)))))


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> list[tuple[int, int]]:
    """Before and behind, along each axis."""
    if isinstance(padding, str):
        extra = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        return [(e // 2, e - e // 2) for e in extra]
    return [(p, p) for p in _tuple(padding, len(kernel))]


def _layer_norm(
    z: torch.Tensor, input: torch.Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Iterator[Term]:
    shape = tuple(normalized_shape)
    yield from _normalised(z, input, weight, bias, shape, lambda x: F.layer_norm(x, shape, eps=eps))


def _rms_norm(
    z: torch.Tensor, input: torch.Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Iterator[Term]:
    shape = tuple(normalized_shape)
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    yield from _normalised(z, input, weight, None, shape, lambda x: F.rms_norm(x, shape, eps=eps))


def _group_norm(
    z: torch.Tensor, input: torch.Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Iterator[Term]:
    shape = (z.shape[1], *(1 for _ in z.shape[2:]))
    yield from _normalised(z, input, weight, bias, shape, lambda x: F.group_norm(x, num_groups, eps=eps))


def _batch_norm(
    z: torch.Tensor,
    input: torch.Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Iterator[Term]:
    if training:  # statistics of the batch: not a function of one example
        return
    mean, var = (t.detach().clone() for t in (running_mean, running_var))

    def normalise(x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, mean.to(x.dtype), var.to(x.dtype), eps=eps)

    yield from _normalised(z, input, weight, bias, (z.shape[1], *(1 for _ in z.shape[2:])), normalise)


def _instance_norm(
    z: torch.Tensor,
    input: torch.Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Iterator[Term]:
    if use_input_stats:
        shape = (z.shape[1], *(1 for _ in z.shape[2:]))
        yield from _normalised(z, input, weight, bias, shape, lambda x: F.instance_norm(x, eps=eps))


def _normalised(
    z: torch.Tensor,
    input: torch.Tensor,
    weight: Any,
    bias: Any,
    shape: tuple[int, ...],
    normalise: Callable[[torch.Tensor], torch.Tensor],
) -> Iterator[Term]:
    """γ and β in z = normalise(x) ∘ γ + β."""
    rows = z.ndim - len(shape)
    yield Term(weight, rows, input, _elementwise(shape, normalise))
    yield Term(bias, rows, None, _elementwise(shape))


def _prelu(z: torch.Tensor, input: torch.Tensor, weight: torch.Tensor) -> Iterator[Term]:
    """A in z = max(x, 0) + a ∘ min(x, 0), of one value or one a channel."""
    shape = (weight.numel(), *(1 for _ in z.shape[2:])) if weight.numel() > 1 else (1,)
    yield Term(weight, z.ndim - len(_without_leading_ones(shape)), input, _elementwise(shape, _negative_part))


def _negative_part(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(max=0)


def _mul(z: torch.Tensor, input: Any, other: Any) -> Iterator[Term]:
    for p, x in ((input, other), (other, input)):
        if isinstance(x, torch.Tensor):
            yield from _broadcast(z, p, x.expand_as(z))


def _add(z: torch.Tensor, input: Any, other: Any, *, alpha: float = 1) -> Iterator[Term]:
    yield from _broadcast(z, input, None)
    if alpha == 1:
        yield from _broadcast(z, other, None)


def _add_in_place(z: torch.Tensor, input: Any, other: Any, *, alpha: float = 1) -> Iterator[Term]:
    if alpha == 1:
        yield from _broadcast(z, other, None)


def _expand(z: torch.Tensor, input: torch.Tensor, *sizes: Any) -> Iterator[Term]:
    yield from _broadcast(z, input, None)


def _broadcast(z: torch.Tensor, p: Any, x: torch.Tensor | None) -> Iterator[Term]:
    if isinstance(p, torch.Tensor):
        yield Term(p, z.ndim - len(_without_leading_ones(p.shape)), x, _elementwise(p.shape))


UNDERSTOOD: dict[Any, Callable[..., Iterator[Term]]] = {
    F.linear: _linear,
    **dict.fromkeys([torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__], _matmul),
    **dict.fromkeys([torch.addmm, torch.Tensor.addmm], _addmm),
    F.embedding: _embedding,
    **dict.fromkeys([torch.conv1d, torch.conv2d, torch.conv3d], _conv),
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.prelu: _prelu,
    **dict.fromkeys([torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__], _mul),
    **dict.fromkeys([torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__], _add),
    **dict.fromkeys([torch.Tensor.add_, torch.Tensor.__iadd__], _add_in_place),
    torch.Tensor.expand: _expand,
}
