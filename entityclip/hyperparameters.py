"""What models are and how they are trained: every hyperparameter, checked when it is made.

The defaults are the papers'; what goes beyond them says so.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
AtLeast0 = Annotated[int, Field(ge=0)]
Several = Annotated[int, Field(ge=2)]
Experts = Annotated[int, Field(ge=0, le=16)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Chance = Annotated[float, Field(ge=0, lt=1)]
Mix = Annotated[str, Field(pattern=r"^((1[0-6]|\d)-){2}(1[0-6]|\d)$")]
NegativeDraw = Literal["hard", "uniform", "floored"]
ViewsOf = Literal["names", "others", "caption", "words"]
FalseNegatives = Literal["kept", "masked", "random"]
Tower = Literal["none", "image", "text"]

STRICT = ConfigDict(extra="forbid", strict=True)

# fields that do not tell runs apart: never, or (they came later) not at their default
LEFT_OUT = {"identity": "never"}
LATER = {"identity": "unless default"}


@dataclass(frozen=True, config=STRICT)
class EntityCLIPConfig:
    """What the model is (EntityCLIP, section 3). All expert counts 0 is plain CLIP fine-tuning."""

    image_experts: Experts = 4  # n_v: attend from the picture's CLS to its own tokens
    text_experts: Experts = 4  # n_t: attend from the caption's EOT to its own tokens
    explanation_experts: Experts = 4  # n_e: attend from CLS and from EOT to the explanation
    heads: Count = 1  # attention heads of each expert; must divide the embedding width
    lambda_moe: Weight = 0.1  # weight of VTC(V*, T*_moe)
    eta_itm: Weight = 0.1  # weight of the GI-ITM loss
    reference_compat: bool = False  # choose as the authors' code does (entityclip/README.md)

    # ablations: the paper's choice is the default
    matching: Literal["gated", "mean", "none"] = "gated"  # how GI-ITM fuses a pair's vectors
    negatives: NegativeDraw = "hard"  # how GI-ITM's are drawn (models/negatives.py)
    negative_explanation: Literal["own", "positive"] = "own"  # which one a negative text brings
    shared_explanation_experts: bool = True  # False: the two sides have a set of weights each
    mask_padding: bool = True  # False: experts also attend to what follows EOT

    # beyond the paper
    bridge: Weight = 0.0  # weight of ½·VTC(I*, E*) + ½·VTC(T*, E*), the explanation as a third view
    crossed: bool = False  # V* with E against T* without, and the reverse: neither can copy E
    # weight of VTC(I*, norm(T* + E*)): what keeps the scene that the bridge alone gives up
    context: Weight = field(default=0.0, metadata=LATER)
    # share of a training step's explanations of which names alone are read (datasets/views.py), and
    # whose: a half of the explanation's, of another pair's, of the caption's; or any words, as many
    name_views: Share = field(default=0.0, metadata=LATER)
    views_of: ViewsOf = field(default="names", metadata=LATER)
    # share of a training step's captions of which one name is told by another that the explanation
    # gives the same entity (datasets/views.py), or, to refute it, by one of another pair's
    alias_swaps: Share = field(default=0.0, metadata=LATER)
    swaps_of: Literal["names", "others"] = field(default="names", metadata=LATER)
    # pairs of one article, caption or picture: left out of the contrast's denominators, or as many
    # others at random (models/losses.py)
    false_negatives: FalseNegatives = field(default="kept", metadata=LATER)
    frozen: Tower = field(default="none", metadata=LATER)  # the tower that is not trained

    def __post_init__(self) -> None:
        if self.reference_compat and self.negatives == "hard":
            object.__setattr__(self, "negatives", "floored")  # so it stands in a run's identity
        for name in ("name_views", "alias_swaps"):
            if getattr(self, name) and not self.reads_explanations:
                raise ValueError(f"{name} needs explanation_experts, a bridge or context")
        if self.crossed and not self.explanation_experts:
            raise ValueError("crossed needs explanation_experts: there is no explanation to cross")

    @property
    def experts(self) -> int:
        """How many experts there are; 0 means no MMAE and no GI-ITM."""
        return sum(self.groups)

    @property
    def reads_explanations(self) -> bool:
        """Whether training needs any."""
        return bool(self.explanation_experts or self.bridge or self.context)

    @property
    def groups(self) -> tuple[int, int, int]:
        """How many experts look at the picture, at the caption, at the explanation."""
        return self.image_experts, self.text_experts, self.explanation_experts

    @property
    def sees_padding(self) -> bool:
        """Whether experts attend to what follows EOT, as in the authors' code."""
        return self.reference_compat or not self.mask_padding


