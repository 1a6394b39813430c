"""ITR's pretraining: pseudo-labels, the objective against a literal one, runs, what stops them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from entityclip.checkpoints import CheckpointError, read_meta
from entityclip.config import ClassifierConfig, ITRConfig, ProfileError, load_profile
from entityclip.datasets.captions import with_generated
from entityclip.datasets.dataset import PairDataset
from entityclip.models.clip import create_backbone, load_clip_weights
from entityclip.models.itr import ITRModel, cluster
from entityclip.training import itr
from entityclip.training.itr import make_optimizer, pretrain_itr, subset_rows
from entityclip.training.processes import TrainingError
from tests.killing import differences_between
from tests.training_setup import read_log, stopped_at

CONFIG = ITRConfig(iterations=3, subset=16, batch_size=8, clusters=3, lr=1e-4, seed=3)
ALL = ("cluster_image", "cluster_generated", "contrast")


@pytest.fixture(scope="module")
def sets(make_dataset):
    return make_dataset("relation_unlabelled", 32), make_dataset("relation_test", 16)


@pytest.fixture(scope="module")
def generated(sets, backbone):
    return PairDataset(
        with_generated(sets[0].pairs), backbone.preprocess, backbone.tokenize,
        with_explanations=True, cache=True,
    )  # fmt: skip


def fresh():
    torch.manual_seed(5)
    return create_backbone("newsroom-tiny")


def pretrain(data, folder, config=CONFIG, start=None, **options):
    return pretrain_itr(start or fresh(), data, config, folder, progress=False, **options)


# -------------------------------------------------------------------------------------- clustering


@pytest.mark.parametrize("mini_batch_above", [1000, 10])
def test_clusters_are_the_groups_there_are(mini_batch_above):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 80)
    features = 10 * np.eye(4, 6, dtype=np.float32)[truth] + rng.normal(size=(80, 6)) * 0.1
    found = cluster(features.astype(np.float32), 4, seed=1, mini_batch_above=mini_batch_above)
    assert {tuple(np.unique(found[truth == t])) for t in range(4)} == {(0,), (1,), (2,), (3,)}


def test_empty_clusters_are_closed_up():
    features = np.repeat(np.eye(2, 5, dtype=np.float32), 6, axis=0)
    assert sorted(np.bincount(cluster(features, 4, seed=0))) == [6, 6]
    assert cluster(np.ones((6, 3), np.float32), 2, seed=0).tolist() == [0] * 6


@pytest.mark.parametrize(
    ("features", "k", "message"),
    [
        (np.zeros((3, 2)), 4, r"k is 4 for features of shape \(3, 2\).*lower `clusters` or take a"),
        (np.zeros((3, 2)), 1, "k is 1"),
        (np.array([[0.0], [np.nan], [1.0]]), 2, "1 of 3 embeddings are not finite: row 1"),
    ],
)
def test_bad_clusterings_are_refused(features, k, message):
    with pytest.raises(ValueError, match=message):
        cluster(features, k, seed=0)


# --------------------------------------------------------------------------------------- objective


def literal_features(clip, images, captions):
    """What open_clip's towers hand to their projections, seen by hooks."""
    seen = {}
    hooks = [
        clip.visual.ln_post.register_forward_hook(lambda *a: seen.update(image=a[2])),
        clip.ln_final.register_forward_hook(lambda *a: seen.update(text=a[2])),
    ]
    clip.encode_image(images), clip.encode_text(captions)
    for hook in hooks:
        hook.remove()
    image = seen["image"] if seen["image"].ndim == 2 else seen["image"][:, 0]
    return seen["text"][torch.arange(len(captions)), captions.argmax(-1)], image


