"""Text encoders and texts that went wrong without a word. A row each: what it is, and what must come of it: the same vectors, or a message."""
import json, unicodedata
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
import transformers as hf
from transformers.utils import logging as transformers_logging

from radiology_clip_mini.base.settings import Config, DataConfig, ModelConfig, PathsConfig, TrainConfig
from radiology_clip_mini.lab import published, runs
from radiology_clip_mini.lab.evaluate import visualise_run
from radiology_clip_mini.lab.runs import load_data, read_run
from radiology_clip_mini.models import CLIPMini, learn_tokenizer, text_encoder

CASES = Path(__file__).parents[3]/"shared/cases"
WORDS = ["No pleural effusion or pneumothorax.", "The heart is enlarged.", "Opacity in the left lower lobe, new since the prior film.", "Clear lungs."]
LONG = " ".join(WORDS*4)
TOKENIZER = learn_tokenizer(WORDS, 200)
SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=80, vocab_size=len(TOKENIZER), pad_token_id=0)
VISION = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16)
MARKS = dict(bos_token_id=2, eos_token_id=3)


@pytest.fixture(autouse=True)
def quiet():
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def saved(folder, net, tokenizer=TOKENIZER):
    for part in filter(None, (net, tokenizer)): part.save_pretrained(folder)
    return folder


def bert(folder, tokenizer=TOKENIZER, **changes): return saved(folder, hf.BertModel(hf.BertConfig(**SMALL | changes)), tokenizer)


def rewritten(folder, rename=lambda name: name):
    "The tensors under other names; without a name, they are gone."
    tensors = {rename(name): tensor for name, tensor in load_file(folder/"model.safetensors").items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, folder/"model.safetensors")
    return folder


def asking(folder, **values):
    "A config.json that says more, beside a file that must never run."
    (folder/"own.py").write_text(f"open({str(folder/'ran')!r}, 'w')\nclass Model: pass\n")
    (folder/"config.json").write_text(json.dumps(json.loads((folder/"config.json").read_text()) | values))
    return folder


def clip(folder, net):
    text, config = dict(SMALL, **MARKS), hf.CLIPConfig
    return saved(folder, net(config(text_config=text, vision_config=VISION)) if net is hf.CLIPModel else net(hf.CLIPTextConfig(**text)))


def gpt2(folder):
    tokenizer = learn_tokenizer(WORDS, 200)
    tokenizer.pad_token = None
    return saved(folder, hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=80, vocab_size=len(tokenizer), **MARKS)), tokenizer)


def roberta(folder): return saved(folder, hf.RobertaModel(hf.RobertaConfig(**SMALL | dict(pad_token_id=1))))


OWN = dict(auto_map=dict(AutoConfig="own.Model", AutoModel="own.Model"))
REFUSED = {
    "half of the tensors": (lambda f: rewritten(bert(f), lambda name: name if "output" not in name else None), "8 of 23 tensors .* such as encoder.layer.0.attention.output.LayerNorm.bias"),
    "one tensor missing": (lambda f: rewritten(bert(f), lambda name: name if name != "embeddings.word_embeddings.weight" else None), "1 of 23 tensors .* such as embeddings.word_embeddings.weight"),
    "names with another prefix": (lambda f: rewritten(bert(f), lambda name: f"text_model.inner.{name}"), "21 of 23 tensors .* such as embeddings.LayerNorm.bias"),
    "no tensor at all": (lambda f: rewritten(bert(f), lambda name: None), "21 of 23 tensors"),
    "weights of another width": (lambda f: asking(bert(f), hidden_size=32), "could not be loaded"),
    "damaged weights": (lambda f: (bert(f)/"model.safetensors").write_bytes(b"none"), "could not be loaded"),
    "no weights": (lambda f: (bert(f)/"model.safetensors").unlink(), "could not be loaded.*no file named model.safetensors"),
    "no tokenizer": (lambda f: bert(f, None), "tokenizer knows 5 tokens, the model .* do not belong together"),
    "no tokenizer.json": (lambda f: (bert(f)/"tokenizer.json").unlink(), "could not be loaded"),
    "more tokens than vectors": (lambda f: bert(f, vocab_size=len(TOKENIZER) - 1), "do not belong together"),
    "far too few tokens": (lambda f: bert(f, vocab_size=3*len(TOKENIZER)), "do not belong together"),
    "a whole CLIP": (lambda f: clip(f, hf.CLIPModel), "of type 'clip', not an encoder of texts alone.*CLIPTextModel"),
    "T5": (lambda f: saved(f, hf.T5Model(hf.T5Config(vocab_size=len(TOKENIZER), d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2))), "of type 't5', not an encoder of texts alone"),
    "BART": (lambda f: saved(f, hf.BartModel(hf.BartConfig(vocab_size=len(TOKENIZER), d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
                                                          encoder_attention_heads=2, decoder_attention_heads=2))), "of type 'bart', not an encoder of texts alone"),
    "a vision transformer": (lambda f: saved(f, hf.ViTModel(hf.ViTConfig(**VISION))), "of type 'vit', not an encoder of texts alone"),
    "code of its own": (lambda f: asking(bert(f), model_type="cxr-bert", **OWN), "needs code of its own .* is never run.*a copy whose config.json has that model_type"),
    "code of its own, a type that is known": (lambda f: rewritten(asking(bert(f), **OWN), lambda name: name if "LayerNorm" in name else None), "tensors are missing .* needs code of its own"),
    "code of its own, no type": (lambda f: (bert(f)/"config.json").write_text(json.dumps(OWN)), "needs code of its own .* is never run"),
    "a type that nobody knows": (lambda f: asking(bert(f), model_type="cxr-bert"), "could not be loaded.*model type `cxr-bert`"),
}

