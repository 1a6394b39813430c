"""AsCL's generated texts, one set for each asymmetry between picture and caption (section 3.1).

Text that says more than another caption of the picture (`richer_text`), less (`poorer_text`), or
something wrong (`wrong_embeddings`). The first two are token ids and stay true of the picture. The
wrong texts are made among the token embeddings, before positions are added and the tower runs, so
that a changed order is a changed text; start, end and padding keep their embeddings.

Token ids are [B, L] with the start token first; `at` [B] is the place of the end token.
"""

from __future__ import annotations

import torch
from torch import Tensor

WRONG_KINDS = ("noise", "dropout", "shuffle", "token", "channel")


def word_mask(at: Tensor, length: int) -> Tensor:
    """Which of `length` tokens are words [B, length]: all between start and end.

    A text without words keeps its end token as the only one, so that nothing is empty.
    """
    position = torch.arange(length, device=at.device)
    return ((position >= 1) & (position < at[:, None])) | (position == at[:, None]) & (
        at[:, None] <= 1
    )


def poorer_text(text: Tensor, at: Tensor) -> Tensor:
    """The first half of each text's words, rounded up (asymmetry: text says less)."""
    end = 1 + torch.div(at, 2, rounding_mode="floor")  # at - 1 words, of which at // 2 stay
    return _closed(text, torch.minimum(end, at), _end_token(text, at))


def richer_text(first: Tensor, first_at: Tensor, second: Tensor, second_at: Tensor) -> Tensor:
    """The words of `first`, then those of `second`, cut at L tokens (asymmetry: text says more)."""
    length = first.shape[1]
    position = torch.arange(length, device=first.device)
    source = (position - first_at[:, None] + 1).clamp(0, length - 1)
    joined = torch.where(position < first_at[:, None], first, second.gather(1, source))
    end = (first_at + second_at - 1).clamp(max=length - 1)
    return _closed(joined, end, _end_token(first, first_at))


def wrong_embeddings(
    embeddings: Tensor,
    words: Tensor,
    *,
    noise: float = 1.0,
    dropout: float = 0.5,
    cutoff: float = 0.2,
    kinds: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Each text of `embeddings` [B, L, w] made wrong in one way, drawn at random.

    `words` [B, L] marks what may change. `kinds` [B] (numbers of WRONG_KINDS) is drawn unless
    given. `noise`, `dropout` and `cutoff` are those of the functions below.
    """
    if kinds is None:
        size = (len(embeddings),)
        kinds = torch.randint(len(WRONG_KINDS), size, generator=generator, device=embeddings.device)
    changed = torch.stack(
        [
            add_noise(embeddings, words, noise, generator),
            drop_entries(embeddings, words, dropout, generator),
            shuffle_words(embeddings, words, generator),
            zero_words(embeddings, words, cutoff, generator),
            zero_channels(embeddings, words, cutoff, generator),
        ]
    )
    return changed[kinds, torch.arange(len(embeddings), device=embeddings.device)]


def add_noise(
    x: Tensor, words: Tensor, scale: float, generator: torch.Generator | None = None
) -> Tensor:
    """Gaussian noise on every word, its deviation `scale` times the words' root mean square."""
    rms = x.detach()[words].square().mean().sqrt()
    drawn = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return torch.where(words[..., None], x + scale * rms * drawn, x)


def drop_entries(
    x: Tensor, words: Tensor, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """Dropout: each entry of a word is zeroed with probability `share`, the rest scaled up."""
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= share
    return torch.where(words[..., None], x * kept / (1 - share), x)


def shuffle_words(x: Tensor, words: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The words in another order: at random, then moved on by one if nothing has moved."""
    key = torch.rand(words.shape, generator=generator, device=x.device)
    position = torch.arange(words.shape[1], device=x.device).expand_as(words)
    places = torch.where(words, position, words.shape[1]).argsort(dim=1, stable=True)
    drawn = torch.where(words, key, torch.inf).argsort(dim=1, stable=True)
    count = words.sum(dim=1, keepdim=True)
    unmoved = (drawn == places).logical_or(position >= count).all(dim=1, keepdim=True)
    along = (position + unmoved.long()) % count.clamp_min(1)
    drawn = torch.where(position < count, drawn.gather(1, along), places)
    source = torch.empty_like(places).scatter_(1, places, drawn)
    return x.gather(1, source[..., None].expand_as(x))


def zero_words(
    x: Tensor, words: Tensor, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """`share` of each text's words zeroed, at least one."""
    key = torch.rand(words.shape, generator=generator, device=x.device)
    rank = torch.where(words, key, torch.inf).argsort(dim=1).argsort(dim=1)
    count = (share * words.sum(dim=1, keepdim=True)).round().clamp_min(1)
    return x.masked_fill(((rank < count) & words)[..., None], 0.0)


def zero_channels(
    x: Tensor, words: Tensor, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """`share` of the channels zeroed in every word of a text, at least one."""
    batch, width = len(x), x.shape[-1]
    key = torch.rand((batch, width), generator=generator, device=x.device)
    rank = key.argsort(dim=1).argsort(dim=1)
    off = rank < max(1, round(share * width))
    return x.masked_fill(words[..., None] & off[:, None], 0.0)


def _end_token(text: Tensor, at: Tensor) -> Tensor:
    return text.gather(1, at[:, None])


def _closed(text: Tensor, end: Tensor, end_token: Tensor) -> Tensor:
    """`text` ended at place `end` [B], zeros after it."""
    position = torch.arange(text.shape[1], device=text.device)
    text = torch.where(position == end[:, None], end_token, text)
    return text.masked_fill(position > end[:, None], 0)
