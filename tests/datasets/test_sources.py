"""Every layout loads from its miniature copy, field by field, with what is left out counted."""

import dataclasses
import logging

import pytest

from entityclip.datasets import DATASETS, LOADERS, load_pairs
from entityclip.datasets.care import overlaps
from entityclip.datasets.sources.goodnews import clean_caption, goodnews_pairs
from entityclip.datasets.sources.n24news import n24news_pairs
from entityclip.datasets.sources.tweets import relation_labels, relation_pairs, twitter100k_pairs
from entityclip.datasets.sources.visualnews import from_source, visualnews_pairs
from tests.fixtures import layouts
from tests.fixtures.pictures import save


def fields(pairs, root):
    return [
        (p.id, p.image.relative_to(root).as_posix(), p.caption, p.explanation, p.group, p.section)
        for p in pairs
    ]


def check(loader, root, expected, **options):
    assert expected
    for split, rows in expected.items():
        pairs, _ = loader(root, split, **options)
        assert fields(pairs, root) == rows, split
        assert all(pair.load_image().size == (48, 36) for pair in pairs)


@pytest.mark.parametrize("dataset", layouts.BUILDERS)
def test_every_layout_loads_field_by_field(dataset, tmp_path):
    expected = layouts.BUILDERS[dataset](tmp_path)
    assert len({row[1] for rows in expected.values() for row in rows}) >= 22
    assert len(list(tmp_path.rglob("*.jpg"))) >= 23
    assert set(expected) == set(DATASETS[dataset])
    options = {"train_rows": 16} if dataset == "tweets" else {}
    check(LOADERS[dataset], tmp_path, expected, **options)


