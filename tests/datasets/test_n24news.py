import json
import logging

import pytest
from PIL import Image

from entityclip.datasets import load_pairs
from entityclip.datasets.sources.n24news import n24news_pairs


def article(number, **change):
    row = {
        "image_id": f"img{number}",
        "caption": f" Caption {number}. ",
        "headline": "A headline",
        "abstract": "An abstract",
        "section": ["Sports", "Travel"][number % 2],
        "article_url": "https://example.org",
        "article_id": f"article{number // 2}",
        "image_url": "https://example.org/x.jpg",
    }
    return {**row, **change}


def write(root, rows, split="train", explanations=None, pictures=None):
    (root / "news").mkdir(parents=True, exist_ok=True)
    (root / "imgs").mkdir(exist_ok=True)
    (root / "news" / f"nytimes_{split}.json").write_text(json.dumps(rows))
    if explanations is not None:
        path = root / "news" / f"CapDsc_mistral_{split}.json"
        path.write_text(json.dumps(explanations))
    for number in range(len(rows)) if pictures is None else pictures:
        Image.new("RGB", (8, 6), (number, 0, 0)).save(root / "imgs" / f"img{number}.jpg")
    return root


def test_pairs_carry_caption_explanation_section_and_group(tmp_path):
    explanations = {
        "img0.jpg": "Plain key.",
        "/home/someone/imgs/img1.jpg": "Unix path.",
        "C:\\data\\img2.jpg": "Windows path.",
        "img3.jpg": "  ",
    }
    root = write(tmp_path, [article(i) for i in range(5)], explanations=explanations)
    pairs, report = n24news_pairs(root, "train")
    assert [pair.id for pair in pairs] == ["img0", "img1", "img2", "img3", "img4"]
    assert pairs[0].caption == "Caption 0."
    assert [pair.explanation for pair in pairs[:3]] == ["Plain key.", "Unix path.", "Windows path."]
    assert pairs[3].explanation is None
    assert pairs[4].explanation is None
    assert [pair.section for pair in pairs[:2]] == ["Sports", "Travel"]
    assert [pair.group for pair in pairs[:3]] == ["article0", "article0", "article1"]
    assert pairs[2].load_image().size == (8, 6)
    assert (report.rows, report.without_explanation) == (5, 2)


def test_val_reads_the_dev_file_and_explanations_are_optional(tmp_path):
    root = write(tmp_path, [article(0)], split="dev")
    pairs, _ = n24news_pairs(root, "val")
    assert [pair.explanation for pair in pairs] == [None]
    assert load_pairs("n24news", "val", root=root) == pairs


def test_what_is_left_out_is_counted_and_logged(tmp_path, caplog):
    rows = [article(i) for i in range(6)]
    rows[1]["caption"] = "  "
    rows[2]["caption"] = None
    rows.append(article(0, caption="again"))
    root = write(tmp_path, rows, pictures=[0, 1, 2, 3, 5])
    with caplog.at_level(logging.WARNING):
        pairs, report = n24news_pairs(root, "train")
    assert [pair.id for pair in pairs] == ["img0", "img3", "img5"]
    assert (report.rows, report.empty_captions) == (7, 2)
    assert (report.missing_pictures, report.repeated_ids) == (1, 1)
    assert "7 rows; left out 2 with an empty caption, 1 without their picture" in caplog.text


def test_a_subset_depends_on_its_seed_only(tmp_path):
    root = write(tmp_path, [article(i) for i in range(20)])
    whole, _ = n24news_pairs(root, "train")
    first, _ = n24news_pairs(root, "train", limit=6, seed=1)
    again, _ = n24news_pairs(root, "train", limit=6, seed=1)
    other, _ = n24news_pairs(root, "train", limit=6, seed=2)
    assert len(first) == 6
    assert first == again
    assert first != other
    assert [pair for pair in whole if pair in first] == first
    assert n24news_pairs(root, "train", limit=50)[0] == whole


def test_nothing_usable_is_an_error(tmp_path):
    root = write(tmp_path, [article(0)], pictures=[])
    with pytest.raises(ValueError, match=r"no usable pair: 1 rows; .* 1 without their picture"):
        load_pairs("n24news", "train", root=root)


def test_missing_files_say_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; expected .*imgs/"):
        n24news_pairs(tmp_path / "nowhere", "train")
    root = write(tmp_path / "root", [article(0)])
    with pytest.raises(FileNotFoundError, match=r"nytimes_dev\.json does not exist"):
        n24news_pairs(root, "val")
    with pytest.raises(ValueError, match="no split 'dev'; there are train, val, test"):
        n24news_pairs(root, "dev")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (article(1, caption=7), r"row 1: field 'caption' must be str, got int"),
        (article(1, image_id=None), r"row 1: field 'image_id' must be str or int, got NoneType"),
        (article(1, image_id=True), r"row 1: field 'image_id' must be str or int, got bool"),
        ({"caption": "x"}, r"row 1: field 'image_id' must be str or int, got nothing"),
        (article(1, section=["a"]), r"row 1: field 'section' must be str, got list"),
        (article(1, article_id=1.5), r"row 1: field 'article_id' must be str or int, got float"),
        ("text", r"row 1: expected an object, got str"),
    ],
)
def test_a_bad_row_names_file_row_and_field(tmp_path, row, message):
    root = write(tmp_path, [article(0), row])
    with pytest.raises(ValueError, match=r"nytimes_train\.json, " + message):
        n24news_pairs(root, "train")


def test_bad_files_are_named(tmp_path):
    root = write(tmp_path, [article(0)])
    path = root / "news" / "nytimes_train.json"
    path.write_text("[{")
    with pytest.raises(ValueError, match=r"nytimes_train\.json is not JSON"):
        n24news_pairs(root, "train")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"nytimes_train\.json is not JSON"):
        n24news_pairs(root, "train")
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"must hold a JSON list, got dict"):
        n24news_pairs(root, "train")
    write(root, [article(0)], explanations={"img0.jpg": 3})
    with pytest.raises(ValueError, match=r"CapDsc_mistral_train\.json, key 'img0\.jpg'.*got int"):
        n24news_pairs(root, "train")
    write(root, [article(0)], explanations=[])
    with pytest.raises(ValueError, match=r"CapDsc_mistral_train\.json must hold a JSON dict"):
        n24news_pairs(root, "train")