@pytest.mark.parametrize("make, message", REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message): text_encoder(str(tmp_path))
    assert not (tmp_path/"ran").exists()


@pytest.mark.parametrize("name", ["bert_half", "no_tokenizer"])
def test_refused_among_the_cases(name):
    if not (CASES/"encoders").is_dir(): pytest.skip("the collection of cases is not here")
    with pytest.raises(ValueError, match="tensors are missing|do not belong together"): text_encoder(str(CASES/"encoders"/name))


def masked(folder, prefix="", **more):
    "BERT as it comes from guessing words: with a head and without a pooler, its names below `bert.`."
    saved(folder, hf.BertForMaskedLM(hf.BertConfig(**SMALL)))
    return asking(folder, **more)


def cxr_bert(folder):
    "CXR-BERT's form, with the type that it has in truth."
    return asking(masked(folder), architectures=["CXRBertModel"], projection_size=8)


ACCEPTED = {
    "BERT": bert,
    "BERT without pooler": lambda f: rewritten(bert(f), lambda name: name if "pooler" not in name else None),
    "BERT that guesses words": masked,
    "BERT with more vectors than tokens": lambda f: bert(f, vocab_size=len(TOKENIZER) + 40),
    "CXR-BERT as a BERT": cxr_bert,
    "BERT with code that it does not need": lambda f: asking(bert(f), **OWN),
    "GPT-2 without a token that pads": gpt2,
    "RoBERTa": roberta,
    "a CLIP's text part": lambda f: clip(f, hf.CLIPTextModel),
    "a whole CLIP's text part": lambda f: saved(f, hf.CLIPTextModel.from_pretrained(clip(f/"whole", hf.CLIPModel))),
    "ELECTRA": lambda f: saved(f, hf.ElectraModel(hf.ElectraConfig(embedding_size=16, **SMALL))),
    "ALBERT": lambda f: saved(f, hf.AlbertModel(hf.AlbertConfig(embedding_size=8, **SMALL))),
    "DeBERTa": lambda f: saved(f, hf.DebertaV2Model(hf.DebertaV2Config(**SMALL))),
    "ModernBERT": lambda f: saved(f, hf.ModernBertModel(hf.ModernBertConfig(**SMALL, **MARKS, cls_token_id=2, sep_token_id=3))),
    "Longformer": lambda f: saved(f, hf.LongformerModel(hf.LongformerConfig(attention_window=[8], **SMALL))),
    "XLM-R": lambda f: saved(f, hf.XLMRobertaModel(hf.XLMRobertaConfig(**SMALL))),
    "DistilBERT": lambda f: saved(f, hf.DistilBertModel(hf.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=len(TOKENIZER)))),
    "XLNet, which has no limit": lambda f: saved(f, hf.XLNetModel(hf.XLNetConfig(vocab_size=len(TOKENIZER), d_model=16, n_layer=1, n_head=2, d_inner=16))),
}

