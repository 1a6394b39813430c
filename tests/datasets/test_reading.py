"""Bad input of every kind: a named error, or a skip that is counted; nothing crashes or leaks.

The JSON stream gives what json.loads gives, wherever a chunk ends, and says where it is wrong.
"""

import json
import os
import shutil

import pytest

from entityclip.datasets import DATASETS, LOADERS, load_pairs, reading
from entityclip.datasets.pair import ImageError, Pair
from entityclip.datasets.reading import iter_entries, iter_rows
from tests.fixtures import layouts
from tests.fixtures.pictures import BROKEN, save

N24, VIS, CAPS = "news/nytimes_train.json", "train.json", "news/CapDsc_mistral_train.json"
GOOD, OFFICIAL = "new_goodnews_capim_train.json", "captioning_dataset.json"
FLICKR = "dataset_flickr30k.json"
DEEP = "[" * 100_000
INT_CAPTION = json.dumps({"0" * 24: {"images": {"0": 3}}})


def article(**change):
    return json.dumps([layouts.article("img-1", 1) | change])


def news(**change):
    return json.dumps([layouts.news(0, "guardian/images/0000/0.jpg") | change])


def derived(**change):
    return json.dumps([{"image_id": f"{'0' * 24}_0", "captioning": "text", **change}])


def image(**change):
    row = {"filename": "1000.jpg", "split": "train", "sentences": [{"raw": "text"}]}
    return json.dumps({"images": [{**row, **change}]})


