"""The tables' variants, the controls' explanations, and the sweep that trains and measures them."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from entityclip import results
from entityclip.config import EntityCLIPConfig, load_profile
from entityclip.datasets.newsroom.outlet_a import newsroom_pairs
from entityclip.evaluation.inspection import mixed_embeddings
from entityclip.evaluation.ranks import both_ranks
from entityclip.evaluation.retrieval import retrieve_ascl as retrieve
from entityclip.evaluation.retrieval import similarities
from entityclip.experiments import commands, probes
from entityclip.experiments import sweep as sweeping
from entityclip.experiments.experiment import Experiment
from entityclip.experiments.measure import (
    measure,
    measured_ranks,
    store_curves,
    stored_ranks,
)
from entityclip.experiments.probes import (
    measure_by_name,
    measure_leak,
    measure_matching,
    measure_names_cut,
)
from entityclip.experiments.splits import replace_explanations
from entityclip.experiments.sweep import measure_variant, ship_rows, sweep
from entityclip.models.ascl import AsCL
from entityclip.models.entityclip import EntityCLIP
from entityclip.reporting import catalogue
from entityclip.reporting.curves import seed_curves
from entityclip.reporting.differences import difference_table
from entityclip.results import find_rows, read_log, read_rows, rows_of
from entityclip.statistics import recall_at_k
from entityclip.variants import CONDITIONS, FLOORS, LEAK, TABLES, VARIANTS, Variant
from tests.experiments.test_experiments import TINY


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(results, "SHIPPED", tmp_path / "shipped")
    return tmp_path


def experiment(seed=0, **settings):
    return Experiment(
        load_profile("smoke", seed=seed, settings={**TINY, **settings}), progress=False
    )


def seeds_of(rows):
    return rows.groupby("variant")["seed"].unique().map(sorted).to_dict()


def test_every_table_names_variants_and_every_variant_is_in_a_table():
    assert {name for table in TABLES.values() for name in table} == set(VARIANTS)
    assert set(LEAK) <= set(VARIANTS)
    for table in TABLES.values():
        assert len(set(table)) == len(table)


def test_variants_are_different_models_or_different_data():
    base = Experiment(load_profile("smoke"))
    seen = {}
    for name, variant in VARIANTS.items():
        made_of = (base.config(name), variant.finetuned, variant.explanations, variant.method,
                   variant.after)  # fmt: skip
        assert made_of not in seen, f"{name} is {seen[made_of]}"
        seen[made_of] = name


def test_a_variant_with_a_misspelt_override_is_refused():
    with pytest.raises(ValueError, match="typo: EntityCLIPConfig has no image_expert"):
        Variant("typo", "?", "?", {"image_expert": 1})
    with pytest.raises(ValueError, match="typo: AsCLConfig has no image_experts"):
        Variant("typo", "?", "?", {"image_experts": 1}, method="ascl")


def test_shuffled_explanations_are_the_others():
    pairs = newsroom_pairs("train", 50)
    shuffled = replace_explanations(pairs, "shuffled", seed=3)
    assert sorted(p.explanation for p in shuffled) == sorted(p.explanation for p in pairs)
    for before, after in zip(pairs, shuffled, strict=True):
        assert before.explanation != after.explanation
        assert replace(after, explanation=before.explanation) == before
    assert shuffled == replace_explanations(pairs, "shuffled", seed=3)
    assert shuffled != replace_explanations(pairs, "shuffled", seed=4)


def test_random_explanations_keep_lengths_and_words():
    pairs = newsroom_pairs("train", 20)
    drawn = replace_explanations(pairs, "random", seed=1)
    before, after = ([p.explanation.split() for p in side] for side in (pairs, drawn))
    assert sorted(itertools.chain(*before)) == sorted(itertools.chain(*after))
    assert list(map(len, before)) == list(map(len, after))
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_other_controls_and_what_is_refused():
    pairs = newsroom_pairs("train", 3)
    assert replace_explanations(pairs, "own") == pairs
    told = [p.explanation for p in replace_explanations(pairs, "caption")]
    assert told == [p.caption for p in pairs]
    for given, control, message in (
        (pairs, "wrong", "no control 'wrong'"),
        (pairs[:1], "shuffled", "nobody to swap"),
        (newsroom_pairs("generic", 2), "random", "2 pairs have no .*, the first is 'generic-0-0"),
    ):
        with pytest.raises(ValueError, match=message):
            replace_explanations(given, control)


@pytest.fixture(scope="module")
def model(backbone):
    torch.manual_seed(0)
    return EntityCLIP(backbone, EntityCLIPConfig(2, 1, 2)).eval()


def test_mixed_embeddings_are_those_of_training(model, make_dataset):
    data = make_dataset("test", 6, explanations=True)
    own = torch.arange(6)
    images, texts = mixed_embeddings(model, data, own, own)
    batch = data.collate([data[i] for i in range(6)])
    with torch.no_grad():
        outputs = model(batch.images, batch.captions, batch.explanations, batch.image_keys)
    torch.testing.assert_close(images, outputs.image_moe, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(texts, outputs.text_moe, atol=1e-5, rtol=1e-5)
    # each side follows its own explanation only
    other = own.roll(1)
    crossed_images, crossed_texts = mixed_embeddings(model, data, other, own)
    assert not torch.allclose(crossed_images, images, atol=1e-4)
    torch.testing.assert_close(crossed_texts, texts)


def test_leak_rows_are_recall_between_mixed_embeddings(runs, model):
    base = experiment()
    rows = measure_leak(base, model, "entityclip", "test")
    found = {(r["metric"], r["direction"]): r["value"] for r in rows}
    assert len(found) == 2 * len(CONDITIONS)
    data = base.dataset("test", explanations=True)
    images, texts = mixed_embeddings(model, data, torch.arange(8), torch.arange(8))
    expected = recall_at_k(both_ranks(texts, images)[0], [1])["R@1"]
    assert found["R@1, own", "text_to_image"] == expected
    assert len(find_rows(base.profile, "leak")) == len(rows)
    plain = EntityCLIP(model.backbone, EntityCLIPConfig(1, 1, 0))
    with pytest.raises(ValueError, match="no explanation experts"):
        measure_leak(base, plain, "no-explanation-experts", "test")


def test_matching_rows_count_right_answers(runs, model):
    base, model = experiment(), copy.deepcopy(model)
    with torch.no_grad():  # a head that always says "match"
        model.matching.head.weight.zero_()
        model.matching.head.bias.copy_(torch.tensor([-1.0, 1.0]))
    found = {r["metric"]: r for r in measure_matching(base, model, "entityclip", "test")}
    assert found["accuracy, matched"]["value"] == 100
    assert found["accuracy, wrong text"]["value"] == 0
    assert found["accuracy, wrong image"]["value"] == 0
    assert found["accuracy, matched"]["n_queries"] == 8
    plain = EntityCLIP(model.backbone, EntityCLIPConfig(1, 1, 1, matching="none"))
    with pytest.raises(ValueError, match="no matching head"):
        measure_matching(base, plain, "no-matching", "test")


def test_recall_by_name_is_that_of_the_queries_of_each_bin(runs, model, monkeypatch):
    base = experiment()
    measured_ranks(base, lambda: model, "clip", "test", shipped=False)
    held = np.array([0, 0, 2, 3, -1, 25, 25, 25])  # of a bin of one query there is no interval
    monkeypatch.setattr(type(base), "rarest_names", lambda *_: held)
    rows = measure_by_name(base, ["clip", "entityclip"], ["test"])
    assert set(rows["variant"]) == {"clip"}  # what has no ranks is left out
    found = dict(zip(rows["metric"], rows["value"], strict=True))
    ranks = stored_ranks(base, "clip", "test").text_to_image
    for name, here in (("0", [0, 1]), ("1–3", [2, 3]), ("20–99", [5, 6, 7])):
        expected = 100 * (ranks[here] <= 1).mean()
        assert found[f"R@1, rarest name in {name} training captions"] == expected
    assert len(found) == 6
    monkeypatch.delattr(probes, "measurement_rows")  # stored, so not made again
    assert measure_by_name(base, ["clip"], ["test"]).equals(rows)
    assert find_rows(base.profile, "names")["n_queries"].tolist() == [2, 2, 2, 2, 3, 3]


def test_captions_without_their_names_are_asked(runs, model):
    base = experiment()
    rows = measure_names_cut(base, model, "clip", "test")
    assert {row["metric"] for row in rows} == {"R@1, names cut", "R@10, names cut"}
    served = base.dataset("test", names_cut=True)
    for pair, whole, names in zip(
        served.pairs, base.pairs("test"), base.names("test"), strict=True
    ):
        assert names
        assert not any(name in pair.caption for name in names)
        assert pair.image_key == whole.image_key
    ranks = both_ranks(*_features(model, served))[0]
    assert rows[0]["value"] == recall_at_k(ranks, [1])["R@1"]


def _features(model, served):
    batch = served.collate([served[i] for i in range(len(served))])
    with torch.inference_mode():
        return model.encode_text(batch.captions), model.encode_image(batch.images)


def test_a_sweep_measures_each_once_ships_and_is_not_repeated(runs, monkeypatch):
    both = [experiment(), experiment(seed=1)]
    sweep(both, ["zero-shot", "entityclip", "shuffled-explanations"], keep=["entityclip"])
    ranks = find_rows(both[0].profile, "ranks")
    assert seeds_of(ranks) == {
        "zero-shot": [0],
        "entityclip": [0, 1],
        "shuffled-explanations": [0, 1],
    }
    assert set(find_rows(both[0].profile, "matching")["variant"]) == {"entityclip"}
    probed = find_rows(both[0].profile, "leak")["variant"]
    assert set(probed) == {"entityclip", "shuffled-explanations"}
    kept = {p.parent.name.split("-seed")[0] for p in runs.rglob("best.safetensors")}
    assert kept == {"pretraining", "entityclip"}

    curves = find_rows(both[0].profile, "curves")
    assert set(curves["variant"]) == {"entityclip", "shuffled-explanations"}
    for one in both:
        steps, epochs = read_log(one.logs()["entityclip"])
        own = curves[(curves["variant"] == "entityclip") & (curves["seed"] == one.seed)]
        by_split = {split: rows["value"].tolist() for split, rows in own.groupby("split")}
        means = steps.groupby("epoch")["vtc"].mean()
        assert by_split["train"] == pytest.approx(means.tolist())
        assert by_split["val"] == pytest.approx(epochs["val_vtc"].tolist())
    assert set(seed_curves(curves)["seeds"]) == {2}
    assert store_curves(both[0], ["entityclip", "zero-shot"]) == 0

    counts = ship_rows(both[0])
    assert counts["ranks"] == len(ranks)
    shipped = list((runs / "shipped" / "smoke").iterdir())
    before = [file.read_bytes() for file in shipped]
    ship_rows(both[0])
    assert before == [file.read_bytes() for file in shipped]

    # elsewhere, the shipped rows count as done
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(runs / "elsewhere"))
    assert not measure_variant(experiment(seed=1), "shuffled-explanations")
    assert not list((runs / "elsewhere").rglob("results/*.jsonl"))
    assert not list((runs / "elsewhere").rglob("*.safetensors"))


def test_deleting_a_row_removes_it_and_other_data_stay_aside(runs):
    base = experiment()
    sweep([base], ["zero-shot"])
    ship_rows(base)
    path = runs / "shipped" / "smoke" / "retrieval.jsonl"
    for file in (runs / "runs").rglob("*.jsonl"):
        file.unlink()
    head, *lines = path.read_text().splitlines(keepends=True)  # what the rows share comes first
    whole = find_rows(base.profile, "retrieval")
    path.write_text("".join([head, *lines[1:]]))
    fewer = find_rows(base.profile, "retrieval")
    key = ["direction", "metric"]
    gone = set(map(tuple, whole[key].values)) - set(map(tuple, fewer[key].values))
    assert gone == {tuple(json.loads(lines[0])[name] for name in key)}
    foreign = json.loads(lines[0]) | {"data_fingerprint": "0" * 16}
    path.write_text("".join([head, *lines[1:]]) + json.dumps(foreign) + "\n")
    assert len(read_rows(path)) == len(whole)
    # whoever has the data at hand refuses rows of others; elsewhere the latest count
    present = {"data": base.fingerprint("test"), "trained": base.trained_on("zero-shot")}
    identities = [base.identity("zero-shot")]
    assert len(rows_of(base.profile, "retrieval", identities, **present)) == len(fewer)
    assert len(find_rows(base.profile, "retrieval")) == len(whole)
    again = json.loads(lines[1]) | {"created": "2999-01-01T00:00:00+00:00", "value": 1.5}
    path.write_text("".join([head, *lines]) + json.dumps(again | {"data_fingerprint": "0"}) + "\n")
    found = find_rows(base.profile, "retrieval")
    assert len(found) == len(whole)
    assert 1.5 in found["value"].tolist()
    assert 1.5 not in rows_of(base.profile, "retrieval", identities, **present)["value"].tolist()
    trained = json.loads(lines[1]) | {"trained_fingerprint": "0", "value": 1.5}
    path.write_text("".join([head, *lines[:1], *lines[2:]]) + json.dumps(trained) + "\n")
    assert len(rows_of(base.profile, "retrieval", identities, **present)) == len(fewer)
    unsaid = {key: value for key, value in trained.items() if key != "trained_fingerprint"}
    path.write_text("".join([head, *lines[:1], *lines[2:]]) + json.dumps(unsaid) + "\n")
    assert 1.5 in rows_of(base.profile, "retrieval", identities, **present)["value"].tolist()


def test_the_command_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        commands.sweep(["--variants", "klip"])
    assert "klip" in capsys.readouterr().err


# ------------------------------------------------------------------------------------ neighbours


def test_itr_starts_from_its_own_pretraining_of_the_shared_start(runs):
    base = experiment()
    folder = base.pretrain_itr()
    shared, own = base.build("zero-shot"), base.build("itr")
    pretrained = load_file(folder / "best.safetensors")
    ours = own.clip_state_dict()
    for name, tensor in ours.items():
        assert torch.equal(tensor.cpu(), pretrained[f"model.backbone.clip.{name}"]), name
    moved = [k for k, v in shared.clip_state_dict().items() if not torch.equal(v, ours[k])]
    assert {"visual", "transformer"} <= {name.split(".")[0] for name in moved}
    assert base.config("itr") == base.config("clip")
    itr, clip = base.identity("itr"), base.identity("clip")
    assert {k for k in itr if itr[k] != clip.get(k)} == {"variant", "start"}
    assert itr["start"]["from"] == clip["start"]
    # another seed is another pretraining, and the same row of a table
    other = experiment(seed=1)
    assert other.pretrain_itr() != folder
    assert other.identity("itr") | {"seed": 0} == itr
    changed = {"itr": {"objective": {"iterations": 1}}}
    assert experiment(**changed).identity("itr") != itr
    assert experiment(**changed).identity("clip") == clip


def test_ascl_reads_the_same_pairs_and_a_second_caption_of_each(runs):
    base = experiment()
    model = base.build("ascl")
    assert isinstance(model, AsCL)
    served = base.dataset("train", others=True)
    assert served.pairs == base.dataset("train").pairs
    batch = served.collate([served[i] for i in range(16)])
    tokens = base.backbone.tokenize(base.second_captions("train"))
    assert torch.equal(batch.others, tokens)
    assert (batch.others != batch.captions).any(1).all()
    own = {k: v for k, v in base.identity("ascl").items() if k not in ("variant", "model")}
    assert own == {k: base.identity("clip")[k] for k in own}
    # the towers before fine-tuning are CLIP's own
    clip = base.build("clip").backbone.state_dict()
    assert all(torch.equal(v, clip[k]) for k, v in model.backbone.state_dict().items())


def test_neighbours_are_swept_once_and_stand_in_the_tables(runs, monkeypatch):
    both = [experiment(), experiment(seed=1)]
    names = ["clip", "itr", "ascl"]
    sweep(both, names, keep=[])
    rows, ranks = find_rows(both[0].profile, "retrieval"), find_rows(both[0].profile, "ranks")
    for found in (rows, ranks):
        seeds = found.groupby("variant")["seed"].unique().map(sorted).to_dict()
        assert seeds == {name: [0, 1] for name in names}
    table = catalogue.draw(both[0].profile, "retrieval").table
    assert set(table["variant"]) == {*names, *FLOORS}
    assert (table["seeds"] == 2).all()
    shown = difference_table(ranks, [("itr", "clip"), ("ascl", "clip")])
    assert (shown["seeds"] == 2).all()
    sums = catalogue.draw(both[0].profile, "main_rsum").table.set_index("variant")
    recalls = rows[rows["metric"].isin(["R@1", "R@5", "R@10"]) & (rows["split"] == "test")]
    for name in names:
        mean = recalls[recalls["variant"] == name].groupby("seed")["value"].sum().mean()
        assert sums.loc[name, "RSUM"] == pytest.approx(mean)
        assert sums.loc[name, "low"] <= mean <= sums.loc[name, "high"]

    # AsCL's ranks are those of its S
    data, model = both[0].dataset("test"), both[0].load("ascl")
    similarity, image_of = similarities(model, data, progress=False)
    expected = retrieve(similarity, image_of)
    stored_here = stored_ranks(both[0], "ascl", "test")
    assert np.array_equal(stored_here.text_to_image, expected.text_to_image)
    assert np.array_equal(stored_here.image_to_text, expected.image_to_text)
    assert np.array_equal(stored_here.image_of, expected.image_of)

    monkeypatch.setattr(Experiment, "load", lambda *_: pytest.fail("trained again"))
    sweep([experiment(), experiment(seed=1)], names, keep=[])


def test_what_a_profile_lacks_is_left_out_with_the_reason(runs, caplog):
    files = {"dataset": "n24news", "data_root": "/nowhere", "explanation_source": "own"}
    base = experiment(**files, itr=None)
    reasons = {name: why for name in TABLES["main"] if (why := base.lacks(name))}
    assert set(reasons) == {"itr", "ascl"}
    assert "no `itr` block" in reasons["itr"]
    assert "n24news has one caption a picture and AsCL's richer text joins two" in reasons["ascl"]
    with pytest.raises(ValueError, match="ascl cannot be trained: n24news has one caption"):
        base.finetune("ascl")
    assert not measure_variant(base, "ascl")
    assert measure(base, ["itr", "ascl"], ["test"]) == {}
    said = [r.getMessage() for r in caplog.records]
    assert any(line.startswith("ascl is left out: n24news has one caption") for line in said)
    poorer = experiment(**files, ascl={"model": {"richer": False}})
    assert poorer.lacks("ascl") is None
    unlabelled = {"dataset": "twitter100k", "split": "all", "data_root": None}
    assert "needs itr.unlabelled.data_root" in experiment(itr={"unlabelled": unlabelled}).lacks(
        "itr"
    )
    assert "no `ascl` block" in experiment(ascl=None).lacks("ascl")
    assert experiment(dataset="flickr30k", data_root="/nowhere").lacks("ascl") is None
    # nothing is lacking of a table that cannot be had
    lacking = {name for name, _ in sweeping.missing_runs(experiment(itr=None, ascl=None), "main")}
    assert lacking == set(TABLES["main"]) - {"itr", "ascl"}
