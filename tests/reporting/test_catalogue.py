"""Every file of figures/ is named once, with its notebook; what draws it says what it lacks."""

import contextlib
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from entityclip.config import REPOSITORY, config_hash, load_profile
from entityclip.identities import measured_identity
from entityclip.reporting.catalogue import FIGURES, FROM_ROWS, Drawn, draw, made_by, save, show
from entityclip.results import ResultsError, append_rows
from entityclip.variants import FLOORS
from tests.reporting.samples import make_floors, make_rows

pytestmark = pytest.mark.usefixtures("figure_style")
SOURCE = (REPOSITORY / "entityclip" / "reporting" / "catalogue.py").read_text(encoding="utf-8")


@pytest.fixture
def smoke(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    return load_profile("smoke")


def test_each_file_of_figures_is_named_on_one_line_and_says_what_made_it(committed_figures):
    others = {"README.md", "reproduce.json", "paper_reported.csv", "public_code.csv"}
    files = [p for p in committed_figures.iterdir() if p.is_file() and p.name not in others]
    assert len(files) > 100
    for path in files:
        assert len(re.findall(rf'^    "{path.stem}": Figure\(', SOURCE, re.MULTILINE)) == 1
        assert path.suffix[1:] in FIGURES[path.stem].kinds.split()
        assert made_by(path.stem).encode() in path.read_bytes()[:4000], path.name


NOT_SHIPPED = ("07_generalization", "08_itr", "09_ascl")  # no rows of this drawing of the news
NOT_LISTED = ("grid", "backbones", "backbones_differences")  # by the demo


def test_each_figure_stands_with_a_notebook_that_shows_it():
    folder = REPOSITORY / "notebooks"
    texts = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.ipynb")}
    for name, figure in FIGURES.items():
        quoted = f'\\"{name}\\"'
        if quoted not in texts[figure.notebook]:  # notebook 10 saves what another one shows
            assert figure.notebook.startswith("10_"), name
            assert name in FROM_ROWS
            assert any(quoted in text for text in texts.values()), name
        assert (figure.rows is None) == (figure.draw is None)
    ten = texts["10_tables_and_figures"]
    assert "for name in catalogue.FROM_ROWS if name not in shown" in ten  # so it saves the others


def test_what_has_no_rows_is_said_in_a_line(smoke, tmp_path, capsys):
    for name in FROM_ROWS:
        with pytest.raises(ResultsError):
            draw(smoke, name)
        show(smoke, name, tmp_path / "figures")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(FROM_ROWS)
    assert all(line.startswith("skipped: ") for line in said)
    assert (
        "leak has no rows of profile smoke's present settings; run the notebooks up to 05"
        in (said[FROM_ROWS.index("leak")])
    )
    assert not (tmp_path / "figures").exists()


def test_a_figure_is_saved_whole_or_not_at_all_as_its_folder_says(smoke, tmp_path, capsys):
    rows = make_rows(splits=("test",))
    show(smoke, "retrieval", rows=rows)
    assert not list(tmp_path.glob("*.*"))
    show(smoke, "retrieval", tmp_path, rows=rows)
    kinds = sorted(path.suffix[1:] for path in tmp_path.glob("retrieval.*"))
    assert kinds == sorted(FIGURES["retrieval"].kinds.split())
    assert plt.get_fignums() == []
    drawn = draw(smoke, "retrieval", rows)
    assert drawn.notes == [
        "Without rows, so left out: itr, ascl, bridge, bridge-entityclip, name-views, "
        "name-views-context."
    ]


def test_floors_of_these_settings_stand_below_the_main_table(smoke):
    whole = {
        "git_commit": "c", "versions": {}, "device": "CPU", "wall_time_s": 1.0,
        "peak_memory_mb": 1.0, "created": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    own, floors = make_rows({"clip": 50.0}, ("test",)), make_floors(("test", "val"))
    for kind, rows in (("retrieval", own), ("floor", floors)):
        found = rows.astype(object).where(rows.notna(), None).to_dict("records")
        for row in found:
            row["config"] = measured_identity(smoke.settings, kind, row["variant"], 0)
            row["config_hash"] = config_hash(row["config"])
        append_rows(smoke.results / f"{kind}.jsonl", [row | whole for row in found])
        table = draw(smoke, "retrieval").table
        shown = ["clip"] if kind == "retrieval" else ["clip", *FLOORS]
        assert table[table["direction"] == "text_to_image"]["variant"].tolist() == shown
    assert set(table["split"]) == {"test"}
    assert set(draw(smoke, "ablation_mmae").table["variant"]) == {"clip"}
    assert draw(smoke, "recall_curves").chart


def test_what_a_notebook_drew_is_saved_under_its_command(smoke, tmp_path):
    table = pd.DataFrame({"pair": ["a"], "weight": [0.5]})
    show(smoke, "gates", tmp_path, chart=plt.figure(), table=table)
    assert made_by("gates") == "entityclip reproduce --only 04_retrieval"
    for kind in FIGURES["gates"].kinds.split():
        assert made_by("gates").encode() in (tmp_path / f"gates.{kind}").read_bytes()
    with pytest.raises(KeyError, match="gaits"):
        save(Drawn(table=table), "gaits", tmp_path)


def test_a_notebook_shows_sheet_chart_and_words_and_a_bare_table(smoke, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace())
    monkeypatch.setattr(IPython.display, "display", lambda *parts: shown.extend(parts))
    show(smoke, "retrieval", rows=make_rows(splits=("test",)))
    show(smoke, "gates", table=pd.DataFrame({"weight": [0.5]}))
    kinds = [type(part).__name__ for part in shown]
    assert kinds == ["Markdown", "Image", "Markdown", "DataFrame"]
    assert plt.get_fignums() == []


def test_the_searchs_winner_is_compared_with_what_it_did_not_choose():
    ranks = pd.DataFrame(
        {
            "variant": variant, "dataset": "newsroom", "split": "test", "direction": direction,
            "seed": 0, "data_fingerprint": "d", "clusters": None, "ranks": [1, 2, number],
        }
        for number, variant in enumerate(("bridge", "clip", "entityclip"), start=1)
        for direction in ("text_to_image", "image_to_text")
    )  # fmt: skip
    drawn = FIGURES["search_tested"].draw(ranks)
    variants = drawn.table["variant"].unique().tolist()
    assert variants == ["bridge minus clip", "bridge minus entityclip"]
    by_mrr = [100 / 6] * 2 + [100 / 3 * (1 - 1 / 3)] * 2
    assert drawn.table["value"].tolist() == pytest.approx(by_mrr)
    assert len(drawn.notes) == 2


@pytest.mark.parametrize("name", FROM_ROWS)
def test_rows_of_a_run_that_is_not_complete_are_drawn_or_refused_by_name(name):
    profile = load_profile("demo")
    rows = FIGURES[name].rows(profile)
    if name in NOT_LISTED or FIGURES[name].notebook in NOT_SHIPPED:
        assert rows.empty
        return
    first = rows["variant"] == rows["variant"].iloc[0]
    for part in (rows[first], rows[~(first & (rows["seed"] == rows["seed"].max()))]):
        if len(part):
            with contextlib.suppress(ResultsError):
                assert draw(profile, name, part.reset_index(drop=True))
            plt.close("all")