CSV = "tweet_id,tweet,text_is_represented,image_adds\n"
WRONG_FILES = [
    # data set, file, content (str, bytes or None: no such file), what the error says
    ("n24news", N24, "", r"nytimes_train\.json is not JSON \(the file is empty"),
    ("n24news", N24, article()[:40], r"nytimes_train\.json is not JSON \(.*row 0\)"),
    ("n24news", N24, article()[:-1] + ',{"image_id": ', r"is not JSON \(.*row 1\)"),
    ("n24news", N24, article()[:-1] + ",]", "a comma stands before the end"),
    ("n24news", N24, article() + "[]", "more text follows the end"),
    ("n24news", N24, article()[1:-1] + "\n" + article()[1:-1], "list, got dict; are these JSON li"),
    ("n24news", N24, "null", "must hold a JSON list, got null"),
    ("n24news", N24, b"\x80\x04]", r"is not JSON \(not UTF-8"),
    ("n24news", N24, "<html>", "begins no JSON value"),
    ("n24news", N24, DEEP, "nested too deeply"),
    ("n24news", N24, '[{"a": 1, "a": 2}]', r"key 'a' stands twice in one object, row 0"),
    ("n24news", N24, '[{"caption": NaN}]', "NaN is not a JSON number, row 0"),
    ("n24news", N24, None, r"nytimes_train\.json does not exist; expected below the root"),
    ("n24news", N24, "[[]]", "row 0: expected an object, got list"),
    ("n24news", N24, article(caption=["a"]), "row 0: field 'caption' must be str, got list"),
    ("n24news", N24, article(caption="\ud800"), "row 0: half a surrogate pair"),
    ("n24news", N24, article(image_id=""), "row 0: field 'image_id' is empty"),
    ("n24news", N24, article(image_id="../../etc/x"), "'image_id' is '../../etc/x', which is no"),
    ("n24news", N24, article(image_id="a\\b"), "which is no plain file name"),
    ("n24news", N24, article(image_id="a\0b"), "which is no plain file name"),
    ("n24news", N24, article(image_id=".."), "which is no plain file name"),
    ("n24news", N24, article(image_id=True), "'image_id' must be str or int, got bool"),
    ("n24news", N24, '[{"caption": "x"}]', "row 0: field 'image_id' must be str or int, got noth"),
    ("n24news", N24, article(article_id=1.5), "'article_id' must be str or int, got float"),
    ("n24news", N24, article(section={"a": 1}), "field 'section' must be str, got dict"),
    ("n24news", CAPS, "[]", r"CapDsc_mistral_train\.json must hold a JSON dict, got list"),
    ("n24news", CAPS, '{"a.jpg": ["x"]}', r"key 'a\.jpg': an explanation must be str, got list"),
    ("n24news", CAPS, '{"a.jpg": "x", "a.jpg": "y"}', r"key 'a\.jpg' stands twice"),
    ("n24news", CAPS, '{"/x/a.jpg": "x", "a.jpg": "y"}', "a second explanation of one picture"),
    ("n24news", CAPS, '{"a.jpg": "x"', r"is not JSON \(',' or '}' expected"),
    ("n24news", CAPS, '{1: "x"}', "a key must be a string"),
    ("n24news", CAPS, '{"a.jpg" "x"}', "':' is missing after key"),
    ("n24news", CAPS, '{"a.jpg": "\\ud800"}', "half a surrogate pair"),
    ("visualnews", VIS, None, r"has none of train\.json, origin/train\.json; expected"),
    ("visualnews", VIS, news(id=None), "field 'id' must be str or int, got NoneType"),
    ("visualnews", VIS, news(image_path="./../x.jpg"), "which is no plain path below the root"),
    ("visualnews", VIS, news(image_path="..\\x.jpg"), "which is no plain path below the root"),
    ("visualnews", VIS, news(image_path=""), "which is no plain path below the root"),
    ("visualnews", VIS, news(image_path=7), "field 'image_path' must be str, got int"),
    ("visualnews", VIS, news(topic=3), "field 'topic' must be str, got int"),
    ("goodnews", GOOD, '[{"image_id": "a_1"}]', "field 'captioning' must be str, got nothing"),
    ("goodnews", GOOD, derived(image_id="../a_1"), "which is no plain file name"),
    ("goodnews", OFFICIAL, '{"a": {"images": ["x"]}}', "field 'images' must be dict, got list"),
    ("goodnews", OFFICIAL, '{"a": []}', "row 0: expected an object, got list"),
    ("goodnews", OFFICIAL, INT_CAPTION, r"field 'images\.0' must be str, got int"),
    ("goodnews", OFFICIAL, '{"0": {"images": {"/../x": "t"}}}', "which is no plain file name"),
    ("goodnews", "img_splits.json", None, r"has none of img_splits\.json"),
    ("goodnews", "img_splits.json", '{"a_1": "dev"}', "'dev' is none of train, val, test"),
    ("goodnews", "broken_images.txt", b"\xff\xfe", r"broken_images\.txt is not UTF-8 text"),
    ("flickr30k", FLICKR, '{"dataset": "flickr30k"}', "has no 'images'; expected an object"),
    ("flickr30k", FLICKR, '{"images": {}}', "must hold a JSON list under 'images', got dict"),
    ("flickr30k", FLICKR, image(sentences=[]), "'sentences' must be a list of at least one"),
    ("flickr30k", FLICKR, image(sentences=["text"]), r"'sentences\[0\]' must be dict, got str"),
    ("flickr30k", FLICKR, image(sentences=[{}]), r"'sentences\[0\]\.raw' must be str, got noth"),
    ("flickr30k", FLICKR, image(split="dev"), "field 'split' is 'dev', none of train, val"),
    ("flickr30k", FLICKR, image(split=None), "field 'split' must be str or int, got NoneType"),
    ("flickr30k", FLICKR, image(filepath="../x"), "'../x', which is no plain path below the root"),
    ("flickr30k", FLICKR, image(filename="../x.jpg"), "which is no plain file name"),
    ("tweets", "data.csv", "id,text\n", "must name the columns .* got id, text"),
    ("tweets", "data.csv", CSV + "1,a,b\n", "row 0: 3 fields for 4 columns; is a comma not quoted"),
    ("tweets", "data.csv", CSV + "1,a,yes,0\n", "'text_is_represented' must be 0 or 1, got 'yes'"),
    ("tweets", "data.csv", CSV.encode() + b"1,\xff,1,0\n", "row 0, column 'tweet' .*; fetch it"),
    ("tweets", "data.csv", CSV + '1,"a\\",0,1\n2,"b",1,1\n', "row 0, column 'tweet'; fetch it"),
    ("tweets", "data.csv", CSV + '1,"a \\"b\\" c",0,1\n2,"b,1,1\n', "in row 1, column 'tweet' and"),
    ("twitter100k", "text.txt", None, r"text\.txt does not exist"),
    ("twitter100k", "text.txt", b"\xff\n", r"text\.txt is not UTF-8 text"),
]


