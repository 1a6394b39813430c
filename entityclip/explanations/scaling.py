"""What an extraction takes on real servers: time and money from throughput and price.

The recipe for vLLM, one replica a GPU (or ``--tensor-parallel-size`` of them)::

    vllm serve MODEL --port 8000 --max-model-len 1024 --generation-config vllm    # and 8001, …

    llm = OpenAIChat("MODEL", ["http://gpu0:8000/v1", "http://gpu1:8001/v1"], concurrency=512)
    rows = explain(pairs, llm, "explanations.jsonl")

One client process is a few hundred captions a second (``python -m benchmarks.explanations``). For
more, run N, each with its own part and cache, then join the caches; the same call on the whole then
finds nothing missing and returns all in order::

    explain(shard(pairs, worker, N), llm, f"part{worker}.jsonl")                  # worker = 0 … N-1
    merge_caches([f"part{worker}.jsonl" for worker in range(N)], "explanations.jsonl")
    rows = explain(pairs, llm, "explanations.jsonl")
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

PER = 100_000  # captions


def cost_table(
    replicas: Iterable[int],
    *,
    tokens_per_s: float,
    price_per_hour: float,
    tokens_per_caption: float = 90,
    retried: float = 0.0,
) -> pd.DataFrame:
    """Captions a second, hours and price per 100,000 distinct captions, one row a replica count.

    ::

        captions/s = replicas · tokens_per_s / (tokens_per_caption · (1 + retried))
        hours      = 100,000 / captions/s / 3600
        price      = hours · replicas · price_per_hour

    So replicas shorten the wait and leave the price as it is.

    Args:
        replicas: how many servers.
        tokens_per_s: generated tokens a second of one replica at full load: measure yours, e.g.
            with ``vllm bench serve``, since it depends on GPU, model, precision and concurrency.
        price_per_hour: of one replica, in any currency; the table is in the same.
        tokens_per_caption: of an answer, on average; two to three sentences are 60 to 120.
        retried: the share of captions asked again because a check failed, 0 to 1.

    Raises ValueError for values that are not positive.
    """
    if min(tokens_per_s, tokens_per_caption) <= 0 or price_per_hour < 0 or not 0 <= retried <= 1:
        raise ValueError("tokens must be above 0, the price at least 0, `retried` from 0 to 1")
    rows = []
    for count in replicas:
        if count < 1:
            raise ValueError(f"replicas is {count}; it must be at least 1")
        rate = count * tokens_per_s / (tokens_per_caption * (1 + retried))
        hours = PER / rate / 3600
        price = hours * count * price_per_hour
        rows.append((count, count * tokens_per_s, rate, hours, price))
    columns = ["replicas", "tokens_per_s", "captions_per_s", "hours_per_100k", "price_per_100k"]
    return pd.DataFrame(rows, columns=columns)
