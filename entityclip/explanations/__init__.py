"""Explanations: a caption's entities in an LLM's words, for 60 captions or 1,000,000.

    pairs = load_pairs("newsroom", "train")
    rows = explain(pairs, KnowledgeBase(), "runs/explanations.jsonl")    # or OpenAIChat(model, url)
    pairs, report = apply_policy(pairs, rows, "caption")

`explain` asks only for what the cache lacks, each distinct caption once, so an interrupted
extraction goes on when called again. Files: `prompts` what is asked, `llm` the protocol of all
back-ends, `knowledge`, `openai_chat` and `local` the back-ends, `cache` the rows, `checks` what is
marked, `policy` what training makes of the marks, `authors` other projects' files, `scaling` what
100,000 captions cost.
"""

from entityclip.explanations.cache import (
    CacheError,
    Explanation,
    ExplanationCache,
    Source,
    merge_caches,
)
from entityclip.explanations.checks import CHECKS, check_counts, failed_checks
from entityclip.explanations.explain import explain, shard
from entityclip.explanations.knowledge import KnowledgeBase
from entityclip.explanations.llm import LLM, Completion, LLMError, Sampling, StubLLM
from entityclip.explanations.openai_chat import OpenAIChat, refuse_keys
from entityclip.explanations.policy import PolicyReport, apply_policy, check_pairs
from entityclip.explanations.prompts import DEFAULT_PROMPT, PROMPTS, Prompt, neutralise

__all__ = [
    "CHECKS",
    "DEFAULT_PROMPT",
    "LLM",
    "PROMPTS",
    "CacheError",
    "Completion",
    "Explanation",
    "ExplanationCache",
    "KnowledgeBase",
    "LLMError",
    "OpenAIChat",
    "PolicyReport",
    "Prompt",
    "Sampling",
    "Source",
    "StubLLM",
    "apply_policy",
    "check_counts",
    "check_pairs",
    "explain",
    "failed_checks",
    "merge_caches",
    "neutralise",
    "refuse_keys",
    "shard",
]
