"""Fine-tuning the towers to tell how text and image relate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from entityclip.backbone import Backbone
from entityclip.baselines.itr.config import ClassifierConfig
from entityclip.baselines.itr.scores import CLASSES, Classes
from entityclip.datasets.pair import Batch, PairDataset
from entityclip.progress import progress_bar
from entityclip.repeatable import repeatable


class RelationClassifier(nn.Module):
    """The towers and a linear head a label, over [text; image; text · image element by element].

    The product lets a head see whether text and image agree, which their concatenation hides.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(
            {name: nn.Linear(3 * backbone.width, n) for name, n in CLASSES.items()}
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Logits [B, classes] of each label."""
        text = F.normalize(self.backbone.encode_text(batch.captions), dim=-1)
        image = F.normalize(self.backbone.encode_image(batch.images), dim=-1)
        scale = self.backbone.width**0.5  # entries of about 1, whatever the towers' norm
        seen = torch.cat([text, image, text * image * scale], dim=-1) * scale
        return {name: head(seen) for name, head in self.heads.items()}


def finetune_classifier(
    backbone: Backbone,
    dataset: PairDataset,
    labels: Classes,
    config: ClassifierConfig,
    *,
    seed: int,
    progress: bool = True,
) -> RelationClassifier:
    """Train towers (in place) and heads on labelled pairs; cross-entropy of the three labels."""
    device = backbone.device
    torch.manual_seed(seed)
    model = RelationClassifier(backbone).to(device).train()
    rates = {"backbone": config.lr, "heads": config.lr * config.head_lr_scale}
    optimizer = torch.optim.AdamW(
        [{"params": getattr(model, part).parameters(), "lr": lr} for part, lr in rates.items()],
        weight_decay=config.weight_decay,
    )
    targets = {name: torch.from_numpy(found) for name, found in labels.items()}
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(dataset), generator=generator) for _ in range(config.epochs)]
    batches = [rows for order in orders for rows in order.split(config.batch_size)]
    loader = DataLoader(
        dataset, batch_sampler=[rows.tolist() for rows in batches], collate_fn=dataset.collate
    )
    with repeatable(device):
        bar = progress_bar(loader, desc="fine-tune", show=progress, leave=False)
        for rows, batch in zip(batches, bar, strict=True):
            logits = model(batch.to(device))
            loss = sum(F.cross_entropy(logits[n], t[rows].to(device)) for n, t in targets.items())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


@torch.inference_mode()
def classify(model: RelationClassifier, dataset: PairDataset, *, batch_size: int = 256) -> Classes:
    """The classes [N] that a fine-tuned classifier gives the pairs, label by label."""
    device = model.backbone.device
    found: dict[str, list[Tensor]] = {name: [] for name in CLASSES}
    for batch in DataLoader(dataset, batch_size, collate_fn=dataset.collate):
        for name, logits in model(batch.to(device)).items():
            found[name].append(logits.argmax(-1).cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}
