"""Explanations: a caption's entities in an LLM's words, for 60 captions or 1,000,000.

    pairs = load_pairs("newsroom", "train")
    rows = explain(pairs, KnowledgeBase(), "runs/explanations.jsonl")    # or OpenAIChat(model, url)
    pairs, report = apply_policy(pairs, rows, "caption")

`explain` asks only for what the cache lacks, each distinct caption once, so an interrupted
extraction goes on when called again. Files: `llm` what is asked and the protocol of all back-ends,
`openai_chat` and `local` the back-ends, `cache` the rows, `checks` what is marked, `extraction` the
asking, `joining` which explanations training reads and what it makes of the marks.
"""

from entityclip import loaded_on_use

_NAMES = {
    "cache": "CacheError Explanation ExplanationCache Source cache_keys merge_caches",
    "checks": "CHECKS check_counts failed_checks",
    "extraction": "cost_table explain shard",
    "joining": "PolicyReport apply_policy check_pairs export_authors export_parquet import_authors "
    "to_frame training_pairs",
    "llm": "DEFAULT_PROMPT LLM PROMPTS Completion KnowledgeBase LLMError Prompt Sampling StubLLM "
    "neutralise",
    "local": "LocalLLM",
    "openai_chat": "OpenAIChat refuse_keys served_model",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOME)
__getattr__, __dir__ = loaded_on_use(__name__, _HOME)
