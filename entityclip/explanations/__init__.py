"""Explanations: a caption's entities in an LLM's words, for 60 captions or 1,000,000.

    pairs = load_pairs("newsroom", "train")
    rows = explain(pairs, KnowledgeBase(), "runs/explanations.jsonl")    # or OpenAIChat(model, url)
    pairs, report = apply_policy(pairs, rows, "caption")

`explain` asks only for what the cache lacks, each distinct caption once, so an interrupted
extraction goes on when called again. Files: `prompts` what is asked, `llm` the protocol of all
back-ends, `knowledge`, `openai_chat` and `local` the back-ends, `cache` the rows, `checks` what is
marked, `policy` what training makes of the marks, `joining` which explanations it reads, `authors`
other projects' files, `keys` what keeps keys out of notebooks, `scaling` what
100,000 captions cost.
"""

from entityclip.lean_imports import loaded_on_use

_HOME = {
    "CHECKS": "checks",
    "DEFAULT_PROMPT": "prompts",
    "LLM": "llm",
    "PROMPTS": "prompts",
    "CacheError": "cache",
    "Completion": "llm",
    "Explanation": "cache",
    "ExplanationCache": "cache",
    "KnowledgeBase": "knowledge",
    "LLMError": "llm",
    "OpenAIChat": "openai_chat",
    "PolicyReport": "policy",
    "Prompt": "prompts",
    "Sampling": "llm",
    "Source": "cache",
    "StubLLM": "llm",
    "LocalLLM": "local",
    "apply_policy": "policy",
    "check_counts": "checks",
    "check_pairs": "policy",
    "cost_table": "scaling",
    "explain": "extraction",
    "export_authors": "authors",
    "export_parquet": "authors",
    "failed_checks": "checks",
    "import_authors": "authors",
    "merge_caches": "cache",
    "neutralise": "prompts",
    "refuse_keys": "keys",
    "shard": "extraction",
    "to_frame": "authors",
    "training_pairs": "joining",
}
__all__ = sorted(_HOME)
__getattr__, __dir__ = loaded_on_use(__name__, _HOME)
