"""Weights in and out: plain open_clip, Hugging Face, and the card that goes with them."""

import json
import re
import shutil
import subprocess
import sys
from unittest import mock

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from entityclip.__main__ import main as command_line
from entityclip.checkpoints import read_meta, write_checkpoint
from entityclip.config import EntityCLIPConfig, as_dict
from entityclip.evaluation.provenance import provenance
from entityclip.models.clip import BackboneError, create_backbone
from entityclip.models.encoder import load_encoder
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.weights import as_open_clip
from entityclip.results import append_rows, measurement_rows
from entityclip.search import export as exporting
from entityclip.search.export import ExportError, export
from entityclip.search.vector_cache import fingerprint
from tests import NARROW

IDENTITY = {
    "variant": "entityclip",
    "seed": 3,
    "backbone": "newsroom-tiny",
    "image_size": 64,
    "start": {"pairs": 256},
    "dataset": "newsroom",
    "data_seed": 0,
    "model": as_dict(EntityCLIPConfig()),
}
CAPTIONS = ["Envoys from Nairobi", "a", "the treaty talks at dawn"]
OF_THE_RUN = {"train_data": "aa11", "val_data": "bb22", "train": {"epochs": 2}}


def main(arguments):
    return command_line(["export", *arguments])


def randomised(module):
    for parameter in module.parameters():
        parameter.data = 0.1 * torch.randn_like(parameter)
    return module.eval()


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return randomised(EntityCLIP(create_backbone("newsroom-tiny"), EntityCLIPConfig()))


@pytest.fixture
def run(trained, tmp_path):
    """A run's folder below a profile's, as training leaves it."""
    folder = tmp_path / "runs" / "tried" / "checkpoints" / "entityclip-seed3"
    weights = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    best = {"epoch": 2, "val_loss": 1.25}
    meta = {"step": 40, "best": best, "identity": IDENTITY | OF_THE_RUN}
    write_checkpoint(folder / "best.safetensors", weights, meta)
    return folder


def add_rows(run, *, metrics, seed=3, variant="entityclip"):
    config = IDENTITY | {"seed": seed, "variant": variant}
    rows = measurement_rows(
        metrics, {"R@1": (10.0, 20.0)}, variant=variant, dataset="newsroom", split="test",
        direction="text_to_image", n_queries=64, n_candidates=32,
        provenance=provenance(config=config, seed=seed, data_fingerprint="cc33", device="cpu",
                              wall_time_s=1.0),
    )  # fmt: skip
    append_rows(run.parent.parent / "results" / "retrieval.jsonl", rows)


