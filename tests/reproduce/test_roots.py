"""Several data sets by one command: which take part, what is left out, where their data lie."""

import json

import pytest

from entityclip.config import load_profile
from entityclip.reproduce import chain
from entityclip.reproduce.plan import ReproduceError, chapter_lacks, parse_roots, rooted
from tests.reproduce.test_reproduce import House, house, ran, write_notebook  # noqa: F401 - fixtures

NOTEBOOKS = ("00_setup", "08_itr", "09_ascl")


@pytest.fixture
def paper(house, ran, tmp_path, monkeypatch):  # noqa: F811
    """A house of three notebooks and three archives' folders; `joined` lists what was joined."""
    for name in NOTEBOOKS:
        write_notebook(house.notebooks, name)
    house.roots = {
        name: tmp_path / f"{name} data" for name in ("n24news", "visualnews", "goodnews")
    }
    for root in house.roots.values():
        root.mkdir()
    house.joined = []

    def join(name, plans):
        house.joined += [plan.profile.name for plan in plans]
        return 0

    monkeypatch.setattr(chain, "join_figures", join)
    return house


def reproduced(house, *argv, **roots):  # noqa: F811
    roots = {**house.roots, **roots}
    return house.main(
        "--profile", "paper", "--roots", *(f"{name}={root}" for name, root in roots.items()), *argv
    )


def test_each_archive_has_its_own_runs_and_they_are_joined(paper, ran, capsys):  # noqa: F811
    assert reproduced(paper) == 0
    assert ran == ["00_setup"] * 3
    assert paper.joined == ["n24news", "visualnews", "goodnews"]
    said = capsys.readouterr().out
    for name in paper.roots:
        assert (paper.runs / name / "figures" / "00_setup_a.csv").exists()
        report = json.loads((paper.runs / name / "reproduce.json").read_text())
        assert report["settings"]["data_root"] == str(paper.roots[name])
        others = {other: str(root) for other, root in paper.roots.items() if other != name}
        assert report["settings"]["domains"] == others
        assert f"{name}, figures in {paper.runs / name / 'figures'}" in said
    assert "n24news: 08_itr is left out: twitter100k is not given" in said
    assert "visualnews: 09_ascl is left out: the profile has no `ascl` block" in said
    assert not [*paper.figures.glob("*")]  # which show the demo
    assert reproduced(paper) == 0
    assert len(ran) == 3  # nothing is done twice


@pytest.mark.parametrize("gone", ["renamed", "not given"])
def test_an_archive_that_is_not_there_is_left_out_with_a_line(paper, ran, capsys, gone):  # noqa: F811
    root = paper.roots["visualnews"]
    if gone == "renamed":
        root.rename(root.with_name("elsewhere"))
        line = f"visualnews is left out: {root} is no folder\n"
    else:
        del paper.roots["visualnews"]
        line = "visualnews is left out: no folder is given (ROOTS=visualnews=FOLDER)\n"
    assert reproduced(paper) == 0
    assert capsys.readouterr().out.count(line) == 1
    assert paper.joined == ["n24news", "goodnews"]
    assert not (paper.runs / "visualnews").exists()
    report = json.loads((paper.runs / "n24news" / "reproduce.json").read_text())
    assert list(report["settings"]["domains"]) == ["goodnews"]


def test_a_failure_in_one_archive_does_not_end_the_others(paper, ran, monkeypatch, capsys):  # noqa: F811
    execute = chain.execute

    def failing(notebook, plan, *, bar):
        if plan.profile.name == "n24news":
            raise RuntimeError("broken")
        execute(notebook, plan, bar=bar)

    monkeypatch.setattr(chain, "execute", failing)
    assert reproduced(paper) == 1
    assert ran == ["00_setup"] * 2
    assert paper.joined == ["n24news", "visualnews", "goodnews"]


def test_chapters_with_data_of_their_own_are_run_once(paper, ran, tmp_path):  # noqa: F811
    others = {name: tmp_path / name for name in ("flickr30k", "tweets", "twitter100k")}
    for root in others.values():
        root.mkdir()
    assert reproduced(paper, **others) == 0
    assert sorted(ran) == ["00_setup"] * 3 + ["08_itr", "09_ascl"]
    settings = json.loads((paper.runs / "n24news" / "reproduce.json").read_text())["settings"]
    assert settings["ascl"]["data_root"] == str(others["flickr30k"])
    assert settings["itr"]["judged"]["data_root"] == str(others["tweets"])
    assert settings["itr"]["unlabelled"]["data_root"] == str(others["twitter100k"])
    assert reproduced(paper, "--list", **others) == 0


def test_what_is_no_root_is_refused_before_anything_runs(paper, ran, capsys):  # noqa: F811
    for given, said in (
        ("n24news", "write NAME=FOLDER once"),
        ("nope=here", "of flickr30k, goodnews, n24news, tweets, twitter100k, visualnews"),
    ):
        assert paper.main("--profile", "paper", "--roots", given) == 2
        assert said in capsys.readouterr().err
    assert paper.main("--profile", "paper") == 2
    assert "goodnews is left out: no folder is given" in capsys.readouterr().err
    assert ran == []
    with pytest.raises(ReproduceError, match="write NAME=FOLDER once"):
        parse_roots(["tweets=.", "tweets=."], ["tweets"])


def test_a_chapter_that_was_asked_for_and_lacks_its_data_is_no_success(paper, ran, capsys):  # noqa: F811
    root = f"n24news={paper.roots['n24news']}"
    assert paper.main("--profile", "n24news", "--roots", root, "--only", "08_itr") == 2
    assert "08_itr is left out: twitter100k is not given" in capsys.readouterr().err
    assert ran == []


def test_a_single_profile_is_given_its_data_the_same_way(paper, ran):  # noqa: F811
    roots = [f"{name}={root}" for name, root in paper.roots.items()]
    assert paper.main("--profile", "n24news", "--roots", *roots) == 0
    settings = json.loads((paper.runs / "n24news" / "reproduce.json").read_text())["settings"]
    assert settings["data_root"] == str(paper.roots["n24news"])
    assert set(settings["domains"]) == {"visualnews", "goodnews"}
    assert paper.joined == []
    assert rooted(load_profile("smoke").settings, {"n24news": "x"}) == {}


def test_chapters_say_what_they_lack():
    demo, own = load_profile("demo").settings, load_profile("own").settings
    assert [chapter_lacks(name, demo) for name in NOTEBOOKS] == [None] * 3
    assert chapter_lacks("08_itr", own) == "the profile has no `itr` block"
    assert chapter_lacks("04_retrieval", own) is None