@pytest.mark.parametrize(("dataset", "file", "content", "message"), WRONG_FILES)
def test_a_wrong_file_is_a_named_error(dataset, file, content, message, tmp_path):
    layouts.BUILDERS[dataset](tmp_path)
    if file in (OFFICIAL, "img_splits.json"):  # which are read where there is no derived file
        (tmp_path / GOOD).unlink()
    path = tmp_path / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        LOADERS[dataset](tmp_path, DATASETS[dataset][0])
    assert path.name.split(".")[0] in str(raised.value)


@pytest.mark.parametrize(
    ("row", "count"),
    [
        ({"caption": "x" * 1_000_000}, "oversized_captions"),
        ({"caption": "\u00a0\r\n\t"}, "empty_captions"),
        ({"caption": None}, "empty_captions"),
        ({"image_id": "no such picture"}, "missing_pictures"),
        ({"image_id": "IMG-1"}, "missing_pictures"),  # the case of names matters
        ({"image_id": "folder"}, "missing_pictures"),
        ({"image_id": "pipe"}, "missing_pictures"),
        ({"image_id": "dangling"}, "missing_pictures"),
        ({"image_id": "itself"}, "missing_pictures"),
        ({"image_id": "x" * 5000}, "missing_pictures"),
        ({"image_id": "leaves"}, "outside_root"),
        ({"image_id": "img-2"}, "repeated_ids"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_and_counted(row, count, tmp_path):
    root = tmp_path / "root"
    layouts.n24news(root)
    (root / "imgs" / "folder.jpg").mkdir()
    os.mkfifo(root / "imgs" / "pipe.jpg")
    (root / "imgs" / "leaves.jpg").symlink_to(save(tmp_path / "secret.jpg", 1))
    (root / "imgs" / "itself.jpg").symlink_to("itself.jpg")
    (root / "imgs" / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    rows = [layouts.article(f"img-{n}", n) for n in (1, 2, 4)]
    layouts.write_json(root / N24, [*rows[:2], {**rows[2], **row}])
    pairs, report = LOADERS["n24news"](root, "train")
    assert [pair.id for pair in pairs] == ["img-1", "img-2"]
    assert getattr(report, count) == report.left_out == 1


@pytest.mark.parametrize("name", ["imgs", N24, CAPS])
def test_a_link_that_leaves_the_root_is_refused(name, tmp_path):
    root = tmp_path / "root"
    layouts.n24news(root)
    shutil.move(root / name, tmp_path / "elsewhere")
    (root / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link that leads out of"):
        LOADERS["n24news"](root, "train")


def test_a_link_within_the_root_and_a_link_to_the_root_are_fine(tmp_path):
    layouts.n24news(tmp_path / "root")
    whole = LOADERS["n24news"](tmp_path / "root", "train")[0]
    shutil.move(tmp_path / "root" / "imgs", tmp_path / "root" / "large")
    (tmp_path / "root" / "imgs").symlink_to("large")
    (tmp_path / "link").symlink_to("root")
    pairs = LOADERS["n24news"](tmp_path / "link", "train")[0]
    assert [pair.id for pair in pairs] == [pair.id for pair in whole]


def test_a_named_pipe_in_place_of_a_data_file_does_not_block(tmp_path):
    layouts.n24news(tmp_path)
    (tmp_path / N24).unlink()
    os.mkfifo(tmp_path / N24)
    with pytest.raises(ValueError, match="is not a regular file"):
        LOADERS["n24news"](tmp_path, "train")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    layouts.n24news(tmp_path)

    def refuse(path):  # chmod does not keep root out
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=r"cannot list .*imgs: .*make it readable"):
        LOADERS["n24news"](tmp_path, "train")


@pytest.mark.parametrize("dataset", ["n24news", "visualnews", "goodnews", "twitter100k"])
def test_a_missing_picture_folder_is_named(dataset, tmp_path):
    layouts.BUILDERS[dataset](tmp_path)
    shutil.rmtree(tmp_path / ("imgs" if dataset == "n24news" else "images"))
    with pytest.raises(FileNotFoundError, match="expected below the root"):
        load_pairs(dataset, DATASETS[dataset][0], root=tmp_path)


def test_a_missing_folder_of_some_pictures_leaves_their_rows_out(tmp_path):
    layouts.visualnews(tmp_path)
    shutil.rmtree(tmp_path / "images" / "bbc" / "images")
    rows = json.loads((tmp_path / VIS).read_text())
    rows += [layouts.news(90 + n, f"{'x' * n}/images/0.jpg") for n in (5, 5000)]
    layouts.write_json(tmp_path / VIS, rows)
    pairs, report = LOADERS["visualnews"](tmp_path, "train")
    assert report.missing_pictures == 6
    assert not any("/bbc/" in str(pair.image) for pair in pairs)


# ----------------------------------------------------------------------------------------- JSON

ROWS = [
    {"a": "Zoë 東京 ☕ \u2028", "b": [1, 2.5, {"c": None}]},
    *(12, -3.25e10, 'text with ] and } and \\ and "', [], {}, True, None, 1.5, [[["deep"]]]),
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 16, 1000])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("escape", [True, False])
def test_rows_and_entries_wherever_a_chunk_ends(chunk, indent, escape, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    path = tmp_path / "a.json"

    def written(value):
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=escape), encoding="utf-8")
        return path

    assert list(iter_rows(written(ROWS))) == ROWS
    named = {f"ключ {number}": row for number, row in enumerate(ROWS)}
    assert list(iter_entries(written(named))) == list(named.items())
    below = {"before": ROWS, "images": ROWS, "after": {"images": 3}}
    assert list(iter_rows(written(below), "images")) == ROWS


@pytest.mark.parametrize("text", ["[]", " [ ] \n", "\ufeff[]"])
def test_an_empty_list_has_no_rows(text, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert list(iter_rows(path)) == []


def test_a_cut_file_gives_its_whole_rows_first_and_names_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 8)
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"a": 2}, {"a": ')
    rows = iter_rows(path)
    assert [next(rows), next(rows)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(ValueError, match=r"a\.json is not JSON \(.*row 2\); fetch it again"):
        next(rows)


def test_an_unclosed_row_is_not_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", 64)
    monkeypatch.setattr(reading, "_MAX_ROW", 1000)
    path = tmp_path / "a.json"
    path.write_text('[{"a": "' + "x" * 100_000)
    with pytest.raises(ValueError, match="no value ends within 1000 characters, row 0"):
        list(iter_rows(path))


# ------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", [*BROKEN, "folder", "pipe", "missing"])
def test_what_is_no_picture_is_a_named_error_and_does_not_block(kind, tmp_path):
    content, message = BROKEN.get(kind, (None, "(not a regular|no such) file"))
    path = tmp_path / "picture.jpg"
    if content is not None:
        path.write_bytes(content)
    elif kind != "missing":
        (path.mkdir if kind == "folder" else lambda: os.mkfifo(path))()
    with pytest.raises(ImageError, match=rf"pair 'x': cannot .*picture\.jpg: .*{message}"):
        Pair("x", path, "caption").load_image()
