"""The README's sentences on the ablations and the chapters, as the files in figures/ have them."""

from __future__ import annotations

import pandas as pd

from entityclip.config import REPOSITORY
from entityclip.reporting.style import read_table
from entityclip.variants import DIRECTION_LABELS, SPLIT_LABELS, VARIANT_LABELS, label

FIGURES = REPOSITORY / "figures"
SPACE = "\N{NO-BREAK SPACE}"  # an interval or a name stays on one line
_GAIN = {"gain": "value", "gain_low": "low", "gain_high": "high"}


def ablations() -> str:
    """A line an ablation: how many differences exclude 0, and which."""
    tables = {"ablation_gi_itm": "Ablation of GI-ITM", "ablation_mmae": "Ablation of MMAE"}
    lines = []
    for name, title in tables.items():
        if not (FIGURES / f"{name}_differences.csv").exists():
            lines.append(
                f"- {title}: no rows are shipped of this drawing of the news; `make sweep`."
            )
            continue
        rows = read_table(FIGURES / f"{name}_differences.csv")
        apart = rows[(rows["low"] > 0) | (rows["high"] < 0)]
        seeds = "–".join(str(n) for n in sorted(set(rows["seeds"])))
        found = [
            f"{label(variant, VARIANT_LABELS)} "
            + ", ".join(f"{difference_cell(row)} ({_place(row)})" for _, row in group.iterrows())
            for variant, group in apart.groupby("first", sort=False)
        ]
        lines.append(
            f"- [{title}]({name}_differences.md), {seeds} seeds: of {len(rows)} "
            f"differences in MRR to EntityCLIP, {len(apart)} exclude 0; chance alone gives about "
            f"{len(rows) / 20:.0f}. {'; '.join(found) or 'None stands out'}."
        )
    return "\n".join(lines) + "\n"


def chapters() -> str:
    """A line a chapter of its own: generalisation, ITR, AsCL, and the search."""
    chapters = {"cross_domain": _cross_domain, "itr_relations_f1": _relations,
                "ascl_rsum": _rsum, "search": _search}  # fmt: skip
    there = {name: write for name, write in chapters.items() if (FIGURES / f"{name}.csv").exists()}
    lines = [write() for write in there.values()]
    if lacking := [f"`{name}`" for name in chapters if name not in there]:
        lines.append(
            f"- No rows are shipped of this drawing of the news for {', '.join(lacking)}; "
            "`make reproduce ALL=1` trains what they need, hours."
        )
    return "\n".join(lines) + "\n"


def _cross_domain() -> str:
    rows = read_table(FIGURES / "cross_domain.csv")
    rows = rows[(rows["trained_on"] == "newsroom") & (rows["direction"] == "text_to_image")]
    parts = []
    for variant, group in rows.groupby("variant", sort=False):
        at = group.set_index("dataset")["R@1"]
        parts.append(
            f"{label(variant, VARIANT_LABELS)} {at['newsroom']:.1f} → {at['newsroom-b']:.1f}"
        )
    return (
        "- [Another outlet](cross_domain.csv)'s pictures and words, R@1 text → image at "
        f"home → there, {rows['seeds'].iloc[0]} seeds: {', '.join(parts)}."
    )


def _relations() -> str:
    rows = read_table(FIGURES / "itr_relations_f1.csv")
    rows = rows[(rows["label"] == "combined") & (rows["variant"] != "CLIP")]
    rows = rows.drop(columns="value").rename(columns=lambda name: _GAIN.get(name, name))
    shown = rows[rows["protocol"] == "linear probe"]
    gains = ", ".join(
        f"{row['variant'].removeprefix('ITR: ').replace('_', ' ')} " + difference_cell(row)
        for _, row in shown.iterrows()
    )
    better = int((rows["low"] > 0).sum())
    return (
        "- [ITR](itr_relations_f1.csv)'s pretraining tasks change a linear probe's "
        f"weighted F1 on relations of text and picture, {shown['seeds'].iloc[0]} seeds: {gains}. "
        f"Of {len(rows)} such gains over three protocols, {better or 'none'} lie above 0 with "
        "their whole interval."
    )


def _rsum() -> str:
    rows = pd.concat(
        [read_table(FIGURES / f"{name}.csv") for name in ("ascl_rsum", "ascl_queries_rsum")]
    )
    rows = rows[rows["split"] == "captions_test"].drop_duplicates("variant").set_index("variant")
    names = {"contrastive": "plain contrast", "ascl": "AsCL", "ascl, re-ranked": "re-ranked"}
    said = [
        f"{name} {row['RSUM']:.0f} [{row['low']:.0f},{SPACE}{row['high']:.0f}]"
        for key, name in names.items()
        for row in [rows.loc[key]]
    ]
    parts = read_table(FIGURES / "ascl_parts.csv").rename(columns={"difference": "value"})
    left_out = [
        f"{row['variant'].removeprefix('ascl, ')} {difference_cell(row)}"
        for _, row in parts[parts["variant"].str.startswith("ascl, ")].iterrows()
    ]
    return (
        "- [AsCL](ascl_rsum.csv)'s RSUM on five captions a picture, "
        f"{rows['seeds'].iloc[0]} seeds: {', '.join(said)}. "
        f"[One part left out](ascl_parts.csv) changes it: {', '.join(left_out)}."
    )


def _search() -> str:
    rows = read_table(FIGURES / "search.csv")
    tested = read_table(FIGURES / "search_tested.csv")
    best, second = (f"{label(row['variant'], VARIANT_LABELS)} {row['R@1']:.1f}"
                    for _, row in rows.head(2).iterrows())  # fmt: skip
    close = int((rows["R@1"] > rows["R@1"].iloc[0] - 1).sum()) - 1
    one = tested[(tested["second"] == "clip") & (tested["split"] == "test")]
    gains = ", ".join(f"{difference_cell(row)} ({_place(row)})" for _, row in one.iterrows())
    return (
        f"- [The search](search.csv) for something better: {len(rows)} candidates, "
        f"seeds: {rows['seeds'].iloc[0]}, chosen on validation by R@1: {best}, then {second}; "
        f"{close} others lie within a point of the first. The "
        f"chosen one [on test](search_tested.csv), minus CLIP: {gains}."
    )


def _place(row: pd.Series) -> str:
    ways = DIRECTION_LABELS[row["direction"]].replace(" ", SPACE)
    return f"{label(row['split'], SPLIT_LABELS).lower()}, {ways}"


def difference_cell(row: pd.Series) -> str:
    """A difference with its interval, bold where that excludes 0."""
    value = f"{row['value']:+.1f}"
    if row["low"] > 0 or row["high"] < 0:
        value = f"**{value}**"
    if row.get("survives"):
        value += "†"
    return f"{value} [{row['low']:+.1f},{SPACE}{row['high']:+.1f}]"
