"""Explanations: a caption's entities in an LLM's words, for 60 captions or 1,000,000.

    pairs = load_pairs("newsroom", "train")
    rows = explain(pairs, KnowledgeBase(), "runs/explanations.jsonl")    # or OpenAIChat(model, url)
    pairs, report = apply_policy(pairs, rows, "caption")

`explain` asks only for what the cache lacks, each distinct caption once, so an interrupted
extraction goes on when called again. Files: `llm` what is asked
and the protocol of all back-ends, `knowledge`, `openai_chat` and `local` the back-ends, `cache` the
rows, `checks` what is marked, `extraction` the asking, `joining` which explanations training reads
and what it makes of the marks.
"""

from entityclip import loaded_on_use

_HOME = {
    "CHECKS": "checks",
    "DEFAULT_PROMPT": "llm",
    "LLM": "llm",
    "PROMPTS": "llm",
    "CacheError": "cache",
    "Completion": "llm",
    "Explanation": "cache",
    "ExplanationCache": "cache",
    "KnowledgeBase": "knowledge",
    "LLMError": "llm",
    "OpenAIChat": "openai_chat",
    "PolicyReport": "joining",
    "Prompt": "llm",
    "Sampling": "llm",
    "Source": "cache",
    "StubLLM": "llm",
    "LocalLLM": "local",
    "apply_policy": "joining",
    "cache_keys": "cache",
    "check_counts": "checks",
    "check_pairs": "joining",
    "cost_table": "extraction",
    "explain": "extraction",
    "export_authors": "joining",
    "export_parquet": "joining",
    "failed_checks": "checks",
    "import_authors": "joining",
    "merge_caches": "cache",
    "neutralise": "llm",
    "refuse_keys": "openai_chat",
    "shard": "extraction",
    "to_frame": "joining",
    "training_pairs": "joining",
}
__all__ = sorted(_HOME)
__getattr__, __dir__ = loaded_on_use(__name__, _HOME)