def literal_losses(model, batch, labels):
    """Pair by pair, term by term, in words of the paper."""
    clip, n, terms = model.backbone.clip, len(batch), {}
    text, image = literal_features(clip, batch.images, batch.captions)
    for task in ("cluster_image", "cluster_generated"):  # both read the picture
        total = 0
        for i in range(n):
            logits = model.heads[task](torch.cat([text[i], image[i]]))
            total = total - logits.log_softmax(0)[labels[task][i]]
        terms[task] = total / n
    text, image = text @ clip.text_projection, image @ clip.visual.proj
    similar = [[torch.cosine_similarity(t, v, dim=0) for v in image] for t in text]
    similar = torch.stack([torch.stack(row) for row in similar]) / model.config.temperature
    total = 0
    for i in range(n):
        total = total - similar[i].log_softmax(0)[i] - similar[:, i].log_softmax(0)[i]
    terms["contrast"] = total / (2 * n)
    loss = 0.2 * terms["cluster_image"] + 1.0 * terms["cluster_generated"] + terms["contrast"]
    return {"loss": loss, **terms}


def test_objective_equals_the_literal_one_forward_and_gradient(generated):
    torch.manual_seed(1)
    model = ITRModel(fresh(), replace(CONFIG, tasks=ALL, temperature=0.7)).train()
    batch = generated.collate([generated[i] for i in range(6)])
    labels = {task: torch.tensor([0, 2, 1, 1, 0, 2]) for task in ("cluster_image",)}
    labels["cluster_generated"] = torch.tensor([1, 1, 0, 2, 2, 0])
    ours = model.losses(model.encode(batch), labels)
    literal = literal_losses(model, batch, labels)
    for name in literal:
        torch.testing.assert_close(ours[name], literal[name], rtol=1e-5, atol=1e-6)
    parameters = [p for n, p in model.named_parameters() if "logit_scale" not in n]
    gradients = [torch.autograd.grad(side["loss"], parameters) for side in (ours, literal)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_clusters_read_what_their_task_names_before_projection(generated, monkeypatch, tmp_path):
    """[text; image] and [text; generated caption], of the towers as they are."""
    seen = []

    def watch(features, k, **_):
        seen.append(torch.from_numpy(features))
        return np.arange(len(features)) % k

    monkeypatch.setattr(itr, "cluster", watch)
    backbone = fresh().eval()
    config = replace(CONFIG, iterations=1, tasks=ALL)
    rows = subset_rows(len(generated), config.subset, config.seed, 0)
    batch = generated.collate([generated[row] for row in rows])
    with torch.no_grad():
        text, image = literal_features(backbone.clip, batch.images, batch.captions)
        other, _ = literal_features(backbone.clip, batch.images, batch.explanations)
    pretrain(generated, tmp_path, config, backbone)
    for found, partner in zip(seen, (image, other), strict=True):
        literal = torch.cat([text, partner], dim=1)
        torch.testing.assert_close(found, literal, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ALL)
def test_every_task_alone_trains_both_towers(generated, task):
    model = ITRModel(fresh(), replace(CONFIG, tasks=(task,))).train()
    batch = generated.collate([generated[i] for i in range(6)])
    labels = {} if task == "contrast" else {task: torch.tensor([0, 2, 1, 1, 0, 2])}
    model.losses(model.encode(batch), labels)["loss"].backward()
    clip = model.backbone.clip
    for tower in (clip.visual.transformer, clip.transformer):
        assert all(p.grad is not None and p.grad.any() for p in tower.parameters())


def test_an_optimizer_group_a_rate():
    model = ITRModel(fresh(), CONFIG)
    rates = {
        id(p): (group["lr"], group["weight_decay"])
        for group in make_optimizer(model, CONFIG).param_groups
        for p in group["params"]
    }
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        lr = 1e-4 if name.startswith("backbone.") else pytest.approx(1e-2)
        assert rates[id(parameter)] == (lr, 0.01 if parameter.ndim > 1 else 0.0), name


@pytest.mark.parametrize(("n", "size"), [(35, 16), (32, 16), (17, 5), (7, 7), (9, 8)])
def test_no_pair_comes_again_before_all_have_come(n, size):
    stream = []
    for iteration in range(12):
        rows = subset_rows(n, size, 3, iteration)
        assert len({*rows}) == len(rows) == size
        stream += rows
        fewest, most = min(map(stream.count, range(n))), max(map(stream.count, range(n)))
        # a subset that crosses into the next epoch takes all that is left, then others
        assert most - fewest <= 1, iteration
    assert sorted(stream[:n]) == list(range(n))


def test_a_subset_follows_its_seed_and_is_no_larger_than_the_set():
    assert subset_rows(35, 16, 0, 0) == subset_rows(35, 16, 0, 0) != subset_rows(35, 16, 1, 0)
    assert subset_rows(32, 16, 0, 0) != subset_rows(32, 16, 0, 2)
    assert sorted(subset_rows(5, 16, 0, 4)) == [0, 1, 2, 3, 4]


# -------------------------------------------------------------------------------------------- runs


def test_a_run_learns_logs_and_saves(sets, tmp_path):
    backbone = fresh()
    start = {k: v.clone() for k, v in backbone.clip.state_dict().items()}
    config = replace(CONFIG, iterations=8, lr=3e-4)
    result = pretrain(sets[0], tmp_path, config, backbone, val_set=sets[1])
    rows = read_log(tmp_path)
    steps = [row for row in rows if "loss" in row]
    iterations = [row for row in rows if "sizes" in row]
    assert [row["step"] for row in steps] == list(range(1, 17))
    assert {"loss", "contrast", "cluster_image"} < set(steps[0])
    assert [sum(row["sizes"]["cluster_image"]) for row in iterations] == [16] * 8
    contrasts = [row["contrast"] for row in steps]
    assert sum(contrasts[-4:]) < sum(contrasts[:4])
    best = min(iterations, key=lambda row: row["val_contrast"])
    assert result.best_epoch == best["iteration"]
    assert json.loads((tmp_path / "run.json").read_text())["val_contrast"] == best["val_contrast"]
    loaded = create_backbone("newsroom-tiny")
    load_clip_weights(loaded, tmp_path / "last.safetensors")
    trained = backbone.clip.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in loaded.clip.state_dict().items())
    moved = [k for k in start if not torch.equal(start[k], trained[k])]
    assert {"visual.proj", "text_projection"} < set(moved)
    assert "logit_scale" not in moved