@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """How a model is trained. The defaults are the paper's for N24News (section 4.1)."""

    epochs: Count = 20
    batch_size: Several = 192  # pairs a forward pass, of all processes; losses see exactly these
    lr: Positive = 1e-5  # peak; 5e-6 for GoodNews
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: Weight = 0.0
    betas: tuple[Chance, Chance] = (0.9, 0.999)
    warmup_steps: AtLeast0 = 0  # linear, then cosine to 0 over the remaining steps
    accumulate: Count = 1  # forward passes an optimizer step; each contrasts its own batch
    clip_grad_norm: Positive | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the device supports it
    checkpoint_every: Count = 1000  # steps between checkpoints within an epoch; one ends each epoch
    workers: AtLeast0 = 0  # processes that decode pictures; 0 decodes in this one
    seed: AtLeast0 = 42
    # rows encoded at a time, to the same gradient (models/entityclip.py); None: the whole batch
    chunk: Count | None = field(default=None, metadata=LATER)
    # with several processes: whose rows GI-ITM's negatives are (models/negatives.py)
    negatives_from: Literal["global", "local"] = field(default="global", metadata=LATER)
    # lowest in validation where best: all terms, or (theirs, reference_compat's) VTC(I*, T*) alone
    best_by: Literal["loss", "vtc"] = field(default="loss", metadata=LATER)
    # what holds the learned logit scale, as CLIP does; None: nothing, as in the authors' code
    max_logit_scale: Positive | None = field(default=100.0, metadata=LATER)
    # checkpoints to go on from: the last, and those before it as step-*.safetensors
    keep: Count = field(default=1, metadata=LEFT_OUT)


@dataclass(frozen=True, config=STRICT)
class AsCLConfig:
    """What the AsCL model is (arXiv 2405.10029, section 3), and which of its parts are on."""

    heads: Count = 8  # of each way of looking; must divide the embedding width
    local_weight: Share = 0.8  # u in S = u S_local + (1 - u) S_global
    temperature: Positive | None = 0.1  # of NT-Xent; None: CLIP's learned one
    fusion: bool = True  # off: S is the cosine of CLIP's global features
    richer: bool = True  # true texts of two captions of the picture
    poorer: bool = True  # true texts of a caption's first half
    wrong: Literal["all", "none"] = "all"  # the batch's texts, embeddings made wrong, as negatives
    noise: Weight = 1.0  # deviation of wrong texts' noise, of the words' root mean square
    dropout: Chance = 0.5  # share of entries that dropout zeroes in wrong texts
    cutoff: Share = 0.2  # share of words or channels that are zeroed in wrong texts


Task = Literal["cluster_image", "cluster_generated", "contrast"]


@dataclass(frozen=True, config=STRICT)
class ITRConfig:
    """How towers are pretrained on unlabelled pairs. The defaults are the authors'."""

    # clustering of text + image embeddings, of text + generated caption, contrast of text and image
    tasks: tuple[Task, ...] = ("cluster_image", "contrast")
    iterations: Count = 20  # each clusters one subset anew, resets the heads and trains on it
    subset: int = 5000  # pairs an iteration; none comes again before all have come
    clusters: Several = 4  # k; the authors also try 2
    mini_batch_above: AtLeast0 = 20_000  # larger subsets are clustered by mini-batch k-means
    batch_size: Several = 32
    lr: Positive = 1e-5  # of the towers
    head_lr_scale: Positive = 100.0  # learning rate of the heads, times the towers'
    weight_decay: Weight = 0.01
    cluster_image_weight: Weight = 0.2
    cluster_generated_weight: Weight = 1.0
    contrast_weight: Weight = 1.0
    temperature: Positive = 1.0  # of the contrast
    workers: AtLeast0 = 0  # processes that decode pictures; 0 decodes in this one
    seed: AtLeast0 = 0

    def __post_init__(self) -> None:
        if not self.tasks or len({*self.tasks}) < len(self.tasks):
            raise ValueError(
                f"tasks is {[*self.tasks]}; name some of {', '.join(get_args(Task))}, once"
            )
        if self.subset < self.batch_size:
            raise ValueError(f"subset is {self.subset}, less than a batch of {self.batch_size}")
        if self.clustering and self.clusters > self.subset:
            raise ValueError(f"{self.clusters} clusters of a subset of {self.subset} pairs")

    @property
    def clustering(self) -> tuple[Task, ...]:
        """The clustering tasks among `tasks`."""
        return tuple(task for task in self.tasks if task != "contrast")

    @property
    def needs_generated(self) -> bool:
        """Whether pretraining reads generated captions."""
        return "cluster_generated" in self.tasks

    def weight(self, task: Task) -> float:
        """The weight of a task's loss."""
        return getattr(self, f"{task}_weight")


@dataclass(frozen=True, config=STRICT)
class ClassifierConfig:
    """How towers are fine-tuned to tell relations."""

    epochs: Count = 3
    batch_size: Count = 32
    lr: Positive = 1e-5
    head_lr_scale: Positive = 100.0
    weight_decay: Weight = 0.01
