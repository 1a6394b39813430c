"""Every knob of AsCL and its chapter. Read with a profile, so without torch."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from entityclip.train_config import TrainConfig


@dataclass(frozen=True)
class AsCLConfig:
    """What the AsCL model is (arXiv 2405.10029, section 3), and which of its parts are on."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    heads: int = 8  # of each way of looking; must divide the embedding width
    local_weight: float = 0.8  # u in S = u S_local + (1 - u) S_global
    temperature: float | None = 0.1  # of NT-Xent; None: CLIP's learned one
    fusion: bool = True  # off: S is the cosine of CLIP's global features
    richer: bool = True  # true texts of two captions of the picture
    poorer: bool = True  # true texts of a caption's first half
    wrong: bool = True  # texts made wrong among their embeddings, as negatives
    noise: float = 1.0  # deviation of wrong texts' noise, of the words' root mean square
    dropout: float = 0.5  # share of entries that dropout zeroes in wrong texts
    cutoff: float = 0.2  # share of words or channels that are zeroed in wrong texts

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}; it must be at least 1")
        for name in ("local_weight", "cutoff"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be from 0 to below 1")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be finite and positive")
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise is {self.noise}; it must be finite and >= 0")


class AsCLSettings(BaseModel):
    """AsCL's chapter: data of several captions a picture, and the runs compared on them."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    dataset: str = Field(default="newsroom", min_length=1)
    data_root: str | None = None
    train_split: str = "captions_train"
    val_split: str = "captions_val"
    test_split: str = "captions_test"
    train_pairs: int | None = Field(default=None, gt=1)  # None: the whole split
    val_pairs: int | None = Field(default=None, gt=1)
    test_pairs: int | None = Field(default=None, gt=1)
    seeds: int = Field(default=3, gt=0)  # fine-tunings of each variant; all share one start
    rerank_text: int = Field(default=15, gt=0)  # captions a picture that re-ranking reorders
    rerank_image: int = Field(default=20, gt=0)  # pictures a caption that it reorders
    model: AsCLConfig = AsCLConfig()
    finetuning: TrainConfig = TrainConfig()
