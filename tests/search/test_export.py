"""Weights in and out: plain open_clip, Hugging Face, and the card that goes with them."""

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from entityclip.__main__ import main as command_line
from entityclip.checkpoints import read_meta, write_checkpoint
from entityclip.config import EntityCLIPConfig, as_dict
from entityclip.evaluation.provenance import provenance
from entityclip.models.clip import BackboneError, create_backbone
from entityclip.models.entityclip import EntityCLIP
from entityclip.models.weights import as_open_clip
from entityclip.results import append_rows, measurement_rows
from entityclip.search import export as exporting
from entityclip.search.encoder import fingerprint, load_encoder
from entityclip.search.export import ExportError, export

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
    weights = export(run, tmp_path / "out")
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
    weights = export(run, tmp_path / "out")
    assert set(load_file(weights)) == set(trained.clip_state_dict())
    assert read_meta(weights)["identity"] == IDENTITY | OF_THE_RUN
    names = sorted(path.name for path in weights.parent.iterdir())
    assert names == ["README.md", "open_clip_config.json", "open_clip_model.safetensors"]
    again = export(weights, tmp_path / "again")
    assert again.read_bytes() == weights.read_bytes()
    loaded = create_backbone("newsroom-tiny", str(weights))
    assert torch.equal(loaded.clip.visual.proj, trained.backbone.clip.visual.proj)


def test_another_image_size_is_kept(tmp_path):
    torch.manual_seed(0)
    clip = randomised(create_backbone("newsroom-tiny", image_size=32).clip)
    path = tmp_path / "small.safetensors"
    save_file(clip.state_dict(), path)
    folder = export(path, tmp_path / "out", backbone="newsroom-tiny", image_size=32).parent
    plain = open_clip.create_model(f"local-dir:{folder}")
    assert plain.visual.image_size == (32, 32)
    assert "force_image_size=32" in (folder / "README.md").read_text()


# ------------------------------------------------------------------------------------ model card


def card_of(run, changes=None):
    """The card of the run's export, with another identity if there are `changes`."""
    path = run / "best.safetensors"
    if changes:
        write_checkpoint(path, load_file(path), {"identity": IDENTITY | OF_THE_RUN | changes})
    return (export(run, run / "out").parent / "README.md").read_text()


def test_the_card_has_data_settings_metrics_licence_and_commit(run, monkeypatch):
    monkeypatch.setattr("entityclip.search.export.git_commit", lambda: "0123abcd")
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
    assert export(path, tmp_path / "out", backbone="newsroom-tiny").exists()


def test_a_full_disk_leaves_the_last_export(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    before = export(run, out).read_bytes()

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
    assert "nor open_clip_model.safetensors or model.safetensors there" in line


@pytest.mark.parametrize("name", ["epoch_1.pt", "model.safetensors.index.json"])
def test_other_formats_are_told_how_to_convert(name, tmp_path, capsys):
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save({"epoch": 1, "state_dict": {"a": torch.zeros(2)}}, path)
    else:
        path.write_text('{"weight_map": {}}')
    before = path.read_bytes()
    exporting = ["export", str(path), str(tmp_path / "out"), "--backbone", "newsroom-tiny"]
    embedding = ["embed", str(path), "--model", "newsroom-tiny", "--images", str(tmp_path)]
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
