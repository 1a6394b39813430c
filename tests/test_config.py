"""Profiles and overrides: what merges, what is refused and how it is said, what the hash covers."""

import dataclasses
import datetime

import pytest
import yaml

from entityclip import config
from entityclip.config import (
    PROFILES,
    REPOSITORY,
    EntityCLIPConfig,
    Profile,
    ProfileError,
    TrainConfig,
    as_dict,
    config_hash,
    load_profile,
    parts_of,
)

NAMES = sorted(path.stem for path in PROFILES.glob("*.yaml"))


def nested(name, value):
    """``("a.b", 1)`` as ``{"a": {"b": 1}}``."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("datasets", "newsroom", "settings.datasets: there is no such setting; did you mean data"),
        ("finetuning.epoch", 3, "settings.finetuning.epoch: there is no such setting; did you mea"),
        ("model.zzz", 2, "settings.model.zzz: there is no such setting; there are image_experts"),
        ("pretraining.train.rl", 1.0, "settings.pretraining.train.rl: there is no such setting"),
        ("finetuning.epochs", "3", "settings.finetuning.epochs: "),
        ("finetuning.epochs", True, "settings.finetuning.epochs: "),
        ("finetuning.epochs", 0, r"settings.finetuning.epochs: .* equal to 1 \(got 0\)"),
        ("finetuning.lr", "1e-4", r"settings.finetuning.lr: .*\(got '1e-4'\)"),
        ("finetuning.lr", float("nan"), "settings.finetuning.lr: .* finite number"),
        ("finetuning.batch_size", 1, "settings.finetuning.batch_size: .* equal to 2"),
        ("finetuning.weight_decay", -0.1, "settings.finetuning.weight_decay: .* equal to 0"),
        ("finetuning.betas", [0.9], "settings.finetuning.betas"),
        ("finetuning.betas", [0.9, 1.0], "settings.finetuning.betas.1: .*less than 1"),
        ("finetuning.warmup_steps", -1, "settings.finetuning.warmup_steps: .* equal to 0"),
        ("finetuning.clip_grad_norm", 0.0, "settings.finetuning.clip_grad_norm: .*than 0"),
        ("finetuning.precision", "fp16", "settings.finetuning.precision: .*'fp32' or 'bf16'"),
        ("model.image_experts", 17, "settings.model.image_experts: .* equal to 16"),
        ("model.heads", 0, "settings.model.heads: .* equal to 1"),
        ("model.eta_itm", float("nan"), "settings.model.eta_itm: .* finite number"),
        ("model.reference_compat", "false", "settings.model.reference_compat: "),
        ("model", None, "settings.model: "),
        ("test_splits", [], "settings.test_splits: "),
        ("train_pairs", 1, "settings.train_pairs: "),
        ("bootstrap", 9, "settings.bootstrap: "),
        ("dataset", "", "settings.dataset: "),
        ("train_pairs", datetime.date(2024, 1, 1), r"settings.train_pairs: .*2024-01-01"),
        (
            "pretraining",
            None,
            "settings: give `pretrained` weights, a `pretraining` bl",
        ),
    ],
)
def test_bad_override_names_file_and_field(name, value, message):
    with pytest.raises(ProfileError, match=rf"^smoke\.yaml: {message}"):
        load_profile("smoke", settings=nested(name, value))


def test_all_problems_are_named_at_once():
    with pytest.raises(ProfileError, match=r"settings\.bootstrap: .*; settings\.image: "):
        load_profile("smoke", settings={"bootstrap": 0, "image": 64})


@pytest.mark.parametrize("seed", [-1, True, 1.0, "3"])
def test_bad_seed(seed):
    with pytest.raises(ProfileError, match=r"^smoke\.yaml: seed: Input should be"):
        load_profile("smoke", seed=seed)


@pytest.mark.parametrize("settings", [[1], "x", 3])
def test_settings_that_are_no_mapping(settings):
    with pytest.raises(ProfileError, match=r"^smoke\.yaml: settings: Input should be .*\(got"):
        load_profile("smoke", settings=settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "write `profile`, `seed` and `settings` as a mapping"),
        (b"- profile", "write `profile`, `seed` and `settings` as a mapping"),
        (b"profile: [", ", line 1: "),
        (b"profile: m\xf6", " is no UTF-8 text"),
        (b"profile: mine\nsettings: [1]", "settings: Input should be"),
        (
            b"profile: mine\nseeds: 3\n4: 5",
            ".*; seeds: there is no such setting; did you mean seed.*; 4: there is no",
        ),
        (b"profile: other", "`profile` is 'other', not 'mine'"),
        (b"profile: mine\nseed: null", "seed: Input should be"),
        (b"profile: mine", "settings.dataset: "),
        (b"profile: mine\nsettings: {dataset: d, backbone: b, lr: 1}", "settings.lr: "),
    ],
)
def test_bad_profile_file(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(config, "PROFILES", tmp_path)
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ProfileError, match=rf"mine\.yaml:? ?{message}"):
        load_profile("mine")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ProfileError, match=r"folder\.yaml may not be read"):
        load_profile("folder")


@pytest.mark.parametrize("name", ["nope", "", "../profiles/smoke", "smoke.yaml"])
def test_unknown_profile_lists_those_there_are(name):
    with pytest.raises(ProfileError, match=r"there are demo, .*smoke|there is no file"):
        load_profile(name)


# ----------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profile_says_what_it_loads(name):
    if parts := parts_of(name):
        with pytest.raises(ProfileError, match=f"{name} is {', '.join(parts)} together"):
            load_profile(name)
        assert set(parts) <= set(NAMES)
        return
    profile = load_profile(name)
    raw = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
    assert (profile.name, profile.seed) == (name, raw.get("seed", profile.seed))

    def contained(part, whole):
        return {
            k: contained(v, whole[k]) if isinstance(v, dict) else whole[k] for k, v in part.items()
        }

    assert contained(raw["settings"], as_dict(profile.settings)) == raw["settings"]


def test_a_profile_says_only_what_it_changes_of_its_base(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("profile: mine\nbase: smoke\nsettings: {finetuning: {epochs: 7}}\n")
    smoke, mine = load_profile("smoke"), load_profile(str(own))
    assert (mine.name, mine.seed) == ("mine", smoke.seed)
    assert mine.settings.finetuning == dataclasses.replace(smoke.settings.finetuning, epochs=7)
    assert mine.settings.model == smoke.settings.model
    for base in (str(own), 3, [own]):
        own.write_text(f"profile: mine\nbase: {base}\n")
        with pytest.raises(ProfileError, match=r"mine\.yaml: `base` is .*; name another profile"):
            load_profile(str(own))
    other = tmp_path / "other.yaml"
    other.write_text(f"profile: other\nbase: {own}\n")
    own.write_text(f"profile: mine\nbase: {other}\n")
    with pytest.raises(ProfileError, match=r"other\.yaml: `base` is .*; name another profile"):
        load_profile(str(own))


def test_paper_profile_keeps_the_papers_numbers():
    settings = load_profile("n24news").settings
    assert (settings.finetuning.batch_size, settings.finetuning.lr) == (192, 1e-5)
    assert settings.model == EntityCLIPConfig()
    assert settings.pretraining is None


def test_overrides_merge_into_their_group():
    plain = load_profile("smoke").settings
    settings = load_profile(
        "smoke",
        settings={"model": {"heads": 2}, "pretraining": {"train": {"lr": 1}}, "val_pairs": None},
    ).settings
    assert settings.model == dataclasses.replace(plain.model, heads=2)
    assert settings.pretraining.train == dataclasses.replace(plain.pretraining.train, lr=1.0)
    assert settings.pretraining.pairs == plain.pretraining.pairs
    assert settings.val_pairs is None
    assert settings.finetuning == plain.finetuning


def test_override_is_not_kept_or_changed():
    override = {"finetuning": {"betas": [0.5, 0.9]}, "test_splits": ["val"]}
    settings = load_profile("smoke", seed=3, settings=override).settings
    assert settings.finetuning.betas == (0.5, 0.9)
    assert settings.test_splits == ["val"]
    assert override == {"finetuning": {"betas": [0.5, 0.9]}, "test_splits": ["val"]}
    assert load_profile("smoke").settings.test_splits == [
        "test",
        "test_rare",
        "test_alias",
        "test_unseen",
    ]
    assert load_profile("smoke").seed == 0


def test_runs_folder(monkeypatch, tmp_path):
    profile = load_profile("smoke")
    for unset in (None, ""):
        monkeypatch.delenv("ENTITYCLIP_RUNS", raising=False)
        if unset is not None:
            monkeypatch.setenv("ENTITYCLIP_RUNS", unset)
        assert profile.runs == REPOSITORY / "runs" / "smoke"
    monkeypatch.setenv("ENTITYCLIP_RUNS", str(tmp_path))
    assert profile.runs == tmp_path / "smoke"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EntityCLIPConfig(text_experts=-1), "text_experts\n.* equal to 0"),
        (lambda: EntityCLIPConfig(lambda_moe=float("inf")), "lambda_moe\n.* finite number"),
        (lambda: TrainConfig(accumulate=0), "accumulate\n.* equal to 1"),
        (lambda: TrainConfig(workers=-1), "workers\n.* equal to 0"),
        (lambda: TrainConfig(lr=0), "lr\n.*than 0"),
    ],
)
def test_configs_made_in_code_are_checked_too(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -------------------------------------------------------------------------------------- the hash


def other(value):
    """A value of the same type that is allowed and differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (0.5, *value[1:])
    if isinstance(value, str):
        others = {"adam": "adamw", "auto": "fp32", "gated": "mean", "hard": "uniform",
                  "global": "local", "own": "positive", "loss": "vtc", "all": "none",
                  "names": "others", "kept": "masked", "none": "image"}  # fmt: skip
        return others[value]
    if isinstance(value, float):
        return value / 2 or 0.5
    return 2 if value is None else value + 1


