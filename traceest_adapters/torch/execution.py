"""Running a model in forms that can be mapped over examples and differentiated twice."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from threading import Lock, get_ident
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.utils.checkpoint
from torch.nn.attention import SDPBackend, sdpa_kernel

from traceest._boundary import made_of


class Autocast(NamedTuple):
    """Whether, and to what, PyTorch casts the arguments of a model's functions."""

    device: str
    dtype: torch.dtype | None

    @classmethod
    def current(cls, device: str) -> Autocast:
        """As it is now, which products that are taken later do not know."""
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        return cls(device, torch.get_autocast_dtype(device) if on else None)

    def __call__(self) -> AbstractContextManager[Any]:
        """The same again; casts are not kept, since one made without a graph would be found where one is needed."""
        if not torch.amp.is_autocast_available(self.device):
            return nullcontext()
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False)


Product = TypeVar("Product", bound=Callable[..., Any])


def in_full(product: Product) -> Product:
    """A method of an operator that casts nothing and may keep graphs, wherever it is called."""

    @wraps(product)
    def uncast(J: Any, *args: Any) -> Any:
        made_of(J.source)
        with Autocast(J.device.type, None)(), graphs_allowed():
            return product(J, *args)

    return cast(Product, uncast)


def graphs_allowed() -> AbstractContextManager[Any]:
    """Outside of `torch.inference_mode`."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


class Off:
    """A switch of PyTorch's, one for all threads, that is off while any of them wants it so, and then as it was."""

    def __init__(self, get: Callable[[], bool], set_to: Callable[[bool], Any]) -> None:
        self._get, self._set_to = get, set_to
        self._wanted, self._before, self._turn = 0, True, Lock()

    def begin(self) -> None:
        """One more wants it off."""
        with self._turn:
            if not self._wanted:
                self._before = self._get()
                self._set_to(False)
            self._wanted += 1

    def end(self) -> None:
        """One less."""
        with self._turn:
            self._wanted -= 1
            if not self._wanted:
                self._set_to(self._before)


FAST_ATTENTION = Off(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled)
FUSED = (
    Off(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    Off(torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
)
"""Libraries whose cells have no second derivative. `set_flags` of either would set a precision beside."""


def _checkpoint_kept(on: bool) -> None:
    kept = torch.utils.checkpoint.CheckpointFunction
    if on:
        del kept.apply
    else:
        kept.apply = staticmethod(lambda run, preserve_rng_state, *args: run(*args))


CHECKPOINTS = Off(lambda: True, _checkpoint_kept)
"""Reentrant checkpoints, which run the model again in a backward pass to all leaves, and refuse any other."""


@contextmanager
def checkpoints_off() -> Iterator[None]:
    """What a reentrant checkpoint would make again is kept instead."""
    CHECKPOINTS.begin()
    try:
        yield
    finally:
        CHECKPOINTS.end()


@contextmanager
def plainly(module: torch.nn.Module | None) -> Iterator[None]:
    """Run what can be so uncompiled, unfused and unpadded.

    Compiled code has no second derivative. `nn.TransformerEncoder` has a fast path that it takes only where nothing is
    differentiated, and which answers zero for padded positions: the state would not be the one that has the gradient.
    """
    FAST_ATTENTION.begin()
    try:
        with uncompiled(), checkpoints_off(), plain_recurrence(module):
            yield
    finally:
        FAST_ATTENTION.end()


def uncompiled() -> AbstractContextManager[Any]:
    """What `torch.compile` has compiled runs as it was written."""
    used = "torch._dynamo" in sys.modules  # which takes seconds to import, and without which nothing is compiled
    return torch.compiler.set_stance("force_eager") if used else nullcontext()


def math_attention() -> Any:
    """Attention in its plain form, which can be differentiated twice and mapped over."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def plain_recurrence(module: torch.nn.Module | None) -> Iterator[None]:
    """Run recurrent layers in a form that can be mapped over examples and differentiated twice.

    Left to themselves they create a zero initial state that `vmap` takes for shared by all examples, and fail to
    write the examples' states into it; zeros made *like the input* are mapped as the input is. And the fused
    libraries' cells (oneDNN's LSTM, cuDNN's) have no batched or second derivative, PyTorch's own have.
    """
    here = get_ident()

    def before(layer: Any, args: Any, kwargs: Any = None) -> Any:
        if not isinstance(layer, torch.nn.RNNBase) or get_ident() != here:
            return None
        for switch in FUSED:
            switch.begin()
        if len(args) != 1 or "hx" in (kwargs or {}) or not isinstance(args[0], torch.Tensor):
            return None  # a state was given, or a packed sequence, which brings its own batch sizes
        new = (args[0], initial_state(layer, args[0]))
        return new if kwargs is None else (new, kwargs)

    def after(layer: Any, *_: Any) -> None:
        if isinstance(layer, torch.nn.RNNBase) and get_ident() == here:
            for switch in FUSED:
                switch.end()

    if module is None:  # a function may call any layer
        every = torch.nn.modules.module
        handles = [
            every.register_module_forward_pre_hook(before),
            every.register_module_forward_hook(after, always_call=True),
        ]
    else:
        layers = [m for m in module.modules() if isinstance(m, torch.nn.RNNBase)]
        handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
        handles += [layer.register_forward_hook(after, always_call=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def initial_state(layer: torch.nn.RNNBase, x: torch.Tensor) -> Any:
    """The zero state that `layer` would start from on the input `x`, made like `x`."""
    depth = layer.num_layers * (2 if layer.bidirectional else 1)
    time = 1 if x.ndim == 3 and layer.batch_first else 0
    first = x.select(time, 0)[..., :1]  # (batch, 1), or (1,) of an input without batch

    def zeros(width: int) -> torch.Tensor:
        return torch.zeros_like(first).expand(depth, *first.shape[:-1], width)

    h = zeros(layer.proj_size or layer.hidden_size)
    return (h, zeros(layer.hidden_size)) if isinstance(layer, torch.nn.LSTM) else h