def clip_mini(folder, max_length=64): return CLIPMini(ModelConfig(image_encoder="test_efficientnet", image_weights="none", text_encoder=str(folder), max_length=max_length)).eval()


@torch.no_grad()
@pytest.mark.parametrize("make", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(tmp_path, make):
    "Each text has the library's own vector, padding changes nothing, what is saved is read again, and no code has run."
    torch.manual_seed(0)
    make(tmp_path)
    model = clip_mini(tmp_path)
    vectors = model.encode_text(WORDS)
    published.check_text_length(model)
    assert torch.pdist(vectors).min() > 1e-5
    assert torch.allclose(torch.cat([model.encode_text([text]) for text in WORDS]), vectors, atol=1e-5)
    assert torch.equal(CLIPMini.from_pretrained(model.save_pretrained(tmp_path/"again")).encode_text(WORDS), vectors)
    library = hf.AutoModel.from_pretrained(tmp_path, dtype=torch.float32, trust_remote_code=False).eval()
    for text in WORDS:
        words = library(input_ids=model.tokenize([text])["input_ids"]).last_hidden_state
        assert torch.allclose(words.mean(1), model.text_features(model.tokenize([text])), atol=1e-5)
    assert not (tmp_path/"ran").exists()


LENGTHS = {"RoBERTa": (roberta, 79, "model.max_length is 79, .* at most 78 tokens: give --model.max_length 78"), "RoBERTa at its positions": (roberta, 80, "give --model.max_length 78"),
           "RoBERTa that fits": (roberta, 78, ""), "XLM-R": (ACCEPTED["XLM-R"], 80, "give --model.max_length 79"), "Longformer": (ACCEPTED["Longformer"], 80, "give --model.max_length 79"),
           "BERT at its positions": (bert, 80, ""), "GPT-2 at its positions": (gpt2, 80, "")}

@pytest.mark.parametrize("make, max_length, message", LENGTHS.values(), ids=LENGTHS)
def test_longest_text(tmp_path, make, max_length, message):
    make(tmp_path)
    model = clip_mini(tmp_path, max_length)
    assert model.tokenize([LONG*3])["input_ids"].shape == (1, max_length)
    if not message: return published.check_text_length(model)
    with pytest.raises(ValueError, match=message): published.check_text_length(model)


def test_longest_text_without_an_answer(tmp_path):
    "Where no length helps, the encoder's own words are given."
    model = clip_mini(bert(tmp_path))
    with mock.patch.object(CLIPMini, "text_features", side_effect=RuntimeError("odd shapes")), pytest.raises(ValueError, match="cannot take a text of that length; odd shapes"):
        published.check_text_length(model)


# Texts

def config(source, folder, **model):
    model = dict(image_encoder="test_efficientnet", image_weights="none", text_encoder="scratch") | model
    return Config(data=DataConfig(source=source, phantoms=40, image_size=32), model=ModelConfig(**model), train=TrainConfig(epochs=1), paths=PathsConfig(str(folder)))


@pytest.mark.parametrize("make, max_length, message", [(roberta, 80, "give --model.max_length 78"), (REFUSED["T5"][0], 64, "encoder of texts"), (REFUSED["no tokenizer"][0], 64, "do not belong")], ids=["RoBERTa", "T5", "no tokenizer"])
def test_no_run_folder_is_left(tmp_path, make, max_length, message):
    make(tmp_path/"encoder")
    with pytest.raises(ValueError, match=message): runs.train(config("phantom", tmp_path/"results", text_encoder=str(tmp_path/"encoder"), max_length=max_length))
    assert not list((tmp_path/"results").iterdir())


@pytest.mark.parametrize("max_length, cut", [(256, False), (20, True)])
def test_texts_that_are_cut_are_counted(tmp_path, capsys, monkeypatch, max_length, cut):
    monkeypatch.setattr(runs, "fit", mock.Mock())
    settings = config("phantom", tmp_path, max_length=max_length)
    info = read_run(runs.train(settings))["data"]
    data = load_data(settings.data, settings.seed)
    tokenizer = learn_tokenizer(data.texts(data.rows("train")))
    lengths = {split: [len(ids) for ids in tokenizer(data.texts(data.rows(split)))["input_ids"]] for split in ("train", "val", "test")}
    assert info["cut_texts"] == {split: sum(n > max_length for n in found) for split, found in lengths.items()}
    assert (info["max_length"], info["longest_text"]) == (max_length, max(sum(lengths.values(), [])))
    assert (f"texts cut at 20 tokens: train: {info['cut_texts']['train']}, val" in (said := capsys.readouterr().out)) is cut
    assert ("raise --model.max_length" in said) is cut and any(info["cut_texts"].values()) is cut


def test_long_reports():
    "The default is long enough for reports with MIMIC's headings."
    if not (CASES/"long_reports").is_dir(): pytest.skip("the collection of cases is not here")
    data = load_data(DataConfig(source=str(CASES/"long_reports"), image_size=32), seed=1)
    for max_length, n in ((128, 60), (ModelConfig.max_length, 0)):
        model = CLIPMini(ModelConfig(image_encoder="test_efficientnet", image_weights="none", text_encoder="scratch", max_length=max_length), data.texts(data.rows("train")))
        assert sum(runs.count_cut(model, data)["cut_texts"].values()) == n


PAIRS = {
    "German": ("Größe normal.", "Grüße normal."), "French": ("Épanchement pleural péri-hilaire", "Epanchement pleural peri-hilaire"), "Spanish": ("año", "ano"), "Polish": ("płuco lewe", "pluco lewe"),
    "Russian": ("Плеврит слева.", "Плеврит справа."), "Russian й": ("мой", "мои"), "Ukrainian": ("їх легені", "іх легені"), "Greek": ("πνεύμονας αριστερά", "πνεύμονας δεξιά"), "Greek accents": ("νόμος", "νομός"),
    "Arabic": ("انصباب جنبي أيسر", "انصباب جنبي أيمن"), "Arabic vowels": ("عِلم", "عَلَم"), "Hebrew": ("ריאה ימנית", "ריאה שמאלית"), "Persian": ("ریه راست", "ریه چپ"),
    "Chinese": ("右侧胸腔积液。", "左侧胸腔积液。"), "Japanese": ("右肺に胸水あり", "左肺に胸水あり"), "Japanese marks": ("はい", "ばい"), "Korean": ("우측 흉수", "좌측 흉수"),
    "Hindi": ("पानी", "पिनी"), "Hindi virama": ("क्ष", "कष"), "Tamil": ("கா", "கி"), "Thai": ("ปอดซ้าย", "ปอดขวา"), "Thai tones": ("ป่า", "ป้า"), "Vietnamese": ("phổi phải", "phổi phai"),
    "Thai without spaces": ("ปอดซ้ายปกติ"*20, "ปอดซ้ายปกติ"*19 + "ปอดขวาปกติ"), "Japanese without marks": ("むねのおと"*40, "むねのおと"*39 + "むねのいと"),
    "signs": ("Pneumothorax +", "Pneumothorax -"), "comparisons": ("CTR > 0.5", "CTR < 0.5"), "Turkish": ("sağ akciğer", "sag akciger"),
}

@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_texts_keep_their_difference(tmp_path, pair):
    "Other texts are other tokens, all of them known; a letter written another way is the same; a saved tokenizer gives the same."
    tokenizer = learn_tokenizer(list(pair)*3)
    one, other = (tokenizer(text)["input_ids"] for text in pair)
    assert one != other and tokenizer.unk_token_id not in one + other
    for form in ("NFC", "NFD", "NFKC", "NFKD"): assert tokenizer(unicodedata.normalize(form, pair[0]))["input_ids"] == one
    tokenizer.save_pretrained(tmp_path)
    assert hf.AutoTokenizer.from_pretrained(tmp_path)(list(pair))["input_ids"] == [one, other]


@torch.no_grad()
def test_texts_keep_their_difference_in_a_model(tmp_path):
    "All scripts at once: every text has a vector of its own, before and after it is saved; 3,000 different signs are all known."
    texts = [text for pair in PAIRS.values() for text in pair]
    model = CLIPMini(ModelConfig(image_encoder="test_efficientnet", image_weights="none", text_encoder="scratch"), texts).eval()
    vectors = model.encode_text(texts)
    assert torch.pdist(vectors).min() > 1e-6
    assert torch.equal(CLIPMini.from_pretrained(model.save_pretrained(tmp_path)).encode_text(texts), vectors)
    signs = " ".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    many = learn_tokenizer([signs])
    assert many.unk_token_id not in many(signs)["input_ids"]


def test_ascii_is_as_before():
    "Texts in ASCII have the vocabulary and the tokens that they had when accents were stripped."
    from tokenizers import normalizers, pre_tokenizers
    from radiology_clip_mini import models
    data = load_data(DataConfig(source="phantom", phantoms=120, image_size=32), seed=1)
    texts = [*data.texts(np.arange(len(data.studies))), "".join(map(chr, range(128))), "A\x00b \t\x7f c", "w"*150 + " tail", "a"*49 + "_"*30]
    new = learn_tokenizer(texts)
    with mock.patch.multiple(models, _LETTERS=normalizers.BertNormalizer(lowercase=True), _WORDS=pre_tokenizers.BertPreTokenizer()): old = learn_tokenizer(texts)
    assert new.get_vocab() == old.get_vocab() and new(texts)["input_ids"] == old(texts)["input_ids"]


# Pictures

def test_an_encoder_without_a_map_gets_its_retrieval_grid(tmp_path):
    "An encoder without a map: the grid is drawn, and a warning says what is not."
    data = load_data(DataConfig(source="phantom", phantoms=24, image_size=64), seed=1)
    model = CLIPMini(ModelConfig(image_encoder="test_efficientnet", image_weights="none", text_encoder="scratch"), data.texts(data.rows("train"))).eval()
    model.stages = []
    with pytest.warns(UserWarning, match="no stage that hands on a map.*retrieval grid, but no heat map"): written = visualise_run(runs.Run(tmp_path, model, data, {}))
    assert written == [tmp_path/"viz/retrieval_grid.png"] and written[0].stat().st_size > 10_000
    with pytest.raises(ValueError, match="method is 'cam'"): visualise_run(runs.Run(tmp_path, model, data, {}), methods=("cam",))


# Image encoders of the hub

def test_an_image_encoder_of_the_hub(tmp_path, monkeypatch):
    "`hf-hub:owner/name` is built from the config and weights of its page; a saved model of it asks the hub for nothing."
    import huggingface_hub
    import timm
    from timm.models import _hub
    page = tmp_path/"page"
    page.mkdir()
    pretrained = dict(input_size=[3, 64, 64], mean=[.4]*3, std=[.2]*3, num_classes=0, fixed_input_size=True, first_conv="patch_embed.proj", classifier="head")
    (page/"config.json").write_text(json.dumps(dict(architecture="test_vit", num_classes=0, num_features=64, model_args=dict(img_size=64, class_token=False, global_pool="avg"), pretrained_cfg=pretrained)))
    torch.manual_seed(3)
    net = timm.create_model("test_vit", num_classes=0, img_size=64, class_token=False, global_pool="avg")
    save_file(net.state_dict(), page/"model.safetensors")
    asked = []
    def download(repo_id=None, filename=None, **more):
        asked.append((repo_id, filename))
        if not (page/filename).is_file(): raise huggingface_hub.errors.EntryNotFoundError(filename)
        return str(page/filename)
    monkeypatch.setattr(_hub, "hf_hub_download", download)
    config = ModelConfig(image_encoder="hf-hub:owner/name", image_weights="imagenet", text_encoder="scratch")
    model = CLIPMini(config, WORDS).eval()
    assert set(asked) == {("owner/name", "config.json"), ("owner/name", "model.safetensors")} and model.image_size == 64
    assert model.mean.tolist() == pytest.approx([.4]*3) and not any("cls_token" in name for name in model.state_dict())
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(model.image_features(images), net.eval()(images), atol=1e-6)
    monkeypatch.setattr(_hub, "hf_hub_download", mock.Mock(side_effect=AssertionError("asked the hub")))
    monkeypatch.setattr("socket.getaddrinfo", mock.Mock(side_effect=AssertionError("asked the internet")))
    again = CLIPMini.from_pretrained(model.save_pretrained(tmp_path/"saved"))
    with torch.no_grad(): assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert again.built == model.built and again.built["image"]["architecture"] == "test_vit"
