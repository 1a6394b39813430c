"""Grad-CAM of the vision tower: which part of a picture brings it nearer to a text.

Selvaraju et al. (ICCV 2017), by the package grad-cam, over the patches that the last block reads.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from entityclip.backbone import Backbone


class _Pictures(nn.Module):
    """The vision tower alone, to normalised embeddings."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.backbone.encode_image(images), dim=-1)


def grad_cams(backbone: Backbone, images: Tensor, texts: Tensor) -> NDArray[np.float32]:
    """Maps [N, H, W] from 0 to 1 of what raises each picture's cosine similarity to its text.

    `images` [N, 3, H, W] are preprocessed, `texts` [N, L] token ids. Each map is scaled by its own
    extremes: maps show where, not how much. One is all 0 where no patch helps. Raises ImportError
    where grad-cam is missing.
    """
    try:
        from pytorch_grad_cam import GradCAM
    except ImportError as error:
        raise ImportError("Grad-CAM needs grad-cam; pip install 'entityclip[notebooks]'") from error
    was_training = backbone.training
    backbone.eval()
    with torch.no_grad():
        targets = F.normalize(backbone.encode_text(texts), dim=-1)
    layer = backbone.clip.visual.transformer.resblocks[-1].ln_1
    try:
        # enable_grad: GradCAM differentiates whatever mode the caller is in
        with (
            torch.enable_grad(),
            GradCAM(_Pictures(backbone), [layer], reshape_transform=_as_grid(backbone)) as cam,
        ):
            return cam(images, [_Similarity(target) for target in targets])
    finally:
        backbone.zero_grad(set_to_none=True)
        backbone.train(was_training)


class _Similarity:
    """Grad-CAM's target: the cosine of a picture's embedding [d] with a text's."""

    def __init__(self, text: Tensor):
        self.text = text

    def __call__(self, image: Tensor) -> Tensor:
        return image @ self.text


def _as_grid(backbone: Backbone):
    """The patch tokens of [N, 1 + P, C] as pictures [N, C, rows, columns]; CLS has no place."""
    visual = backbone.clip.visual
    rows, columns = visual.grid_size

    def reshape(tokens: Tensor) -> Tensor:
        if not visual.transformer.batch_first:
            tokens = tokens.transpose(0, 1)
        return tokens[:, 1:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)

    return reshape
