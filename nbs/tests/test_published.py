"""Small random models of each library, saved in its own form: trained further in each mode, evaluated, explained, asked, saved and loaded."""
import json
from dataclasses import asdict, replace
from unittest import mock

import numpy as np
import open_clip
import pytest
from safetensors.torch import load_file, save_file
import torch
import transformers as hf
from transformers.utils import logging as transformers_logging

from radiology_clip_mini.base.settings import Config, DataConfig, ModelConfig, PathsConfig, TrainConfig
from radiology_clip_mini.gradcam import Explorer, grad_cam, make_gallery, NoMap, phrase_query
from radiology_clip_mini.lab import runs
from radiology_clip_mini.lab.evaluate import evaluate, zero_shot
from radiology_clip_mini.lab.published import _unlogged, load_model
from radiology_clip_mini.models import CLIPMini, embed, learn_tokenizer

SIDE = 64
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
VISION = dict(image_size=SIDE, patch_size=16)
VIT = dict(VISION, width=32, layers=2, head_width=16)
WORDS = dict(context_length=64, vocab_size=49408, width=32, heads=2, layers=1)
BERT = dict(hf_model_name="nobody/small", hf_tokenizer_name="nobody/small", hf_proj_type="mlp", hf_pooler_type="cls_last_hidden_state_pooler", context_length=64)
TIMM_VIT = dict(timm_model_name="test_vit", timm_pool="", timm_proj="linear", image_size=SIDE)
RESNET = dict(image_size=SIDE, layers=[1, 1, 1, 1], width=16, patch_size=None)
POOLED = dict(timm_model_name="test_byobnet", timm_pool="rot_attn", timm_proj="", image_size=SIDE)
DATA = DataConfig(source="phantom", phantoms=60, image_size=SIDE, views="both")


@pytest.fixture(scope="module")
def data():
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    return runs.load_data(DATA, seed=1)


def save_open_clip(folder, data, vision, text, **more):
    "A random model as open_clip publishes it."
    folder.mkdir(parents=True)
    cfg, here = dict(embed_dim=24, vision_cfg=vision, text_cfg=text, **more), {}
    (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=dict(mean=[.5]*3, std=[.25]*3))))
    if text is BERT:
        tokenizer = learn_tokenizer(data.texts(data.rows("train")))
        tokenizer.save_pretrained(folder)
        hf.BertConfig(vocab_size=len(tokenizer), **SMALL).save_pretrained(folder)
        here = dict(text_cfg={**text, "hf_model_name": str(folder), "hf_model_pretrained": False})
    with _unlogged(): model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **here)
    save_file(model.state_dict(), folder/"open_clip_model.safetensors")


def save_transformers(folder, data, siglip):
    "A random CLIP or SigLIP as transformers saves it, with a tokenizer of BERT's kind."
    tokenizer = learn_tokenizer(data.texts(data.rows("train")))
    marks = dict(bos_token_id=tokenizer.cls_token_id, eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id)
    text, vision = SMALL | marks | dict(vocab_size=len(tokenizer), max_position_embeddings=64), SMALL | VISION
    if siglip: net = hf.SiglipModel(hf.SiglipConfig(text_config=text | dict(projection_size=32), vision_config=vision))
    else: net = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    pictures = hf.SiglipImageProcessor(size=dict(height=SIDE, width=SIDE)) if siglip else hf.CLIPImageProcessor(size=dict(shortest_edge=SIDE), crop_size=dict(height=SIDE, width=SIDE))
    for part in (net, tokenizer, pictures): part.save_pretrained(folder)


def save_ours(folder, data): CLIPMini(ModelConfig(image_encoder="test_vit", image_weights="none", text_encoder="scratch", embed_dim=24), data.texts(data.rows("train")), SIDE).save_pretrained(folder)


KINDS = {"biomedclip": lambda f, d: save_open_clip(f, d, TIMM_VIT, BERT), "openai": lambda f, d: save_open_clip(f, d, VIT, WORDS), "resnet": lambda f, d: save_open_clip(f, d, RESNET, WORDS),
         "pooled": lambda f, d: save_open_clip(f, d, POOLED, WORDS),
         "siglip of open_clip": lambda f, d: save_open_clip(f, d, VIT, dict(WORDS, pool_type="last", no_causal_mask=True, proj_bias=True), custom_text=True),
         "clip": lambda f, d: save_transformers(f, d, siglip=False), "siglip": lambda f, d: save_transformers(f, d, siglip=True), "ours": save_ours}
MODES = {"full": (dict(), {}), "frozen": (dict(image="frozen", text="frozen"), {}), "lora": (dict(image="lora", text="lora", lora_rank=2), {}),
         "frozen, new projections": (dict(image="frozen", text="frozen"), dict(embed_dim=8))}