@pytest.mark.parametrize("how", ["name", "local-dir"])
def test_open_clip_gives_the_same_embeddings(trained, run, tmp_path, how):
    weights, *_ = export(run, tmp_path / "out")
    if how == "name":
        plain = open_clip.create_model("newsroom-tiny", pretrained=str(weights)).eval()
    else:
        plain, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{weights.parent}")
        plain = plain.eval()
        noise = torch.randint(256, (90, 70, 3), dtype=torch.uint8).numpy()
        picture = Image.fromarray(noise)
        assert torch.equal(preprocess(picture), trained.backbone.preprocess(picture))
    images = torch.randn(3, 3, 64, 64)
    tokens = trained.backbone.tokenize(CAPTIONS)
    with torch.no_grad():
        for ours, theirs in (
            (trained.encode_image(images), plain.encode_image(images, normalize=True)),
            (trained.encode_text(tokens), plain.encode_text(tokens, normalize=True)),
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert torch.equal(trained.backbone.clip.logit_scale, plain.logit_scale)


def test_only_the_towers_are_exported_and_read_back_and_exported_again(trained, run, tmp_path):
    weights, *_ = export(run, tmp_path / "out")
    assert set(load_file(weights)) == set(trained.clip_state_dict())
    assert read_meta(weights)["identity"] == IDENTITY | OF_THE_RUN
    names = sorted(path.name for path in weights.parent.iterdir())
    assert names == ["README.md", "open_clip_config.json", "open_clip_model.safetensors"]
    again, *_ = export(weights, tmp_path / "again")
    assert again.read_bytes() == weights.read_bytes()
    loaded = create_backbone("newsroom-tiny", str(weights))
    assert torch.equal(loaded.clip.visual.proj, trained.backbone.clip.visual.proj)


def test_another_image_size_is_kept(tmp_path):
    torch.manual_seed(0)
    clip = randomised(create_backbone("newsroom-tiny", image_size=32).clip)
    path = tmp_path / "small.safetensors"
    save_file(clip.state_dict(), path)
    folder = export(path, tmp_path / "out", backbone="newsroom-tiny", image_size=32)[0].parent
    plain = open_clip.create_model(f"local-dir:{folder}")
    assert plain.visual.image_size == (32, 32)
    assert "force_image_size=32" in (folder / "README.md").read_text()


# ------------------------------------------------------------------------------------ model card


def card_of(run, changes=None):
    """The card of the run's export, with another identity if there are `changes`."""
    path = run / "best.safetensors"
    if changes:
        write_checkpoint(path, load_file(path), {"identity": IDENTITY | OF_THE_RUN | changes})
    return (export(run, run / "out")[0].parent / "README.md").read_text()


def test_the_card_has_data_settings_metrics_licence_and_commit(run, monkeypatch):
    monkeypatch.setattr("entityclip.search.card.git_commit", lambda: "0123abcd")
    add_rows(run, metrics={"R@1": 15.625, "MedR": 3.0, "R@100": 99.0})
    add_rows(run, metrics={"R@1": 77.0}, seed=4)
    add_rows(run, metrics={"R@1": 88.0}, variant="clip")
    card = card_of(run)
    assert card.startswith("---\nlicense: apache-2.0\n")
    for text in (
        "# newsroom-tiny, entityclip, by entityclip",
        "The drawn newsroom: News pictures drawn by this package",
        "train `aa11`, val `bb22`",
        "| newsroom | test | text to image | R@1 | 15.62 | 10.00 – 20.00 | 64 | 32 | `",
        "| newsroom | test | text to image | MedR | 3.00 | – | 64 | 32 | `",
        "Step 40, epoch 2: validation loss 1.2500",
        "commit `0123abcd`",
        "One training seed (3)",
        "## Licence\n\nApache-2.0",
    ):
        assert text in card, text
    assert "77.00" not in card  # another seed's
    assert "88.00" not in card  # another variant's
    settings = card.partition("```json\n")[2].partition("\n```")[0]
    assert json.loads(settings) == IDENTITY | OF_THE_RUN


def test_the_card_says_where_nothing_was_measured(run):
    none = "There are no stored measurements of this model"
    card = card_of(run)
    assert none in card
    assert "| R@1 |" not in card
    # rows of other settings are not this model's
    add_rows(run, metrics={"R@1": 15.625})
    assert none in card_of(run, {"model": IDENTITY["model"] | {"heads": 2}})


def test_foreign_pictures_and_weights_keep_their_terms(run):
    card = card_of(run, {"dataset": "n24news", "start": "openai"})
    assert card.startswith("---\nlicense: other\n")
    assert "none that could be verified" in card
    assert "weights it started from: `openai`" in card


# ------------------------------------------------------------------------------------- the command


def test_the_command(run, tmp_path, capsys):
    assert main([str(run), str(tmp_path / "out")]) == 0
    assert "open_clip_model.safetensors" in capsys.readouterr().out
    assert main([str(tmp_path / "absent"), str(tmp_path / "out2")]) == 1
    assert "no checkpoint at" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def test_weights_that_do_not_say_what_they_are(trained, tmp_path):
    path = tmp_path / "plain.safetensors"
    save_file(trained.clip_state_dict(), path)
    with pytest.raises(ExportError, match="does not say which model it is; give --backbone"):
        export(path, tmp_path / "out")
    with pytest.raises(BackboneError, match="does not fit"):
        export(path, tmp_path / "out", backbone="newsroom-tiny", image_size=32)
    assert not (tmp_path / "out").exists()
    assert export(path, tmp_path / "out", backbone="newsroom-tiny")[0].exists()


def test_a_full_disk_leaves_the_last_export(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    before = export(run, out)[0].read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("entityclip.checkpoints.save_file", full)
    assert main([str(run), str(out)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert (out / exporting.WEIGHTS).read_bytes() == before
    assert len(list(out.iterdir())) == 3


# --------------------------------------------------------------------------------- Hugging Face


def hugging_face(folder, *, act="gelu", vision_heads=None):
    """A CLIPModel of newsroom-tiny's shape with random weights, biases and gains too."""
    tiny = open_clip.get_model_config("newsroom-tiny")
    vision, text, width = tiny["vision_cfg"], tiny["text_cfg"], tiny["embed_dim"]
    config = CLIPConfig(
        text_config=dict(
            hidden_size=text["width"], intermediate_size=4 * text["width"],
            num_hidden_layers=text["layers"], num_attention_heads=text["heads"],
            max_position_embeddings=text["context_length"], vocab_size=text["vocab_size"],
            hidden_act=act, projection_dim=width, eos_token_id=49407, bos_token_id=49406,
        ),
        vision_config=dict(
            hidden_size=vision["width"], intermediate_size=4 * vision["width"],
            num_hidden_layers=vision["layers"],
            num_attention_heads=vision_heads or vision["width"] // vision["head_width"],
            image_size=vision["image_size"], patch_size=vision["patch_size"], hidden_act=act,
            projection_dim=width,
        ),
        projection_dim=width,
    )  # fmt: skip
    model = randomised(CLIPModel(config))
    model.save_pretrained(folder)
    return model


def test_hugging_face_weights_give_the_same_embeddings(tmp_path):
    torch.manual_seed(1)
    theirs = hugging_face(tmp_path / "hf")
    ours = create_backbone("newsroom-tiny", str(tmp_path / "hf" / "model.safetensors")).eval()
    images = torch.randn(3, 3, 64, 64)
    tokens = ours.tokenize(CAPTIONS)
    padding = torch.arange(tokens.shape[1]) <= ours.eot(tokens)[:, None]
    with torch.no_grad():
        found = theirs(input_ids=tokens, pixel_values=images, attention_mask=padding.long())
        unit = torch.nn.functional.normalize
        for mine, other in (
            (ours.encode_image(images), found.image_embeds),
            (ours.encode_text(tokens), found.text_embeds),
        ):
            torch.testing.assert_close(unit(mine, dim=-1), other, atol=1e-6, rtol=0)
    assert torch.equal(ours.clip.logit_scale, theirs.logit_scale)


def test_hugging_face_weights_convert_to_open_clip(tmp_path):
    theirs = hugging_face(tmp_path / "hf")
    out = tmp_path / "out"
    command = [str(tmp_path / "hf" / "model.safetensors"), str(out), "--backbone", "newsroom-tiny"]
    assert main(command) == 0
    plain = open_clip.create_model(f"local-dir:{out}").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.get_image_features(pixel_values=images)
        expected = getattr(expected, "pooler_output", expected)
        torch.testing.assert_close(plain.encode_image(images), expected, atol=1e-5, rtol=1e-5)
    assert "do not say what they were trained on" in (out / "README.md").read_text()


def test_folders_of_models_are_read_as_runs_are(tmp_path, capsys):
    hugging_face(tmp_path / "hf")
    named = {"model": "newsroom-tiny"}
    theirs = load_encoder(tmp_path / "hf", **named)
    assert main([str(tmp_path / "hf"), str(tmp_path / "out"), "--backbone", "newsroom-tiny"]) == 0
    # what was exported says by itself which model it is
    for given in (tmp_path / "out", tmp_path / "out" / "open_clip_model.safetensors"):
        assert fingerprint(load_encoder(given)) == fingerprint(theirs)
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    assert main([str(tmp_path / "empty"), str(tmp_path / "no"), "--backbone", "newsroom-tiny"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no checkpoint at" in line
    assert "nor open_clip_model.safetensors or model.safetensors or " in line


@pytest.mark.parametrize("name", ["epoch_1.pt", "hf/pytorch_model.bin"])
def test_other_formats_are_told_how_to_convert(name, tmp_path, capsys):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    torch.save({"epoch": 1, "state_dict": {"a": torch.zeros(2)}}, path)
    given = path if name.endswith(".pt") else path.parent
    before = path.read_bytes()
    exporting = ["export", str(given), str(tmp_path / "out"), "--backbone", "newsroom-tiny"]
    embedding = ["embed", str(given), "--model", "newsroom-tiny", "--images", str(tmp_path)]
    embedding += ["--out", str(tmp_path / "o.npy"), "--cache", str(tmp_path / "cache")]
    for command in (exporting, embedding):
        assert command_line(command) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "only .safetensors weights are read, never pickles; convert once" in line
        assert "delete" not in line
    assert path.read_bytes() == before


def test_a_folder_that_takes_nothing_is_told(tmp_path, capsys):
    hugging_face(tmp_path / "hf")
    (tmp_path / "file").touch()
    command = [str(tmp_path / "hf"), str(tmp_path / "file" / "x"), "--backbone", "newsroom-tiny"]
    assert main(command) == 1
    assert f"error: {tmp_path / 'file'} is no folder; give another" in capsys.readouterr().err


def test_every_hugging_face_tensor_is_used_once(tmp_path):
    theirs = hugging_face(tmp_path / "hf").state_dict()
    stored = load_file(tmp_path / "hf" / "model.safetensors")
    renamed = as_open_clip(stored | {"text_model.embeddings.position_ids": torch.arange(64)})
    assert sum(t.numel() for t in renamed.values()) == sum(t.numel() for t in theirs.values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"act": "quick_gelu"}, "hidden_act 'quick_gelu', the model 'gelu'; take the -quickgelu"),
        ({"vision_heads": 4}, "vision_config has num_attention_heads 4, the model 3"),
    ],
)
def test_weights_of_another_architecture_are_refused(tmp_path, options, says):
    hugging_face(tmp_path, **options)
    with pytest.raises(BackboneError, match=says):
        create_backbone("newsroom-tiny", str(tmp_path / "model.safetensors"))


def test_hugging_face_weights_must_be_whole_and_have_their_config(tmp_path):
    hugging_face(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    name = "text_model.encoder.layers.1.self_attn.v_proj.bias"
    save_file({key: state[key] for key in state.keys() - {name}}, path)
    with pytest.raises(BackboneError, match=f"it lacks {name}"):
        create_backbone("newsroom-tiny", str(path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(BackboneError, match=r"need their config\.json beside them"):
        create_backbone("newsroom-tiny", str(path))


def test_a_tag_of_another_activation_is_refused():
    with pytest.raises(BackboneError, match="use ViT-B-32-quickgelu"):
        create_backbone("ViT-B-32", "openai")


# ------------------------------------------------------------------------ transformers, and the hub


@pytest.fixture(params=["newsroom-tiny", "ViT-B-32-quickgelu"])
def weights(request, tmp_path):
    """Random weights of a small and of a real shape, whose activations differ."""
    torch.manual_seed(2)
    clip = create_backbone(request.param).clip
    if request.param == "newsroom-tiny":
        randomised(clip)
    path = tmp_path / "weights.safetensors"
    save_file(clip.state_dict(), path)
    return request.param, path


def test_what_is_exported_for_transformers_gives_the_same_features(weights, tmp_path):
    name, path = weights
    out = tmp_path / "out"
    command = [str(path), str(out), "--backbone", name, "--format", "transformers"]
    assert main(command) == 0
    ours, theirs = load_encoder(path, name), CLIPModel.from_pretrained(out).eval()
    side = ours.clip.visual.image_size[0]
    images = torch.randn(2, 3, side, side)
    told = CLIPProcessor.from_pretrained(out)
    texts = ["Envoys from Nairobi, it's 5 o'clock", "a", "ÜBER   the treaty\n" * 40]
    tokens = told(text=texts, padding="max_length", truncation=True, return_tensors="pt")
    unit = torch.nn.functional.normalize
    with torch.no_grad():
        pairs = (
            (ours.encode_image(images), theirs.get_image_features(pixel_values=images)),
            (ours.encode_text(ours.tokenize(texts)), theirs.get_text_features(**tokens)),
        )
    for mine, other in pairs:
        other = getattr(other, "pooler_output", other)
        torch.testing.assert_close(unit(mine, dim=-1), unit(other, dim=-1), atol=1e-5, rtol=0)
    picture = Image.effect_noise((90, 70), 80).convert("RGB")
    theirs = told(images=picture, return_tensors="pt")["pixel_values"][0]
    # one resizes with Pillow, the other with torchvision
    assert (theirs - ours.preprocess(picture)).abs().mean() < 0.02
    # and it is read again, without being told what it is
    again = load_encoder(out)
    assert fingerprint(again) == fingerprint(load_encoder(path, again.name))


def test_weights_in_shards_are_read(tmp_path):
    theirs = hugging_face(tmp_path / "hf")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
    index = tmp_path / "shards" / "model.safetensors.index.json"
    assert len(list(index.parent.glob("*.safetensors"))) > 1
    shutil.copy(tmp_path / "hf" / "config.json", index.parent)
    whole, parts = load_encoder(tmp_path / "hf"), load_encoder(index.parent)
    assert whole.name == parts.name == "newsroom-tiny"
    assert fingerprint(whole) == fingerprint(parts)
    told = json.loads(index.read_text())
    index.write_text(json.dumps({**told, "weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(BackboneError, match="leads out of the folder"):
        load_encoder(index.parent)
    told["weight_map"]["more"] = next(iter(told["weight_map"].values()))
    index.write_text(json.dumps(told))
    with pytest.raises(BackboneError, match="its files lack more"):
        load_encoder(index.parent)


def test_our_own_model_is_known_in_a_process_of_its_own(tmp_path):
    save_file(create_backbone("newsroom-tiny").clip.state_dict(), tmp_path / "weights.safetensors")
    export(tmp_path / "weights.safetensors", tmp_path / "hf", form="transformers",
           backbone="newsroom-tiny")  # fmt: skip
    # this process has asked for the model before; one that a user starts has not
    code = "import sys; from entityclip.models import weights; from pathlib import Path\n"
    code += f"weights.BACKBONES = Path({str(NARROW)!r})\n"
    code += "print(weights.model_like(Path(sys.argv[1]) / 'model.safetensors'))"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "hf")], capture_output=True, text=True
    )
    assert ran.stdout.strip() == "newsroom-tiny", ran.stderr


def test_a_model_that_open_clip_has_not_is_named(tmp_path):
    hugging_face(tmp_path)
    config = tmp_path / "config.json"
    told = json.loads(config.read_text())
    told["vision_config"]["num_hidden_layers"] = 5
    config.write_text(json.dumps(told))
    with pytest.raises(
        BackboneError, match=r"config\.json describes a model that open_clip has not"
    ):
        load_encoder(tmp_path)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneError, match=r"config\.json describes no CLIPModel"):
        load_encoder(tmp_path)


def test_what_transformers_cannot_say_is_refused_before_anything_is_written(trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(trained.clip_state_dict(), path)
    built = create_backbone("newsroom-tiny", str(path))
    built.clip.visual.set_grad_checkpointing(False)
    for block in built.clip.visual.transformer.resblocks:
        block.ls_1 = torch.nn.Linear(1, 1)  # stands for a part of another architecture
    with (
        mock.patch.object(exporting, "create_backbone", return_value=built),
        pytest.raises(ExportError, match="transformers' CLIPModel has not: use open_clip"),
    ):
        export(path, tmp_path / "out", form="transformers", backbone="newsroom-tiny")
    assert not [*(tmp_path / "out").glob("*")]


def test_a_hub_id_is_fetched_and_what_fails_is_one_line(tmp_path, monkeypatch):
    hugging_face(tmp_path / "hf")
    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name == "gone/model":
            raise OSError("401 Client Error\nsee the page")
        return str(tmp_path / "hf")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_encoder("hf-hub:some/model").name == "newsroom-tiny"
    assert asked[0][0] == "some/model"
    assert not any("bin" in pattern or "*.py" in pattern for pattern in asked[0][1])
    with pytest.raises(
        BackboneError, match="hf-hub:gone/model could not be fetched: 401"
    ) as caught:
        load_encoder("hf-hub:gone/model")
    assert "\n" not in str(caught.value)


def test_pushing_uploads_the_exported_files_alone(run, tmp_path, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, **options):
            calls.append(options)
            return "https://hub/me/model"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main([str(run), str(out), "--push", "me/model"]) == 0
    assert "pushed to https://hub/me/model" in capsys.readouterr().out
    assert calls[0] == ("me/model", {"private": True, "exist_ok": True})
    names = {"open_clip_model.safetensors", "open_clip_config.json", "README.md"}
    assert set(calls[1]["allow_patterns"]) == names
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: 1 / 0)
    assert main([str(run), str(out), "--push", "me/model"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "me/model was not pushed: division by zero" in line


def test_no_path_of_this_machine_is_exported(run, tmp_path):
    path = run / "best.safetensors"
    tensors, meta = load_file(path), read_meta(path)
    told, start = tmp_path / "secret" / "told.jsonl", tmp_path / "w.safetensors"
    meta["identity"] |= {"explanation_source": str(told), "start": str(start)}
    meta["identity"]["dataset"] = "`x` <script>"
    write_checkpoint(path, tensors, meta)
    for form in ("open_clip", "transformers"):
        files = export(run, tmp_path / form, form=form)
        whole = b"".join(file.read_bytes() for file in files)
        assert str(tmp_path).encode() not in whole
        assert b"told.jsonl" in whole
        card = (tmp_path / form / "README.md").read_text()
        prose = re.sub(r"````json.*?````", "", card, flags=re.DOTALL)
        assert "<script>" not in prose
