"""What the experts look at: the numbers of the textbook blocks, named and laid on words."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from entityclip.config import EntityCLIPConfig
from entityclip.evaluation.inspection import (
    alignment,
    as_pictures,
    expert_names,
    explanation_attention,
    gate_weights,
    grad_cams,
    image_attention,
    patch_table,
    plane,
    token_words,
    uniformity,
    word_table,
)
from entityclip.evaluation.retrieval import Embeddings
from entityclip.models.entityclip import EntityCLIP
from tests.literal import Expert, load_experts

COUNTS = {"image_experts": 2, "text_experts": 1, "explanation_experts": 3}


@pytest.fixture(scope="module")
def batch(make_dataset):
    data = make_dataset("val", 5, explanations=True)
    return data.collate([data[i] for i in range(5)])


def make_model(backbone, heads=2, **changes):
    """Random weights everywhere, biases and LayerNorms too."""
    torch.manual_seed(3)
    model = EntityCLIP(copy.deepcopy(backbone), EntityCLIPConfig(**COUNTS | changes, heads=heads))
    for name in ("mmae", "matching"):
        for parameter in getattr(model, name).parameters() if getattr(model, name) else ():
            parameter.data = torch.randn_like(parameter) * 0.3
    return model.eval()


def literal_weights(expert: Expert, x, y, padding):
    """[B, heads, Lx, Ly] of PyTorch's own attention, all query rows."""
    q, kv = expert.ln1(x), expert.ln1(y)
    return expert.attn(q, kv, kv, key_padding_mask=padding, average_attn_weights=False)[1]


def literals(group, heads):
    experts = torch.nn.ModuleList(Expert(group.width, heads) for _ in range(group.n))
    load_experts(experts, group)
    return experts


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reference_compat": True},
        {"mask_padding": False},
        {"shared_explanation_experts": False},
    ],
    ids=lambda changes: next(iter(changes), "default"),
)
@torch.no_grad()
def test_explanation_attention_is_the_textbook_experts_softmax(backbone, batch, heads, changes):
    model = make_model(backbone, heads, **changes)
    compat = model.config.sees_padding
    of_text = model.mmae.explanation_text or model.mmae.explanation
    ours = explanation_attention(model, batch)
    image = backbone.image_tokens(batch.images)
    text, read = (
        backbone.text_tokens(ids, trim=False) for ids in (batch.captions, batch.explanations)
    )
    padding = None if compat else ~read.valid
    assert len(read.at.unique()) > 1
    length = batch.explanations.shape[1] if compat else int(read.at.max()) + 1
    rows, groups = torch.arange(len(batch)), (model.mmae.explanation, of_text)
    for side, weights, group in zip((image, text), ours, groups, strict=True):
        assert weights.shape == (5, 3, heads, length)
        for n, expert in enumerate(literals(group, heads)):
            theirs = literal_weights(expert, side.tokens, read.tokens, padding)[rows, :, side.at]
            torch.testing.assert_close(weights[:, n], theirs[..., :length], atol=2e-5, rtol=1e-4)
            assert theirs[..., length:].abs().sum() == 0
        if not compat:
            for row, end in enumerate(read.at):
                assert weights[row, ..., end + 1 :].abs().sum() == 0


