"""Differences between variants in print: a table, and sentences made from its numbers."""

from __future__ import annotations

import pandas as pd

from entityclip.forest import separable
from entityclip.sheets import Cell, Sheet
from entityclip.tables import number_cell


def difference_sheet(differences: pd.DataFrame, reference: str = "") -> Sheet:
    """A differences table as printed, with a sentence made from its numbers below."""
    blocks = [
        [
            [
                row["group"],
                row["label"],
                number_cell(*row[["value", "low", "high"]], over_seeds=False, sign="+"),
                Cell(f"{row['seeds']:.0f}"),
            ]
            for _, row in rows.iterrows()
        ]
        for _, rows in differences.groupby("group", sort=False)
    ]
    notes = describe_differences(differences, reference)
    return Sheet(["Group", "Variant", "Difference", "Seeds"], blocks, 2, notes)


def describe_differences(
    differences: pd.DataFrame, reference: str = "", *, higher_is_better: bool = True
) -> list[str]:
    """A sentence a group: what is better, what is worse, what these intervals cannot separate.

    `differences` has `forest.COLUMNS`. `reference` is what was subtracted, as a reader should see
    it; "" where labels say so themselves ("a − b"), for which better and worse mean a. A
    difference without an interval is named as untested, never as a finding.
    """
    return [
        f"{group}: {'; '.join(_verdicts(rows, reference, higher_is_better))}."
        for group, rows in differences.groupby("group", sort=False)
    ]


def _verdicts(rows: pd.DataFrame, reference: str, higher_is_better: bool) -> list[str]:
    apart, untested = separable(rows), rows["low"].isna()
    better = (rows["value"] > 0) == higher_is_better
    of, to, by = (f" {word} {reference}" if reference else "" for word in ("than", "from", "with"))
    parts = (
        (f"better{of}", rows[apart & better]),
        (f"worse{of}", rows[apart & ~better]),
        (f"not separable{to or ' from 0'}", rows[~apart & ~untested]),
        (f"without an interval, so not compared{by}", rows[untested]),
    )
    return [
        f"{verdict}: {', '.join(_said(row) for _, row in part.iterrows())}"
        for verdict, part in parts
        if len(part)
    ]


def _said(row: pd.Series) -> str:
    interval = "" if pd.isna(row["low"]) else f", {row['low']:+.1f} to {row['high']:+.1f}"
    return f"{row['label']} ({row['value']:+.1f}{interval})"
