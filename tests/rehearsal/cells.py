"""How many cells each table and figure of the paper's chain should have, and how many it has.

Expectations are counted from what was asked for (variants, splits, directions, seeds), never from
the rows that the chain stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from entityclip.datasets import load_pairs
from entityclip.reporting.catalogue import JOINED
from entityclip.statistics import METRICS
from entityclip.variants import COSTED, COSTS, FLOORS, LEAK, TABLES, VARIANTS

RECALLS = ("retrieval", "ablation_mmae", "ablation_gi_itm", "controls", "mixes", "backbones")
_ENDS = ("", "_low", "_high")
_SPAN = ("value", "low", "high")
_LACKING = ("itr", "ascl")  # whose data the rehearsal does not draw


class Expected(NamedTuple):
    """A table's rows, and the columns of which every cell must be filled."""

    rows: int
    columns: tuple[str, ...]


def expected(
    settings: dict[str, Any], splits: int, domains: int, sections: int
) -> dict[str, Expected]:
    """What one archive's tables must hold.

    `splits` are the test split and, where articles have several pictures, the same by article;
    `domains` the archives that take part, `sections` the test pairs' sections (0: none).
    """
    main = [name for name in TABLES["main"] if name not in _LACKING]
    rows = 2 * splits  # both directions
    mixes, choices = len(settings["mixes"]) + 1, 2  # one of the backbones is refused
    sources = 2 * 2 + 2  # two sources with experts and as a bridge, the caption, none
    places = len(settings["grid"]["lambda_moe"]) * len(settings["grid"]["eta_itm"])
    lines = {
        **{
            name: len(TABLES[name])
            for name in ("ablation_mmae", "ablation_gi_itm", "controls", "views")
        },
        **{"retrieval": len(main), "mixes": mixes, "explanation_sources": sources},
        **{"backbones": 3 * choices, "grid": places},
    }
    recalls = tuple(f"{metric}{end}" for metric in METRICS for end in _ENDS)
    found = {name: Expected(rows * count, recalls) for name, count in lines.items()}
    compared = {
        **{f"{name}_differences": lines[name] - 1 for name in
           ("ablation_mmae", "ablation_gi_itm", "controls", "views", "mixes",
            "explanation_sources")},
        **{"differences": len(main), "backbones_differences": choices},
    }  # fmt: skip
    found |= {name: Expected(2 * count, _SPAN) for name, count in compared.items()}
    found["main_rsum"] = Expected(len(main), ("RSUM", "low", "high"))
    # zero-shot and two that were trained here, on every archive
    found["cross_domain"] = Expected(3 * 2 * domains, recalls)
    found["costs"] = Expected(len(COSTED), tuple(f"{name}{end}" for name in COSTS for end in _ENDS))
    found["leak"] = Expected(len(LEAK) * 5 * 2, _SPAN)
    heads = [n for n in TABLES["ablation_gi_itm"] if VARIANTS[n].model.get("matching") != "none"]
    found["matching"] = Expected(3 * len(heads), _SPAN)
    found["search"] = Expected(len(TABLES["search"]), ("R@1", "lowest", "highest"))
    epochs = settings["finetuning"]["epochs"]
    trained = [name for name in main if VARIANTS[name].finetuned]
    found["seed_curves"] = Expected(2 * epochs * len(trained), ("mean", "low", "high"))
    if sections:
        found["sections"] = Expected(3, ("accuracy", "macro_f1"))
        found["section_scores"] = Expected(3 * sections, ("f1", "f1_low", "f1_high"))
    return found


def count_cells(out: Path, archives: list[str], settings: dict[str, Any]) -> int:
    """Print a line a table, each archive's and of all together; how many cells are lacking."""
    lacking, together, seeds = 0, {}, len(settings["main_seeds"])
    print(f"\n{'where':<11} {'table or figure':<32} {'expected':>9} {'filled':>7}")
    for name in archives:
        pairs = load_pairs(name, "test", root=out / "archives" / name)
        articles = [pair.group for pair in pairs]
        by_article = None not in articles and len({*articles}) < len(articles)
        sections = [pair.section for pair in pairs]
        told = len({*sections}) if None not in sections else 0
        wanted = expected(settings, 1 + by_article, len(archives), told)
        for table, one in wanted.items():
            lacking += _line(name, table, one, out / name / "figures", seeds)
            if table in JOINED:
                before = together.get(table, Expected(0, one.columns))
                together[table] = before._replace(rows=before.rows + one.rows)
        lacking += _drawn(name, out / name / "figures")
    # a model that was not fine-tuned is tested on each archive once
    whole = together["cross_domain"]
    together["cross_domain"] = whole._replace(
        rows=whole.rows - 2 * len(archives) * (len(archives) - 1)
    )
    for table, one in together.items():
        lacking += _line("paper", table, one, out / "paper" / "figures", seeds)
    print(f"{lacking} cells are lacking" if lacking else "every expected cell is filled")
    return lacking


def _line(where: str, table: str, wanted: Expected, figures: Path, seeds: int | None = None) -> int:
    path, filled = figures / f"{table}.csv", 0
    if path.exists():
        found = pd.read_csv(path, comment="#")
        if table == "retrieval" and seeds is not None:  # means over all seeds, or none
            trained = found["variant"] != "zero-shot"
            floors = found["variant"].isin(FLOORS)  # fewer columns: counted by being there
            found = found[((found["seeds"] == seeds) | ~trained) & ~floors]
            if not floors.any():
                found = found.iloc[:0]
        filled = int(found[list(wanted.columns)].notna().to_numpy().sum())
    cells = wanted.rows * len(wanted.columns)
    print(f"{where:<11} {table:<32} {cells:>9} {filled:>7}{'' if cells == filled else '  <--'}")
    return abs(cells - filled)


# pictures that need a model: galleries and maps of real pictures
_PICTURES = (
    *("pairs", "lengths", "explanations", "training_curves", "retrieval_gallery"),
    *("attention_words", "attention_patches", "gates", "embedding_space", "domains"),
    *("recall_by_name", "recall_curves", "costs", "grid"),
)


def _drawn(where: str, figures: Path) -> int:
    """How many of the pictures are not there."""
    there = [name for name in _PICTURES if (figures / f"{name}.png").exists()]
    lost = sorted({*_PICTURES} - {*there})
    said = f"  <-- {', '.join(lost)}" if lost else ""
    print(f"{where:<11} {'pictures':<32} {len(_PICTURES):>9} {len(there):>7}{said}")
    return len(lost)
