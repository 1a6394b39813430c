"""Stored rows of zero-shot sections as tables: confusions, a row a section, a row a variant.

Nothing here runs a model.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from entityclip.seed_intervals import over_seeds

SUMMARY = ("accuracy", "macro_f1")  # then one "f1/<section>" a section; all in percent


def confusions(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Each variant's confusion matrix from stored rows of one seed and split: counts, true × found.

    Raises ValueError where a variant has several, which no one matrix stands for.
    """
    whole = rows[rows["metric"] == "accuracy"]
    repeated = sorted(set(whole.loc[whole.duplicated("variant"), "variant"]))
    if repeated:
        raise ValueError(
            f"several confusion matrices of {', '.join(repeated)}; choose one seed and split"
        )
    return {
        row["variant"]: pd.DataFrame(row["confusion"], row["sections"], row["sections"])
        for _, row in whole.iterrows()
    }


def section_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a (variant, section) of one seed and split: pairs, precision, recall and F1 in percent.

    F1 with its interval is the stored one; precision is blank for a section never predicted.
    """
    f1 = rows[rows["metric"].str.startswith("f1/")].set_index(["variant", "metric"])
    table = []
    for variant, counts in confusions(rows).items():
        for name in counts.index:
            hits, true, found = counts.loc[name, name], counts.loc[name].sum(), counts[name].sum()
            of_f1 = f1.loc[(variant, f"f1/{name}")]
            table.append(
                {
                    "variant": variant,
                    "section": name,
                    "pairs": true,
                    "precision": 100 * hits / found if found else np.nan,
                    "recall": 100 * hits / true,
                    **{"f1": of_f1["value"], "f1_low": of_f1["low"], "f1_high": of_f1["high"]},
                }
            )
    return pd.DataFrame(table)


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a (dataset, variant) of one split: accuracy and macro-F1 with 95 % intervals.

    Of several `seeds` means, with Student's t over seeds; of one its own, over queries. Beside them
    the accuracy of `guessing` uniformly and of always saying the commonest section, `majority`,
    which no macro-F1 rewards.
    """
    table = []
    shown = rows[rows["metric"].isin(SUMMARY)]
    for (dataset, variant), group in shown.groupby(["dataset", "variant"], sort=False):
        line = {"dataset": dataset, "variant": variant, "seeds": group["seed"].nunique()}
        line["sections"] = group["n_candidates"].iloc[0]
        line["guessing"] = 100 / line["sections"]
        confusion = group.loc[group["metric"] == "accuracy", "confusion"].iloc[0]
        true = np.array(confusion).sum(1)
        line["majority"] = 100 * true.max() / true.sum()
        for metric in SUMMARY:
            value, low, high = over_seeds(group[group["metric"] == metric])
            line |= {metric: value, f"{metric}_low": low, f"{metric}_high": high}
        table.append(line)
    return pd.DataFrame(table)