@pytest.mark.parametrize("tasks", [("cluster_image",), ("cluster_generated",), ("contrast",), ALL])
def test_tasks_run_alone_and_together(sets, generated, tmp_path, tasks):
    data = generated if "cluster_generated" in tasks else sets[0]
    config = replace(CONFIG, tasks=tasks, iterations=1)
    val = None if data is generated else sets[1]
    result = pretrain(data, tmp_path, config, val_set=val)
    row = read_log(tmp_path)[0]
    assert {*tasks} == {*row} & {*ALL}
    assert row["loss"] == pytest.approx(sum(config.weight(task) * row[task] for task in tasks))
    assert result.best.exists()


@pytest.mark.parametrize("step", [1, 3, 5])  # in the first, second and third iteration
def test_an_interrupted_run_ends_as_the_uninterrupted(sets, tmp_path, step):
    def go(name):
        return pretrain(sets[0], tmp_path / name, val_set=sets[1])

    go("whole")
    with stopped_at(step, itr._Pretrainer):
        go("parts")
    torch.manual_seed(99)  # whatever happens between the two processes
    assert go("parts").resumed_from == (step // 2 or None)
    assert differences_between(tmp_path / "whole", tmp_path / "parts") == []


def test_heads_are_drawn_anew_each_iteration(sets, tmp_path, monkeypatch):
    seen = []
    original = ITRModel.reset_heads

    def reset(self):
        original(self)
        seen.append(self.heads["cluster_image"].weight.detach().clone())

    monkeypatch.setattr(ITRModel, "reset_heads", reset)
    pretrain(sets[0], tmp_path)
    assert len(seen) == 3
    assert not torch.equal(seen[0], seen[1])
    # the second moment of a head remembers only its own iteration's two steps
    state = load_file(tmp_path / "last.safetensors")
    steps = {int(v) for k, v in state.items() if k.startswith("optimizer.") and k.endswith(".step")}
    assert steps == {2, 6}


def test_collapsed_clusters_are_left_out_not_learned(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(itr, "cluster", lambda found, *_, **__: np.zeros(len(found), np.int64))
    pretrain(sets[0], tmp_path / "both")
    assert "cluster_image" not in read_log(tmp_path / "both")[0]
    assert read_log(tmp_path / "both")[2]["sizes"] == {"cluster_image": [16]}
    alone = replace(CONFIG, tasks=("cluster_image",))
    assert pretrain(sets[0], tmp_path / "one", alone).steps == 0


def test_bad_runs_are_refused(sets, tmp_path):
    def go(config, **options):
        pretrain(sets[0], tmp_path, replace(CONFIG, **config), **options)

    with pytest.raises(TrainingError, match="32 pairs to pretrain on are fewer than a batch of 40"):
        go({"batch_size": 40, "subset": 40})
    with pytest.raises(TrainingError, match=r"or 33 clusters; lower batch_size and clusters"):
        go({"clusters": 33, "subset": 40})
    with pytest.raises(TrainingError, match="16 held-out pairs don't fill one batch of 32"):
        go({"batch_size": 32, "subset": 32}, val_set=sets[1])
    with pytest.raises(ValueError, match=r"make the data set of `datasets\.captions\.with_gener"):
        go({"tasks": ("cluster_generated",)})
    go({"iterations": 1}, identity={"start": "a"})
    assert read_meta(tmp_path / "last.safetensors")["identity"]["start"] == "a"
    with pytest.raises(CheckpointError, match=r"another run .start: 'a' there, 'b' here"):
        go({"iterations": 1}, identity={"start": "b"})


def test_a_loss_that_is_no_number_stops_the_run(sets, tmp_path):
    backbone = fresh()
    with torch.no_grad():
        backbone.clip.text_projection.fill_(float("nan"))
    config = replace(CONFIG, tasks=("contrast",))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1; there is no checkpoint yet"):
        pretrain(sets[0], tmp_path, config, backbone)


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ITRConfig(tasks=()), r"tasks is \[\]; name some of cluster_image"),
        (lambda: ITRConfig(tasks=("contrast",) * 2), "once"),
        (lambda: ITRConfig(tasks=("ocr",)), "tasks.0\n.*'cluster_image'"),
        (lambda: ITRConfig(clusters=1), "clusters\n.* equal to 2"),
        (lambda: ITRConfig(clusters=50, subset=40), "50 clusters of a subset of 40 pairs"),
        (lambda: ITRConfig(subset=31), "subset is 31, less than a batch of 32"),
        (lambda: ITRConfig(batch_size=1), "batch_size\n.* equal to 2"),
        (lambda: ITRConfig(temperature=0.0), "temperature\n.*than 0"),
        (lambda: ITRConfig(contrast_weight=float("inf")), "contrast_weight\n.* finite"),
        (lambda: ITRConfig(iterations=0), "iterations\n.* equal to 1"),
        (lambda: ClassifierConfig(epochs=0), "epochs\n.* equal to 1"),
        (lambda: ClassifierConfig(lr=-1.0), "lr\n.*than 0"),
        (lambda: ClassifierConfig(weight_decay=-1.0), "weight_decay\n.* equal to 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"objective": {"cluster": 2}}, "itr.objective.cluster: .*; did you mean clusters?"),
        ({"judged": {"limits": 2}}, "itr.judged.limits: .*; did you mean limit?"),
        ({"compared": [["clusters"]]}, "settings.itr.compared.0.0: "),
        ({"objectives": {}}, "itr.objectives: .*; did you mean objective?"),
    ],
)
def test_misspelt_profiles_name_what_there_is(override, message):
    with pytest.raises(ProfileError, match=message):
        load_profile("smoke", settings={"itr": override})


def test_defaults_are_the_authors():
    config = load_profile("n24news").settings.itr.objective
    assert (config.clusters, config.subset, config.batch_size) == (4, 5000, 32)
    assert (config.lr, config.head_lr_scale, config.temperature) == (1e-5, 100, 1.0)
    weights = [config.weight(task) for task in ALL]
    assert weights == [0.2, 1.0, 1.0]
