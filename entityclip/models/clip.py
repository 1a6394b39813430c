"""open_clip, wrapped: pooled features, all projected tokens, and which tokens are real.

EntityCLIP's experts attend to every token in the joint space (section 3.1), while open_clip hands
out only the pooled feature. Rows CLS and EOT of the tokens returned here are exactly that feature.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entityclip.checkpoints import (
    INDEX,
    ONLY_SAFETENSORS,
    CheckpointError,
    read_tensors,
    refuse_misfit,
)
from entityclip.models.weights import (
    PREPROCESSING,
    as_open_clip,
    check_config,
    library,
    preprocessing_of,
)


class BackboneError(ValueError):
    """The named model or its weights can't serve as EntityCLIP's backbone."""


Lengths = Sequence[int] | None  # tokens of a batch's longest caption and explanation, if counted


class Tokens(NamedTuple):
    """One encoded side of a batch, in the joint embedding space.

    `pooled` [B, d] is open_clip's own feature (not normalised), `tokens` [B, L, d] all tokens,
    `valid` [B, L] True up to and including EOT, and `at` [B] the row of `tokens` that is `pooled`.
    """

    pooled: Tensor
    tokens: Tensor
    valid: Tensor
    at: Tensor


class Backbone(nn.Module):
    """The two towers of a plain open_clip CLIP with a ViT picture tower.

    Attributes: `clip` (the open_clip model), `preprocess` (its evaluation transform),
    `tokenize` (list of B strings to [B, context_length] int64), `width` (d).
    """

    def __init__(self, clip: nn.Module, tokenizer: Callable[[list[str]], Tensor], name: str):
        transform = library().transform
        super().__init__()
        self.clip, self.name, self.tokenize = clip, name, tokenizer
        self.preprocess = transform.image_transform_v2(
            transform.PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False
        )
        self.width: int = clip.visual.output_dim

    @property
    def device(self) -> torch.device:
        """Where the weights are, and what is encoded must be."""
        return self.clip.logit_scale.device

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What `preprocess` does beside its size, as JSON keeps it."""
        return {name: self.clip.visual.preprocess_cfg[name] for name in PREPROCESSING}

    def image_tokens(self, images: Tensor) -> Tokens:
        """Encode pictures [B, 3, H, W] to L = 1 + patches tokens; CLS is token 0."""
        tokens = self._image_states(images) @ self.clip.visual.proj
        batch, length = tokens.shape[:2]
        valid = torch.ones(batch, length, dtype=torch.bool, device=tokens.device)
        return Tokens(tokens[:, 0], tokens, valid, valid.new_zeros(batch, dtype=torch.long))

    def text_tokens(
        self,
        text: Tensor,
        *,
        trim: bool = True,
        length: int | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Tokens:
        """Encode token ids [B, context_length]; L is the longest real sequence if `trim`.

        Trimming changes no number: causal attention never lets EOT see what follows it. `length`
        is what to trim to where that is known (`longest`): a GPU need not be asked. `change`
        maps the token embeddings [B, L, width] before positions are added (AsCL's wrong texts).
        """
        states, at, valid = self._text_states(text, trim, length, change)
        tokens = states @ self.clip.text_projection
        return Tokens(tokens[torch.arange(len(text), device=text.device), at], tokens, valid, at)

    def unprojected(
        self, images: Tensor, text: Tensor, length: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pooled features before the joint space, of pictures [B, w_v] and of texts [B, w_t].

        The widths are the towers' own, 768 and 512 for ViT-B/32. ITR clusters and probes these.
        `length` is that of the longest text, where known.
        """
        return self._image_states(images)[:, 0], self.unprojected_text(text, length)

    def unprojected_text(self, text: Tensor, length: int | None = None) -> Tensor:
        """`unprojected` of texts alone, [B, w_t]."""
        states, at, _ = self._text_states(text, length=length)
        return states[torch.arange(len(text), device=text.device), at]

    @property
    def unprojected_widths(self) -> tuple[int, int]:
        """w_v and w_t of `unprojected`."""
        return self.clip.visual.proj.shape[0], self.clip.text_projection.shape[0]

    def project(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's own projections of `unprojected` features into the joint space, [B, d] each."""
        return image @ self.clip.visual.proj, text @ self.clip.text_projection

    def _image_states(self, images: Tensor) -> Tensor:
        visual = self.clip.visual
        return visual.ln_post(visual.transformer(visual._embeds(images)))

    def _text_states(
        self,
        text: Tensor,
        trim: bool = True,
        length: int | None = None,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        clip, at = self.clip, self.eot(text)
        if trim and clip.attn_mask is not None:
            text = text[:, : int(at.max()) + 1 if length is None else length]
        length = text.shape[1]
        mask = None if clip.attn_mask is None else clip.attn_mask[:length, :length]
        embedded = clip.token_embedding(text)
        embedded = embedded if change is None else change(embedded)
        x = embedded + clip.positional_embedding[:length]
        states = clip.ln_final(clip.transformer(x, attn_mask=mask))
        return states, at, torch.arange(length, device=text.device) <= at[:, None]

    def texts_tokens(
        self, first: Tensor, second: Tensor, *, trim: bool = True, lengths: Lengths = None
    ) -> list[Tokens]:
        """Encode captions and explanations, each [B, context_length], in one pass where that pays.

        One pass pads both to the longer side. Where captions are much shorter than explanations
        that costs more than it saves, and each side runs at its own length: the same numbers.
        `lengths` are the sides' longest, where known.
        """
        if lengths is None:
            lengths = [self.longest(side) for side in (first, second)]
        if trim and sum(lengths) < 0.8 * 2 * max(lengths):
            sides = zip((first, second), lengths, strict=True)
            return [self.text_tokens(side, length=n) for side, n in sides]
        joint = self.text_tokens(torch.cat([first, second]), trim=trim, length=max(lengths))
        parts = zip(*(part.split([len(first), len(second)]) for part in joint), strict=True)
        return [Tokens(*side) for side in parts]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text needs, start and end included, uncut by the context length."""
        return [len(self.tokenize.encode(text)) + 2 for text in texts]

    def too_long(self, texts: Sequence[str]) -> list[int]:
        """Rows of the texts that have more tokens than the context length, and so are cut."""
        limit = self.tokenize.context_length
        long = [row for row, text in enumerate(texts) if len(text) + 2 > limit]  # a letter a token
        lengths = self.lengths([texts[row] for row in long])
        return [row for row, length in zip(long, lengths, strict=True) if length > limit]

    def longest(self, text: Tensor) -> int:
        """Tokens of the longest real sequence in `text` [B, context_length], EOT included."""
        return int(self.eot(text).max()) + 1

    def eot(self, text: Tensor) -> Tensor:
        """Position [B] of the end-of-text token, found as open_clip finds it."""
        if self.clip.text_pool_type == "eos":
            return (text == self.clip.text_eos_id).int().argmax(dim=-1)
        return text.argmax(dim=-1)

    def encode_image(self, images: Tensor) -> Tensor:
        """Pooled picture features [B, d], as open_clip's own."""
        return self.clip.encode_image(images)

    def encode_text(self, text: Tensor) -> Tensor:
        """Pooled text features [B, d], trimmed to the longest real text of the batch."""
        return self.text_tokens(text).pooled


class DualEncoder(nn.Module):
    """A model on a backbone's two towers, as training and evaluation ask it.

    ``model(**batch.inputs())`` gives a batch's outputs, ``model.losses(outputs)`` its named scalar
    terms, of which `loss` is to be minimised.
    """

    needs_explanations = False  # whether training reads explanations
    needs_others = False  # whether training reads a second caption of each picture
    has_vtc = True  # whether `losses` has the term `vtc`, of the pooled features alone
    splits_batches = False  # whether processes may share a batch, and chunks make it up

    def __init__(self, backbone: Backbone, config: Any):
        super().__init__()
        self.backbone, self.config = backbone, config

    @property
    def device(self) -> torch.device:
        """Where the weights are, and batches must be."""
        return self.backbone.device

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised picture embeddings [B, d] for images [B, 3, H, W]."""
        return F.normalize(self.backbone.encode_image(images), dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        """Normalised text embeddings [B, d] for token ids [B, context_length]."""
        return F.normalize(self.backbone.encode_text(text), dim=-1)

    def text_lengths(
        self, captions: Tensor, explanations: Tensor | None, others: Tensor | None = None
    ) -> list[int] | None:
        """Tokens of a batch's longest texts, for models whose `forward` wants `lengths`."""
        return None

    def clip_state_dict(self) -> dict[str, Tensor]:
        """The two towers' weights, loadable into plain open_clip."""
        return self.backbone.clip.state_dict()


def create_backbone(
    name: str,
    pretrained: str | None = None,
    image_size: int | None = None,
    *,
    weights: bool = True,
) -> Backbone:
    """Build an open_clip ViT by `name`, with weights from a `pretrained` tag or .safetensors file.

    Pictures are preprocessed as these weights want it (`weights.preprocessing_of`). With `weights`
    False it has random ones in their stead, to read data by: nothing is fetched. `newsroom-tiny` is
    our own configuration for the drawn demo.

    Raises BackboneError for unknown names and tags, for weights that don't fit or would need
    unpickling, and for models whose pooled feature is not one of the tokens.
    """
    open_clip = library()
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), n=3) or ["ViT-B-32"]
        raise BackboneError(f"open_clip knows no model {name!r}; close: {', '.join(close)}")
    local = pretrained is not None and Path(pretrained).suffix != ""
    if local and Path(pretrained).suffix != ".safetensors" and Path(pretrained).name != INDEX:
        raise BackboneError(f"{pretrained}: {ONLY_SAFETENSORS}")
    if pretrained is not None and not local:
        _check_tag(name, pretrained)
    options = {} if image_size is None else {"force_image_size": image_size}
    tag = None if local or not weights else pretrained
    try:
        options["force_preprocess_cfg"] = preprocessing_of(name, pretrained)
        with _quiet():
            clip = open_clip.create_model(name, pretrained=tag, **options)
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    except (RuntimeError, OSError, ImportError) as error:
        raise BackboneError(f"can't build {name!r} with weights {pretrained!r}: {error}") from error
    refuse_other_towers(clip, name)
    backbone = Backbone(clip, _tokenizer(name), name)
    if local and weights:
        load_clip_weights(backbone, Path(pretrained))
    return backbone


def load_clip_weights(backbone: Backbone, path: Path) -> None:
    """Load a .safetensors file: plain open_clip weights, a transformers CLIPModel's, or the CLIP
    part of one of our checkpoints.

    Raises BackboneError naming `path` for unreadable files, for missing or misshapen weights and,
    where a config.json tells, for weights of another architecture.
    """
    try:
        state = read_tensors(path)
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    ours = "model.backbone.clip."
    if any(key.startswith(ours) for key in state):
        state = {k.removeprefix(ours): v for k, v in state.items() if k.startswith(ours)}
    try:
        if "text_model.final_layer_norm.weight" in state:  # a transformers CLIPModel's
            check_config(path, backbone.clip)
            state = as_open_clip(state)
        wanted = backbone.clip.state_dict()
        for key in state.keys() & wanted.keys():  # half precision will do, other types will not
            if state[key].is_floating_point():
                state[key] = state[key].to(wanted[key].dtype)
        refuse_misfit(state, wanted, path, backbone.name)
    except CheckpointError as error:
        raise BackboneError(str(error)) from error
    except ValueError as error:
        raise BackboneError(f"{path} does not fit {backbone.name}: {error}") from error
    backbone.clip.load_state_dict(state)


@cache
def _tokenizer(name: str) -> Callable[[list[str]], Tensor]:
    """One for all backbones of that name: reading its vocabulary takes longer than a tiny model."""
    return library().get_tokenizer(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip warns on the root logger of random weights; here they are meant to be random."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _check_tag(name: str, pretrained: str) -> None:
    open_clip = library()
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        raise BackboneError(
            f"{name} has no weights {pretrained!r}; open_clip has {', '.join(tags) or 'none'}, "
            "or give the path of a .safetensors file"
        )
    # open_clip only warns, and every number would be a little wrong
    built = bool(open_clip.get_model_config(name).get("quick_gelu"))
    if built != bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu")):
        other = name.removesuffix("-quickgelu") if built else f"{name}-quickgelu"
        raise BackboneError(
            f"{name} has the {'Quick' if built else 'plain '}GELU activation and weights "
            f"{pretrained!r} were trained with the other; use {other}"
        )


def refuse_other_towers(clip: nn.Module, name: str) -> None:
    """The experts need pooled features that are tokens: a ViT's CLS, a text tower's EOT."""
    open_clip = library()
    if not isinstance(clip, open_clip.model.CLIP):
        raise BackboneError(f"{name} is a {type(clip).__name__}; only plain open_clip CLIPs fit")
    visual, pooled_by = clip.visual, clip.text_pool_type
    if not isinstance(visual, open_clip.transformer.VisionTransformer):
        raise BackboneError(
            f"{name}'s picture tower is a {type(visual).__name__}; its pooled feature is no token "
            "of a joint space. Use a ViT such as ViT-B-32"
        )
    if visual.attn_pool is not None or visual.pool_type != "tok":
        pooling = "attention" if visual.attn_pool is not None else visual.pool_type
        raise BackboneError(
            f"{name} pools its picture tokens by {pooling!r}, so no token is the pooled feature; "
            "use a ViT that pools its CLS token, such as ViT-B-32"
        )
    if pooled_by not in ("argmax", "eos") or isinstance(clip.text_projection, nn.Linear):
        raise BackboneError(f"{name}'s text tower pools by {pooled_by!r}, not at EOT")
