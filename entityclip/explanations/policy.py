"""What training does with an explanation that failed a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from entityclip.datasets.record import Pair
from entityclip.explanations.cache import Explanation
from entityclip.explanations.checks import failed_checks
from entityclip.explanations.prompts import DEFAULT_PROMPT

Policy = Literal["use", "drop", "caption"]


@dataclass(frozen=True)
class PolicyReport:
    """What a policy did to a split."""

    policy: Policy
    pairs: int  # before
    kept: int  # with their explanation, whether it passed or not
    dropped: int  # pairs left out
    captions: int  # pairs whose caption stands in for their explanation
    checks: dict[str, int] = field(default_factory=dict)  # failures by name; a row may have several

    @property
    def failed(self) -> bool:
        """Whether any pair's explanation failed a check or is missing."""
        return bool(self.checks)

    def __str__(self) -> str:
        failed = ", ".join(f"{name} {n}" for name, n in self.checks.items()) or "none"
        return (
            f"policy {self.policy!r} on {self.pairs} pairs: {self.kept} keep their explanation, "
            f"{self.captions} take their caption, {self.dropped} dropped; failed checks: {failed}"
        )


def apply_policy(
    pairs: Sequence[Pair], explanations: Sequence[Explanation], policy: Policy = "use"
) -> tuple[list[Pair], PolicyReport]:
    """The pairs with their explanations, and what was done about those that failed a check.

    "use" trains on failed texts too, as the paper's authors do with their files; only an empty one
    is replaced by the caption. "drop" leaves their pairs out, so that training sees fewer pairs,
    and other ones for each model's texts: compare variants under one and the same file. "caption"
    keeps every pair, and the caption stands in, which gives the experts nothing new to attend to.

    Raises ValueError for an unknown policy and for explanations that are not these pairs'.
    """
    _known(policy)
    if [pair.id for pair in pairs] != [row.id for row in explanations]:
        raise ValueError("pairs and explanations must have the same ids in the same order")
    return _apply(pairs, [(row.text, row.checks) for row in explanations], policy)


def check_pairs(pairs: Sequence[Pair], policy: Policy = "use") -> tuple[list[Pair], PolicyReport]:
    """`apply_policy` for pairs that bring their explanations, e.g. from the authors' files.

    The checks run here; how the model stopped is not known, so "cut" goes by the text's end. Under
    "use" a pair without an explanation keeps none: training then asks for it by name.
    """
    _known(policy)
    texts = [pair.explanation or "" for pair in pairs]
    judged = [
        (text, failed_checks(text, pair.caption, DEFAULT_PROMPT, "unknown"))
        for text, pair in zip(texts, pairs, strict=True)
    ]
    if policy == "use":
        counts = Counter(name for _, checks in judged for name in checks)
        return list(pairs), PolicyReport(policy, len(pairs), len(pairs), 0, 0, dict(counts))
    return _apply(pairs, judged, policy)


def _apply(
    pairs: Sequence[Pair], judged: Sequence[tuple[str, tuple[str, ...]]], policy: Policy
) -> tuple[list[Pair], PolicyReport]:
    result, captions = [], 0
    for pair, (text, checks) in zip(pairs, judged, strict=True):
        if checks and policy == "drop":
            continue
        fallback = bool(checks) and (policy == "caption" or not text)
        captions += fallback
        result.append(replace(pair, explanation=pair.caption if fallback else text))
    dropped = len(pairs) - len(result)
    counts = Counter(name for _, checks in judged for name in checks)
    kept = len(result) - captions
    return result, PolicyReport(policy, len(pairs), kept, dropped, captions, dict(counts))


def _known(policy: str) -> None:
    if policy not in get_args(Policy):
        raise ValueError(f"explanation policy {policy!r}; there are {', '.join(get_args(Policy))}")
