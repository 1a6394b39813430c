"""Explain a data set's captions, by a server's model, one of this machine, or the knowledge base.

``entityclip explain --data photos --server http://localhost:8000/v1``
``entityclip explain --dataset newsroom --knowledge-base --out explanations.jsonl``

Interrupted or failed, run it again: what was answered is in the file and is not asked a second
time. It exits with 0 if every caption has its explanation, 1 if the model failed or left captions
without an answer, 2 for what cannot be started, and says in words what to do.
"""

from __future__ import annotations

import argparse
import glob
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# both load their names on use: help and misspelt options wait for none of them
import entityclip.datasets as data
import entityclip.explanations as ex
from entityclip.config import HUB, OWN_DATA, load_profile
from entityclip.console import Refused, add_part, guarded, refusing
from entityclip.files import unwritable

if TYPE_CHECKING:
    from entityclip.datasets.pair import Pair


GENERAL = "general-v1"
_SHORT = {"news": ex.DEFAULT_PROMPT.version, "general": GENERAL}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code. Raises Refused for what cannot be started."""
    parser = _parser()
    options = parser.parse_args(argv)
    if bool(options.data) == bool(options.dataset):
        parser.error("give --data FOLDER, or --dataset NAME and, if it lies in files, --root")
    if options.knowledge_base == bool(options.model or options.server):
        parser.error("give --knowledge-base, --server URL, or --model")
    if not (options.data or options.out):
        parser.error("give --out, the cache to write")
    logging.basicConfig(format="%(message)s")
    with refusing():
        usual = GENERAL if options.data else ex.DEFAULT_PROMPT.version
        named = options.prompt or usual
        prompt = ex.PROMPTS.get(_SHORT.get(named, named)) or ex.Prompt.read(named)
        pairs, out = _pairs(options), options.out or _kept_at(options.data)
        if reason := unwritable(out.parent):
            raise Refused(f"{reason}: give another --out, or set ENTITYCLIP_RUNS")
        llm = _llm(options)
    if options.shard:
        out = _of_part(out, f"{options.shard.index}-of-{options.shard.count}")
        code = _explain(ex.shard(pairs, options.shard), llm, prompt, out)
        print(f"part {options.shard} is kept in {out}; when all parts are done, the same command "
              "without --shard joins them")  # fmt: skip
        return code
    plain = out.with_name(glob.escape(out.name))  # a name may hold what a pattern reads otherwise
    parts = sorted(out.parent.glob(_of_part(plain, "*").name))
    code = _explain(pairs, llm, prompt, out, parts=parts)
    if options.data:
        print(f"kept in {out}" + ("; train --data reads it" if options.out is None else ""))
    return code


def _kept_at(folder: str) -> Path:
    """Where training on that folder looks for explanations."""
    root = folder if folder.startswith(HUB) else str(Path(folder).expanduser().resolve())
    return load_profile("own", settings={"data_root": root}).extracted


def _of_part(out: Path, which: str) -> Path:
    """The cache of one part of a run that ``--shard`` divides."""
    return out.with_name(f"{out.stem}.part-{which}{out.suffix}")


def _explain(
    pairs: Sequence[Pair], llm: ex.LLM, prompt: ex.Prompt, out: Path, parts: Sequence[Path] = ()
) -> int:
    from entityclip.explanations.extraction import told_notes

    captions = {pair.caption for pair in pairs if pair.caption.strip()}
    source = ex.Source(llm.model, prompt.version, ex.Sampling())
    if parts:
        order = ex.cache_keys((pair.caption for pair in pairs), source)
        joined = ex.merge_caches(parts, out, order)
        print(f"{joined['added']} rows of {len(parts)} parts joined")
    with ex.ExplanationCache(out) as cache:
        asked = len(cache.missing(ex.cache_keys(captions, source)))
        rows = ex.explain(pairs, llm, cache, prompt=prompt)
    counts = ex.check_counts(row.checks for row in rows)
    failed = counts.pop("no_answer", 0)
    marked = [f"{name} {n}" for name, n in list(counts.items())[2:] if n]
    print(
        f"{len(pairs)} pairs, {len(captions)} captions: {asked} asked, {len(captions) - asked} "
        f"reused; marked: {', '.join(marked) or 'none'}; failed: {failed}{told_notes(rows)}"
    )
    return 1 if failed else 0


def _llm(options: argparse.Namespace) -> ex.LLM:
    if options.knowledge_base:
        return ex.KnowledgeBase()
    if options.server:
        model = options.model or ex.served_model(options.server[0])
        return ex.OpenAIChat(model, options.server, concurrency=options.workers)
    return ex.LocalLLM.load(options.model, batch_size=options.workers)


def _pairs(options: argparse.Namespace) -> list[Pair]:
    if options.data:
        root = Path(options.data).expanduser()
        root = root if options.data.startswith(HUB) else root.resolve()
        splits = options.split or ["all"]
        found = (data.load_pairs(OWN_DATA, s, root=root, limit=options.limit) for s in splits)
        return [pair for pairs in found for pair in pairs]
    known = data.DATASETS.get(options.dataset, ())
    splits = options.split or [split for split in ("train", "val") if split in known] or ["train"]
    wanted = {"limit": options.limit, "root": options.root}
    return [p for split in splits for p in data.load_pairs(options.dataset, split, **wanted)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="entityclip explain", description=__doc__)
    add = parser.add_argument
    add("--data", metavar="FOLDER", help="your own pictures and captions, all splits at once")
    add("--dataset", help="by name: newsroom, n24news, visualnews, goodnews, …")
    add("--root", type=Path, help="the folder a data set of files lies in")
    add("--split", nargs="+", help="default: train and val, where explanations are read")
    add("--limit", type=int, help="pairs a split at most")
    add("--prompt", help="news, general, a version of ours, or a file with {caption} in it "
        "(default: news, with --data general)")  # fmt: skip
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--knowledge-base", action="store_true", help="the drawn newsroom's own facts")
    who.add_argument("--server", nargs="+", help="base URLs of servers: http://localhost:8000/v1")
    add("--model", help="as the servers name it (default: the first they serve); else a folder, a "
        ".gguf file or a hub's name")  # fmt: skip
    add("--out", type=Path, help="the cache, JSON lines; made or gone on with (default with "
        "--data: where training on it looks)")  # fmt: skip
    add("--workers", type=int, default=32, help="captions asked at a time (default: %(default)s)")
    add_part(parser)
    return parser


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