@torch.no_grad()
def test_image_attention_is_the_textbook_experts_softmax_over_patches(backbone, batch):
    model = make_model(backbone, heads=4)
    ours = image_attention(model, batch)
    height, width = backbone.clip.visual.grid_size
    assert ours.shape == (5, 2, 4, height, width)
    tokens = backbone.image_tokens(batch.images).tokens
    for n, expert in enumerate(literals(model.mmae.image, 4)):
        theirs = literal_weights(expert, tokens, tokens, None)[:, :, 0]
        torch.testing.assert_close(ours[:, n].flatten(2), theirs[..., 1:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_gate_weights_are_the_models_own_by_pair_and_name(backbone, batch):
    model = make_model(backbone)
    table = gate_weights(model, [batch, batch])
    assert len(table) == 2 * 5 * (5 + 4 + 9)
    first = table.iloc[: len(table) // 2]
    totals = first.groupby(["pair", "gate"])["weight"].sum()
    np.testing.assert_allclose(totals, 1, atol=1e-5)
    image, text = backbone.encode_image(batch.images), backbone.encode_text(batch.captions)
    linear = model.matching.gate.linear
    fusion = F.linear(torch.cat([image, text], 1), linear.weight, linear.bias)
    names = expert_names(model)["fusion"]
    assert names == [
        *("image 1", "image 2", "explanation 1 from image", "explanation 2 from image"),
        *("explanation 3 from image", "explanation 1 from text", "explanation 2 from text"),
        *("explanation 3 from text", "text 1"),
    ]
    chosen = first[(first["gate"] == "fusion") & (first["pair"] == batch.ids[3])]
    assert chosen["expert"].tolist() == names
    expected = fusion.softmax(1)[3].numpy()
    np.testing.assert_allclose(chosen["weight"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "gates"),
    [
        ({"image_experts": 0, "explanation_experts": 0}, {"text", "fusion"}),
        ({"matching": "mean"}, {"image", "text"}),
        ({"matching": "none"}, {"image", "text"}),
    ],
)
def test_a_gate_without_anything_to_mix_is_absent(backbone, batch, changes, gates):
    model = make_model(backbone, **changes)
    assert set(expert_names(model)) == set(gate_weights(model, [batch])["gate"]) == gates


def test_what_is_not_there_is_refused(backbone, batch):
    plain = EntityCLIP(backbone, EntityCLIPConfig(0, 0, 0))
    with pytest.raises(ValueError, match="no explanation experts"):
        explanation_attention(plain, batch)
    with pytest.raises(ValueError, match="no image experts"):
        image_attention(make_model(backbone, image_experts=0), batch)
    with pytest.raises(ValueError, match="plain CLIP"):
        gate_weights(plain, [batch])
    with pytest.raises(ValueError, match="no batches"):
        gate_weights(make_model(backbone), [])
    batch = copy.copy(batch)
    batch.explanations = None
    with pytest.raises(ValueError, match="with_explanations=True"):
        explanation_attention(make_model(backbone), batch)


def test_token_pieces_are_merged_to_words(backbone):
    ids = backbone.tokenize(["Ouagadougou's envoys, at Zürich-Kloten 2024."])[0]
    words = token_words(backbone, ids)
    assert [w.text for w in words] == [
        *("⟨start⟩", "ouagadougou", "'s", "envoys", ",", "at", "zürich", "-", "kloten"),
        *("2", "0", "2", "4", ".", "⟨end⟩"),
    ]
    assert words[1].stop - words[1].start > 1  # several pieces
    assert [w.start for w in words[1:]] == [w.stop for w in words[:-1]]
    assert words[-1].stop == int(ids.argmax()) + 1  # the end marker has the largest id


def test_a_word_cut_at_the_context_length_keeps_its_first_pieces(backbone):
    whole = backbone.tokenize(["ouagadougou"])[0]
    first = whole[1:3]  # after the start marker
    ids = torch.cat([whole[:1], first, whole.max()[None]])
    words = token_words(backbone, ids)
    assert [(w.start, w.stop) for w in words] == [(0, 1), (1, 3), (3, 4)]
    assert words[1].text != "ouagadougou"
    assert "ouagadougou".startswith(words[1].text)


@torch.no_grad()
def test_the_table_of_words_is_the_mean_of_experts_and_heads(backbone, batch):
    attention = explanation_attention(make_model(backbone), batch)
    table = word_table(backbone, batch, attention)
    sums = table.groupby("pair")[["from_image", "from_text"]].sum()
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    rows = table[table["pair"] == batch.ids[2]]
    words = token_words(backbone, batch.explanations[2])
    assert rows["word"].tolist() == [word.text for word in words]
    assert rows["place"].tolist() == list(range(len(words)))
    longest = max(words, key=lambda word: word.stop - word.start)
    expected = attention[1][2, :, :, longest.start : longest.stop].sum(-1).mean()
    row = rows.iloc[words.index(longest)]
    assert row["from_text"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_table_of_patches_names_rows_and_columns():
    maps = torch.arange(16.0).view(2, 2, 2, 2)
    table = patch_table(["a", "b"], maps)
    (row,) = table[table["weight"] == 14].to_dict("records")
    assert row == {"pair": "b", "expert": "image 2", "row": 1, "column": 0, "weight": 14.0}
    assert len(table) == 16


def test_pictures_are_what_the_model_saw(backbone, make_dataset):
    data = make_dataset("val", 2)
    pictures = as_pictures(backbone, data.collate([data[0], data[1]]).images)
    for picture, pair in zip(pictures, data.pairs, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(pair.load_image()))


# ------------------------------------------------------------------------- the embedding space


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_alignment_by_hand():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert [alignment(east, x) for x in (east, north, -east)] == pytest.approx([0, 2, 4])
    assert alignment(east, -east, alpha=1) == pytest.approx(2)
    assert alignment(torch.cat([east, east]), torch.cat([north, east])) == pytest.approx(1)
    with pytest.raises(ValueError, match="alignment needs pairs"):
        alignment(east, torch.cat([east, east]))


@pytest.mark.parametrize("n", [2, 7, 1500])
def test_uniformity_is_the_mean_over_pairs(n):
    x = unit(n, 6)
    rows, columns = np.triu_indices(n, 1)
    literal = np.exp(-2 * ((x.numpy()[rows] - x.numpy()[columns]) ** 2).sum(1)).mean()
    assert uniformity(x) == pytest.approx(math.log(literal), abs=1e-5)
    assert uniformity(x[:1].expand(3, 6)) == 0
    assert uniformity(torch.cat([x[:1], -x[:1]]), t=1) == pytest.approx(-4)  # -t * 2²
    with pytest.raises(ValueError, match="at least two rows"):
        uniformity(x[:1])


def test_the_plane_keeps_pairs_labels_and_the_two_widest_directions():
    # pictures 0 and 1; caption rows show pictures 1, 0, 1
    images = torch.tensor([[3.0, 0.0, 0.1], [-3.0, 0.0, 0.0]])
    texts = torch.tensor([[-3.0, 1.0, 0.0], [3.0, -1.0, 0.0], [-3.0, 1.0, 0.1]])
    seen = plane(
        Embeddings(texts, images, torch.tensor([1, 0, 1]), torch.tensor([1, 0])), ["a", "b", None]
    )
    assert seen.points["kind"].tolist() == ["caption"] * 3 + ["picture"] * 2
    assert seen.points["pair"].tolist() == [1, 0, 1, 0, 1]
    assert seen.points["label"].tolist() == ["a", "b", "", "b", "a"]
    assert sum(seen.explained) == pytest.approx(1, abs=0.01)
    x = seen.points["x"].to_numpy() * np.sign(seen.points["x"].iloc[1])
    assert (x > 0).tolist() == [False, True, False, True, False]  # the first axis parts them
    assert np.ptp(x) > 6
    expected = alignment(images[[1, 0, 1]], texts), uniformity(images), uniformity(texts)
    assert seen[2:] == pytest.approx(expected)
    alone = Embeddings(unit(2, 4), unit(1, 4), torch.tensor([0, 0]), torch.tensor([0]))
    for labels, says in ((["a"], "1 labels for 2 captions"), (["a", "b"], "1 picture")):
        with pytest.raises(ValueError, match=says):
            plane(alone, labels)


# ----------------------------------------------------------------------------------------- Grad-CAM


def literal_cams(backbone, images, texts):
    """Grad-CAM by hand: the last block's normalised input, its gradient, their weighted sum."""
    kept = []
    layer = backbone.clip.visual.transformer.resblocks[-1].ln_1
    handle = layer.register_forward_hook(lambda module, given, output: kept.append(output))
    maps = []
    for image, text in zip(images, texts, strict=True):
        kept.clear()
        cosine = F.cosine_similarity(
            backbone.clip.encode_image(image[None]), backbone.clip.encode_text(text[None])
        )
        (gradient,) = torch.autograd.grad(cosine.sum(), kept)
        weights = gradient[0, 1:].mean(0)
        maps.append((kept[0][0, 1:] @ weights).relu().reshape(4, 4).detach())
    handle.remove()
    return torch.stack(maps).numpy()


def test_maps_are_grad_cams_and_leave_no_trace(backbone, make_dataset):
    cv2 = pytest.importorskip("cv2")
    pytest.importorskip("pytorch_grad_cam")
    data = make_dataset("relation_train", 24)
    batch = data.collate([data[i] for i in range(8)])
    maps = grad_cams(backbone, batch.images, batch.captions)
    assert maps.shape == (8, 64, 64)
    literal = literal_cams(backbone, batch.images, batch.captions)
    assert sum(small.any() for small in literal) >= 2
    for found, small in zip(maps, literal, strict=True):
        if not small.any():  # no patch helps
            assert not found.any()
            continue
        large = cv2.resize((small - small.min()) / (small.max() - small.min()), (64, 64))
        large = (large - large.min()) / (large.max() - large.min())
        np.testing.assert_allclose(found, large, atol=1e-3)
    assert all(p.grad is None for p in backbone.parameters())
    assert not backbone.clip.visual.transformer.resblocks[-1].ln_1._forward_hooks