def test_nothing_usable_and_missing_files_are_named(tmp_path):
    layouts.n24news(tmp_path)
    for picture in (tmp_path / "imgs").iterdir():
        picture.unlink()
    with pytest.raises(ValueError, match=r"no usable pair: 16 rows; .* 14 without their picture"):
        load_pairs("n24news", "train", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; expected .*imgs/"):
        n24news_pairs(tmp_path / "nowhere", "train")
    (tmp_path / "news" / "nytimes_dev.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"nytimes_dev\.json does not exist"):
        n24news_pairs(tmp_path, "val")
    with pytest.raises(ValueError, match="no split 'dev'; there are train, val, test"):
        n24news_pairs(tmp_path, "dev")


def test_visualnews_in_the_releases_own_layout(tmp_path):
    check(visualnews_pairs, tmp_path, layouts.visualnews(tmp_path, origin=True))


@pytest.mark.parametrize("files", [{"official": False}, {"derived": False}, {}])
def test_goodnews_official_and_derived_files_give_the_same_pairs(files, tmp_path):
    expected = layouts.goodnews(tmp_path, **files)
    check(goodnews_pairs, tmp_path, expected)


def test_goodnews_captions_lose_real_and_written_line_breaks():
    assert clean_caption(" a\r\n\r\nb\\r\\nc \u2028 d\n") == "a b c d"
    assert clean_caption("C:\\new") == "C:\\new"


@pytest.mark.parametrize(
    ("dataset", "split", "counts"),
    [
        ("n24news", "train", {"rows": 16, "empty_captions": 2, "missing_pictures": 1,
                              "repeated_ids": 1, "unused_explanations": 1,
                              "without_explanation": 3}),
        ("n24news", "val", {"rows": 6, "without_explanation": 2}),
        ("visualnews", "train", {"rows": 15, "repeated_ids": 1, "missing_pictures": 1,
                                 "empty_captions": 1, "without_explanation": 3}),
        ("goodnews", "train", {"rows": 12, "listed_as_broken": 1, "without_explanation": 3,
                               "unused_explanations": 1}),
        ("flickr30k", "train", {"rows": 81, "empty_captions": 1, "without_explanation": 80}),
        ("mscoco", "restval", {"rows": 20, "without_explanation": 20}),
        ("twitter100k", "all", {"rows": 24, "empty_captions": 1, "missing_pictures": 1,
                                "without_explanation": 22}),
    ],
)  # fmt: skip
def test_what_is_left_out_is_counted(dataset, split, counts, tmp_path, caplog):
    layouts.BUILDERS[dataset](tmp_path)
    with caplog.at_level(logging.INFO):
        _, report = LOADERS[dataset](tmp_path, split)
    given = {name: count for name, count in dataclasses.asdict(report).items() if count}
    assert given == counts
    assert str(report) in caplog.text


@pytest.mark.parametrize("dataset", layouts.BUILDERS)
def test_a_subset_depends_on_limit_and_seed_only(dataset, tmp_path):
    layouts.BUILDERS[dataset](tmp_path)

    def load(**options):
        return load_pairs(dataset, DATASETS[dataset][0], root=tmp_path, **options)

    first = load(limit=5, seed=3)
    assert len(first) == 5
    assert first == load(limit=5, seed=3)
    assert first != load(limit=5, seed=4)
    assert [pair for pair in load() if pair in first] == list(first)


@pytest.mark.parametrize(("second", "name"), [("val2014/1.jpg", "val2014/1.jpg"),
                                              ("train2014/1.png", "train2014/1.png"),
                                              ("1.jpg", "1.jpg")])  # fmt: skip
def test_pictures_of_one_name_keep_apart_whatever_split_is_read(second, name, tmp_path):
    rows = []
    for place, split in (("train2014/1.jpg", "train"), (second, "restval"), ("2.jpg", "restval")):
        save(tmp_path / "images" / place, len(rows))
        folder, _, file = place.rpartition("/")
        sentences = [{"raw": f"{place} {n}"} for n in range(2)]
        row = {"filename": file, "filepath": folder, "split": split, "sentences": sentences}
        rows.append(row if folder else {k: v for k, v in row.items() if k != "filepath"})
    layouts.write_json(tmp_path / "dataset_coco.json", {"images": [*rows, rows[0]]})
    both, report = LOADERS["mscoco"](tmp_path, "train+restval")
    assert [pair.id for pair in both] == ["1#0", "1#1", f"{name}#0", f"{name}#1", "2#0", "2#1"]
    assert [pair.group for pair in both[::2]] == ["1.jpg", name, "2.jpg"]
    assert report.left_out == report.repeated_ids == 2  # the first picture, listed again
    alone = LOADERS["mscoco"](tmp_path, "restval")[0]
    assert alone == both[2:]
    assert [pair.caption for pair in alone[:2]] == [f"{second} 0", f"{second} 1"]


@pytest.mark.parametrize("first", [0, 1])
def test_twitter100k_finds_out_where_its_numbers_start(first, tmp_path):
    check(twitter100k_pairs, tmp_path, layouts.twitter100k(tmp_path, first=first))


def test_twitter100k_asks_where_its_numbers_leave_it_open(tmp_path):
    layouts.twitter100k(tmp_path, first=1)
    (tmp_path / "images" / "24.jpg").unlink()
    with pytest.raises(ValueError, match=r"neither 0\.jpg nor 24\.jpg for 24 lines: pass first=0"):
        twitter100k_pairs(tmp_path, "all")
    pairs, report = twitter100k_pairs(tmp_path, "all", first=1)
    assert pairs[0].id == "1"
    assert report.missing_pictures == 2


def test_relation_labels_and_split_do_not_move_with_a_missing_picture(tmp_path):
    expected = layouts.tweets(tmp_path)
    (tmp_path / expected["train"][2][1]).unlink()
    train, report = relation_pairs(tmp_path, "train", train_rows=16)
    test, _ = relation_pairs(tmp_path, "test", train_rows=16)
    assert report.missing_pictures == 1
    assert len(train) == 15
    assert fields(test, tmp_path) == expected["test"]
    assert [relation_labels(pair.section) for pair in test[:4]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert load_pairs("tweets", "train", root=tmp_path)  # the first 3,576 rows: all of them
    with pytest.raises(ValueError, match="no usable pair: 0 rows"):
        load_pairs("tweets", "test", root=tmp_path)


def test_explanation_keys_match_from_the_source_on():
    assert from_source("/x/bbc/images/guardian/images/0/1.jpg") == "guardian/images/0/1.jpg"
    assert from_source("C:\\d\\usa_today\\images\\1.jpg") == "usa_today/images/1.jpg"
    assert from_source("./bbc/images/1.jpg") == "bbc/images/1.jpg"
    assert from_source("elsewhere/1.jpg") == "elsewhere/1.jpg"


def test_duplicates_across_splits_are_found(tmp_path):
    layouts.n24news(tmp_path)
    splits = {name: load_pairs("n24news", name, root=tmp_path) for name in DATASETS["n24news"]}
    assert overlaps(splits) == []
    pair = splits["train"][4]
    other = dataclasses.replace(pair, id="another id")
    moved = dataclasses.replace(pair, image=tmp_path / "imgs" / "moved.jpg", caption="else")
    splits["test"] = [*splits["test"], other, moved]
    (found,) = overlaps(splits)
    assert (found.first, found.second) == ("train", "test")
    assert (found.ids, found.pictures, found.captions) == (1, 1, 1)
    assert found.examples == (pair.id,)


def test_a_table_is_a_sequence_of_pairs(tmp_path):
    layouts.n24news(tmp_path)
    table = load_pairs("n24news", "train", root=tmp_path)
    pairs = list(table)
    assert table == pairs
    assert table != pairs[:-1]
    for part in (-1, slice(2, 5), slice(None, None, -1)):
        assert table[part] == pairs[part]
    assert table.index(pairs[3]) == 3
    with pytest.raises(IndexError):
        table[len(table)]
    assert "12 pairs" in repr(table)
