"""Per-example gradients of a table that is looked up: only the rows that an example reads differ from zero."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Lookup(NamedTuple):
    """g = Σ_t e_{w_t} r_tᵀ, of a table with `size` rows."""

    words: torch.Tensor  # (B, T)
    right: torch.Tensor  # (c, B, T, d)
    size: int

    def total(self) -> torch.Tensor:
        """Σ_b g_b of the first probe, (size, d)."""
        r = self.right[0].flatten(0, 1)
        return r.new_zeros(self.size, r.shape[1]).index_add_(0, self.words.flatten(), r)


class _Rows(NamedTuple):
    """The N rows that differ from zero, of all examples' gradients, ordered by word."""

    g: torch.Tensor  # (c, N, d)
    word: torch.Tensor  # (N,)
    owner: torch.Tensor  # (N,)

    @classmethod
    def of(cls, f: Lookup) -> _Rows:
        B = len(f.words)
        keys = f.words * B + torch.arange(B, device=f.words.device)[:, None]
        found, which = torch.unique(keys, return_inverse=True)
        c, _, _, d = f.right.shape
        g = f.right.new_zeros(c, len(found), d).index_add_(1, which.flatten(), f.right.flatten(1, 2))
        return cls(g, found // B, found % B)


def lookup_sqnorms(f: Lookup) -> torch.Tensor:
    """‖g_{b,i}‖²: (B, c)."""
    g, _, owner = _Rows.of(f)
    return g.new_zeros(len(f.words), len(g)).index_add_(0, owner, g.square().sum(-1).T)


def lookup_gram(P: Lookup, Q: Lookup, most: int) -> torch.Tensor:
    """⟨g_{b,i}, g_{c,j}⟩: (B, c_I, B, c_J), in steps of about `most` numbers.

    Row against row of the same word. Words that as many examples share, up to a factor of two, are taken together.
    """
    B, (g, word, owner) = len(P.words), _Rows.of(P)
    h = g if P is Q else _Rows.of(Q).g
    c, d, width = len(g), len(h), g.shape[2]
    out = g.new_zeros(B * B, c, d)
    counts = torch.unique_consecutive(word, return_counts=True)[1]
    starts = counts.cumsum(0) - counts
    shared = 1
    while shared < 2 * B:
        these = (counts <= shared) & (2 * counts > shared)
        step = max(1, most // (shared * (c + d) * width + shared**2 * c * d))
        for start, count in zip(starts[these].split(step), counts[these].split(step), strict=True):
            along = torch.arange(shared, device=word.device)
            rows = (start[:, None] + along).clamp(max=len(word) - 1)  # (words, shared)
            real = (along < count[:, None])[None, :, :, None]
            x, y = ((z[:, rows] * real).permute(1, 2, 0, 3).flatten(1, 2) for z in (g, h))
            products = (x @ y.mT).reshape(-1, shared, c, shared, d).transpose(2, 3)
            pairs = owner[rows][:, :, None] * B + owner[rows][:, None, :]
            out.index_add_(0, pairs.flatten(), products.reshape(-1, c, d))
        shared *= 2
    return out.reshape(B, B, c, d).transpose(1, 2)


def lookup_cross_gram(P: Lookup, Q: Lookup, most: int) -> torch.Tensor:
    """⟨g_{b,i}, g_{c,j}⟩ of two batches, (B, c_I, C, c_J): rows of the words that both read, some words at a time."""
    read = torch.unique(P.words)
    both = read[torch.isin(read, Q.words.flatten())]
    (c, B, _, width), (d, C) = P.right.shape, Q.right.shape[:2]
    out = P.right.new_zeros(B * c, C * d)
    if not len(both):  # no word is read in both: of nothing there is one empty part
        return out.reshape(B, c, C, d)
    for words in both.split(max(1, most // ((B * c + C * d) * width))):
        g, h = (_rows_of(words, f).transpose(0, 1).flatten(2).flatten(0, 1) for f in (P, Q))
        out += g @ h.T
    return out.reshape(B, c, C, d)


def _rows_of(words: torch.Tensor, f: Lookup) -> torch.Tensor:
    """The rows of every example's gradient at these words, which are in order: (c, B, words, d)."""
    B, W = len(f.words), len(words)
    at = torch.searchsorted(words, f.words.contiguous()).clamp(max=W - 1)
    c, _, _, d = f.right.shape
    found = (words[at] == f.words).flatten()
    to = (torch.arange(B, device=words.device)[:, None] * W + at).flatten()[found]
    rows = f.right.new_zeros(c, B * W, d).index_add_(1, to, f.right.flatten(1, 2)[:, found])
    return rows.unflatten(1, (B, W))