@pytest.fixture(scope="module")
def published(data, tmp_path_factory):
    "A folder of each kind, made when it is first asked for."
    home, made = tmp_path_factory.mktemp("published"), {}
    def folder(kind):
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = home/kind
            KINDS[kind](made[kind], data)
        return made[kind]
    return folder


def settings(start, results, train={}, **model):
    return Config(seed=1, data=replace(DATA), model=ModelConfig(start=str(start), **model), train=TrainConfig(epochs=1, batch_size=16, lr=1e-3, **train), paths=PathsConfig(str(results)))


def changed(before, after):
    "The names of tensors that training has changed."
    return {name for name, x in after.state_dict().items() if name not in (old := before.state_dict()) or not torch.equal(x, old[name])}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_epoch(published, data, tmp_path, kind, mode):
    "What should learn has learned, what should not has not, and best/ and last/ hold a plain model that loads without peft."
    start, (train, model) = published(kind), MODES[mode]
    if mode == "lora" and kind == "resnet": train = dict(image="frozen", text="lora")
    folder = runs.train(settings(start, tmp_path, train, **model))
    before, text = load_model(start), data.texts(range(4))
    with mock.patch.dict("sys.modules", peft=None): after = load_model(folder)
    learned = changed(before, after)
    towers = {tower: {name for name in learned if name.startswith(f"{tower}_encoder.")} for tower in ("image", "text")}
    for tower, found in towers.items(): assert bool(found) is (train.get(tower, "full") != "frozen"), found
    assert not any("lora_" in name or "base_layer" in name for name in load_file(folder/"best/model.safetensors"))
    assert "logit_scale" in learned and after.config.embed_dim == model.get("embed_dim", before.config.embed_dim)
    if mode == "lora": assert all(x.ndim > 1 or name == "logit_scale" or "projection" in name for name, x in after.state_dict().items() if name in learned)
    if kind != "siglip" or "embed_dim" in model: assert any("text_projection" in name for name in learned)
    again = CLIPMini.from_pretrained(after.save_pretrained(tmp_path/"again"))
    with torch.no_grad(): assert torch.equal(again.encode_text(text), after.encode_text(text))
    info = runs.read_run(folder)
    assert info["config"]["model"]["start"] == str(start) and info["data"]["max_length"] <= 64 + 192*(kind == "ours")


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_works(published, data, tmp_path, kind):
    "Evaluation, zero-shot, a heat map, the explorer and saving, on a model as it is published."
    model = load_model(published(kind))
    result, ranks = evaluate(model, data, "train")
    assert result["n_queries"] == len(ranks)//2 == len(data.rows("train")) and 0 < result["image_to_text"]["R@10"] <= 1
    image_emb, text_emb = embed(model, data, data.rows("train"), show=False)
    labels = [data.studies[int(i)]["labels"] for i in data.rows("train")]
    table = zero_shot(model, image_emb, labels, np.arange(len(labels)), findings=["effusion"], n_boot=20)
    assert 0 <= table.loc["effusion", "AUC"] <= 1
    try: assert grad_cam(model, data.pixels([0])[0, 0], "effusion").max() > 0
    except NoMap: pass
    explorer = Explorer(make_gallery(model, data))
    explorer.ask(phrase_query(explorer.gallery, "large heart"))
    assert len(explorer.hits) and "large heart" in explorer.page.answers[0]["title"]
    again = load_model(model.save_pretrained(tmp_path/"saved"))
    assert all(np.array_equal(*pair) for pair in zip(embed(again, data, data.rows("val"), show=False), embed(model, data, data.rows("val"), show=False)))
    assert json.loads(json.dumps(asdict(again.config))) == asdict(model.config)


@pytest.mark.parametrize("train, message", [(dict(image="lora"), "attnpool.* cannot take LoRA"), (dict(image="lora", text="lora"), "attnpool.* cannot take LoRA")])
def test_no_run_folder_is_left(published, tmp_path, train, message):
    with pytest.raises(ValueError, match=message): runs.train(settings(published("resnet"), tmp_path/"results", train))
    assert not list((tmp_path/"results").iterdir())


def test_a_run_from_a_run(published, data, tmp_path):
    "A run may start from another's folder; its model has the size, the length and the words of the first."
    first = runs.train(settings(published("biomedclip"), tmp_path/"a", dict(image="frozen"), max_length=30))
    second = runs.train(settings(first, tmp_path/"b", dict(text="lora", image="frozen"), max_length=200))
    models = [load_model(folder) for folder in (published("biomedclip"), first, second)]
    assert [model.config.max_length for model in models] == [64, 30, 30]
    assert all(torch.equal(x, models[0].state_dict()[name]) for name, x in models[2].state_dict().items() if name.startswith("image_encoder."))