@pytest.mark.parametrize("kind", [EntityCLIPConfig, TrainConfig])
def test_hash_differs_with_every_field(kind):
    plain = kind()
    fields = {field.name: field for field in dataclasses.fields(kind)}
    # how many checkpoints are kept changes no number: such a run is the same run
    never = [n for n, field in fields.items() if field.metadata.get("identity") == "never"]
    assert never == (["keep"] if kind is TrainConfig else [])
    changed = {n: dataclasses.replace(plain, **{n: other(getattr(plain, n))}) for n in fields}
    hashes = {name: config_hash(config) for name, config in changed.items()}
    assert len({config_hash(plain), *hashes.values()}) == len(fields) + 1 - len(never)
    assert all(hashes[name] == config_hash(plain) for name in never)


def test_hash_is_the_values_whatever_their_form_and_order():
    settings = load_profile("smoke").settings
    plain = as_dict(settings)
    assert config_hash(plain) == config_hash(settings)
    assert config_hash(dict(reversed(plain.items()))) == config_hash(settings)
    assert config_hash(as_dict(TrainConfig())) == config_hash(TrainConfig())
    assert as_dict(Profile("x", 1, settings))["settings"] == plain
    # it names checkpoints and result rows on people's disks: changing it orphans them
    assert config_hash({"b": [1, 2.5, None], "a": {"ü": True}}) == "1d44e843f260da50"


def test_fields_that_came_later_leave_older_runs_what_they_were():
    settings = as_dict(load_profile("smoke").settings)
    later = {"chunk", "negatives_from", "keep"}
    for found in (settings["finetuning"], settings["pretraining"]["train"], as_dict(TrainConfig())):
        assert not later & found.keys()
    assert as_dict(TrainConfig(chunk=8, keep=3))["chunk"] == 8
    assert config_hash(TrainConfig()) == "537bada037f4f6bf"


def test_the_environment_overrules_a_profile_aloud(monkeypatch, caplog):
    monkeypatch.setenv("ENTITYCLIP_PROFILE", "smoke")
    assert load_profile("demo", seed=3) == load_profile("smoke", seed=3)
    assert caplog.messages == ["profile smoke instead of demo: ENTITYCLIP_PROFILE says so"]
    monkeypatch.setenv("ENTITYCLIP_PROFILE", "smokes")
    with pytest.raises(ProfileError, match="smokes"):
        load_profile("demo")
    monkeypatch.setenv("ENTITYCLIP_PROFILE", "")
    assert load_profile("demo").name == "demo"
