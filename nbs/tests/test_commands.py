"""The commands as a user calls them: files that appear, messages that help, nothing left behind."""
import base64, io, json, shutil, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file
import torch
from PIL import Image
from transformers import BertConfig, DistilBertConfig, DistilBertModel

from radiology_clip_mini.base.collections import load_studies
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.lab import ask, cli
from radiology_clip_mini.lab.evaluate import evaluate
from radiology_clip_mini.lab.published import load_model
from radiology_clip_mini.lab.runs import load_data
from radiology_clip_mini.models import image_encoder, learn_tokenizer

SMALL = ["--config", "demo", "--data.phantoms=60", "--data.image_size=48", "--train.epochs=1"]
COMMANDS = dict(rclip_train=cli.train_command, rclip_eval=cli.eval_command, rclip_viz=cli.viz_command)


VIT = dict(timm_model_name="test_vit", timm_pool="", timm_proj="linear", image_size=64)

def save_open_clip(folder, vision=VIT):
    "A small random model as open_clip saves it: a ViT of timm for images of 64 pixels, a BERT for texts."
    open_clip = pytest.importorskip("open_clip", reason="no open_clip: pip install 'radiology-clip-mini[compare]'")
    tokenizer = learn_tokenizer(load_studies("phantom", phantoms=40, image_size=32)["text"][:])
    tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64).save_pretrained(folder)
    text = dict(hf_model_name="nobody/bert", hf_tokenizer_name="nobody/bert", hf_proj_type="mlp", hf_pooler_type="cls_last_hidden_state_pooler", context_length=80)
    settings = dict(model_cfg=dict(embed_dim=24, vision_cfg=vision, text_cfg=text), preprocess_cfg=dict(mean=[.48, .46, .41], std=[.27, .26, .28]))
    (folder/"open_clip_config.json").write_text(json.dumps(settings))
    here = text | dict(hf_model_name=str(folder), hf_model_pretrained=False)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, text_cfg=here)
    save_file(model.state_dict(), folder/"open_clip_model.safetensors")
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    "Runs a command in an empty folder: (exit status, standard error)."
    monkeypatch.chdir(tmp_path)
    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        try: COMMANDS[name](); status = 0
        except SystemExit as e: status = e.code
        return status, capsys.readouterr().err
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    "A small run, trained by the command in a process of its own."
    folder = tmp_path_factory.mktemp("trained")
    done = subprocess.run([sys.executable, "-m", "radiology_clip_mini", "train", *SMALL], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_train_eval_viz(trained):
    "The three commands in a row leave the files that DESIGN names."
    for words in (["eval"], ["viz", "--method", "grad_cam"], ["viz"]):
        done = subprocess.run([sys.executable, "-m", "radiology_clip_mini", *words], cwd=trained, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if words == ["eval"]: assert max(map(len, done.stdout.split("written")[0].splitlines())) <= 100
    run = trained/Path((trained/"results/latest.txt").read_text().strip()).parent
    made = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    model = {f"{m}/{f}" for m in ("best", "last") for f in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")}
    assert made == model | {"run.json", "splits.json", "history.jsonl", "metrics.json", "metrics.md", "ranks.csv", "viz/evaluation.png", "viz/retrieval_grid.png", "viz/gradcam_example.png"}
    result = json.loads((run/"metrics.json").read_text())
    strict = {"R@1", "R@5", "R@10", "MedR", "MRR", "nDCG@10", "ci95", "ceiling", "normal", "random", "chance"}
    assert set(result["image_to_text"]) == set(result["text_to_image"]) == strict | {"text", "patient", "labels", "abnormal"}
    assert result["n_queries"] == result["n_gallery"] == json.loads((run/"run.json").read_text())["data"]["counts"]["test"]["studies"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help(call, capsys, command, monkeypatch):
    "--help says what the options are and ends well."
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit) as e: COMMANDS[command]()
    assert e.value.code == 0
    assert {"rclip_train": "Pairs in a batch", "rclip_eval": "Which split to evaluate", "rclip_viz": "Which test study to show"}[command] in " ".join(capsys.readouterr().out.split())


def refuses(outcome, message):
    status, err = outcome
    assert status not in (0, None) and message in err and "Traceback" not in err, err


@pytest.mark.parametrize("argv, message", [
    ([], "Start with --config demo"),
    (["--config", "dmeo"], "nor one of demo, iu_xray, tiny"),
    (["--config", "demo", "--data.sourc", "x"], "--data.sourc"),
    (["--config", "demo", "--train.lr", "fast"], "train.lr"),
    (["--config", "demo", "--train.epochs", "0"], "does not conform to restriction v>=1"),
    (["--config", "demo", "--data.source", "no/such/folder"], "no data at no/such/folder"),
    (["--config", "demo", "--data.source", "."], "holds no data this project can read"),
    (["--config", "demo", "--data.phantoms", "2"], "cannot be split"),
    ([*SMALL, "--model.image_weights", "missing.pth"], "no weights at missing.pth"),
    ([*SMALL, "--model.image_encoder", "resnet19"], "did you mean"),
    ([*SMALL, "--model.text_encoder", "./missing"], "neither a folder with a Hugging Face model"),
    ([*SMALL, "--paths.results_dir", "a_file/results"], "results cannot be written to a_file/results"),
    ([*SMALL, "--data.split_file", "splits.json"], "was made for other data"),
    ([*SMALL, "--model.max_length", "900"], "takes at most 512 tokens"),
    (["--config", "a_file"], "Unexpected config"),
])
def test_train_refuses(call, argv, message):
    "One clear message, a status, and nothing written."
    Path("a_file").write_text("")
    Path("splits.json").write_text(json.dumps(dict(train=["a"], val=["b"], test=["c"])))
    refuses(call("rclip_train", *argv), message)
    assert sorted(p.name for p in Path().iterdir() if any(p.rglob("*")) or p.is_file()) == ["a_file", "splits.json"]


def test_train_refuses_a_size(call, tmp_path):
    "A published model may take one size only."
    refuses(call("rclip_train", *SMALL, "--model.start", save_open_clip(tmp_path, dict(image_size=64, patch_size=16, width=32, layers=2, head_width=16))), "cannot take images of 48 pixels")
    assert not list(Path().glob("results/*"))


def test_hub_not_reachable(call, monkeypatch):
    "Without a network, the message names what was wanted and how to do without it."
    monkeypatch.setattr("radiology_clip_mini.base.sources.load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("offline")))
    status, err = call("rclip_train", "--config", "tiny")
    refuses((status, err), "'ykumards/open-i' could not be fetched from the hub")
    assert "--data.source PATH" in err


@pytest.mark.parametrize("command", ["rclip_eval", "rclip_viz"])
def test_eval_and_viz_refuse(call, command, trained):
    "A missing or foreign checkpoint, a study that is not there."
    refuses(call(command), "there is no latest model")
    refuses(call(command, "--ckpt", "missing"), "there is no model folder missing")
    Path("foreign").mkdir(); Path("foreign/model.safetensors").write_bytes(b"x")
    refuses(call(command, "--ckpt", "foreign"), "is no model saved by radiology_clip_mini")
    best = trained/Path((trained/"results/latest.txt").read_text().strip())
    refuses(call(command, "--ckpt", best, "--source", "nowhere"), "no data at nowhere")
    shutil.copytree(best.parent, "other"); Path("other/run.json").write_text("{}")
    refuses(call(command, "--ckpt", "other"), "was not written by this project's training")
    if command == "rclip_eval": refuses(call(command, "--ckpt", best, "--split", "dev"), "there is no split 'dev'")
    if command == "rclip_viz": refuses(call(command, "--ckpt", best, "--study", "x"), "study 'x' is not in this gallery")


def test_eval_options(call, trained):
    "Each text once, and a run against itself: no difference. A run that saw the test patients is refused."
    best = trained/Path((trained/"results/latest.txt").read_text().strip())
    shutil.copytree(best.parent, "run")
    assert call("rclip_eval", "--ckpt", "run", "--unique_texts", "--compare", "run")[0] in (0, None)
    result = json.loads(Path("run/metrics.json").read_text())
    assert result["unique_texts"] and set(result["n_gallery"]) == {"image_to_text", "text_to_image"}
    assert {m["difference"] for m in result["compare"]["run"]["image_to_text"].values()} == {0}
    shutil.copytree("run", "seen")
    splits = json.loads(Path("seen/splits.json").read_text())
    Path("seen/splits.json").write_text(json.dumps(splits | dict(train=splits["test"])))
    refuses(call("rclip_eval", "--ckpt", "run", "--compare", "seen"), "compare runs that share a --data.split_file")
    refuses(call("rclip_eval", "--ckpt", "run", "--compare", "nobody here"), "nobody here")


def test_import_is_light():
    "The package itself imports nothing heavy, and all of it imports without Jupyter."
    light = "import sys, radiology_clip_mini; assert not {'torch', 'numpy', 'datasets'} & set(sys.modules)"
    bare = ("import sys; sys.modules.update({m: None for m in ('IPython', 'ipywidgets', 'ipykernel', 'jupyterlab', 'nbdev')});"
            "from radiology_clip_mini import data, models, loss, metrics, train, gradcam; from radiology_clip_mini.base import phantom;"
            "from radiology_clip_mini.lab import ask, runs")
    for code in (light, bare): subprocess.run([sys.executable, "-c", code], check=True)


def jpeg(image, form):
    "One image as the hub's copies hold it."
    image.save(out := io.BytesIO(), format="JPEG")
    return out.getvalue() if form == "bytes" else base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize("form", ["bytes", "base64"])
def test_tiny_on_a_parquet_file(call, tmp_path, form):
    "`tiny` as it is, but for a local file with the hub's columns and local weights."
    studies = load_studies("phantom", phantoms=40, image_size=96)
    rows = [dict(uid=i, MeSH="normal", Problems=";".join(s["labels"]) or "normal", image=f"Xray {i}", indication=None, comparison=None,
                 findings=s["text"] if i % 7 else None, impression="No acute disease." if i % 5 else None,
                 img_frontal=jpeg(s["frontal"], form) if i % 6 else None, img_lateral=jpeg(s["lateral"], form) if i % 4 else None) for i, s in enumerate(studies)]
    rows[8]["img_frontal"], rows[8]["img_lateral"] = (b"", None) if form == "bytes" else ("no picture", None)
    pd.DataFrame(rows).to_parquet(tmp_path/"openi.parquet")
    torch.save(image_encoder("resnet18").state_dict(), tmp_path/"resnet18.pth")
    tokenizer = learn_tokenizer(studies["text"][:])
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), dim=64, n_layers=1, n_heads=2, hidden_dim=64)).save_pretrained(tmp_path/"encoder")
    tokenizer.save_pretrained(tmp_path/"encoder")
    outcome = call("rclip_train", "--config", "tiny", "--data.source", "openi.parquet", "--data.cache_dir", "cache",
                   "--model.image_weights", "resnet18.pth", "--model.text_encoder", "encoder")
    assert outcome[0] == 0, outcome[1]
    info = json.loads(next(Path("results").glob("*/run.json")).read_text())
    assert sum(c["patients"] for c in info["data"]["counts"].values()) == 30
    assert info["data"]["skipped"] == {"no image": ["0", "12", "24", "36"], "no text": ["35"], "unreadable frontal image: UnidentifiedImageError": ["8"]}
    if form == "bytes": return # the same files, so the same model
    assert call("rclip_eval")[0] == 0
    assert call("rclip_viz")[0] == 0


def test_broken_images_are_listed(call):
    "A zero-byte and a cut image cost their studies, are listed, and the rest trains."
    studies = load_studies("phantom", phantoms=24, image_size=64)
    Path("own").mkdir()
    for i, s in enumerate(studies): s["frontal"].save(f"own/{i}.png")
    Path("own/3.png").write_bytes(b"")
    Path("own/4.png").write_bytes(Path("own/4.png").read_bytes()[:200])
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(25)], patient_id=range(25), study_id=range(25), text=[*studies["text"], "x"])).to_csv("own/metadata.csv", index=False)
    argv = ["--config", "demo", "--data.source", "own", "--data.image_size=48", "--train.epochs=1"]
    assert call("rclip_train", *argv)[0] == 0
    skipped = json.loads(next(Path("results").glob("*/run.json")).read_text())["data"]["skipped"]
    assert skipped == {"the image file is not there": ["24.png"], "no image": ["24"],
                       "unreadable frontal image: UnidentifiedImageError": ["3"], "unreadable frontal image: OSError": ["4"]}


def test_a_changed_picture_is_another_test(call):
    "Evaluation stops where the data is no longer that of training; asked for by name, it leaves the run's own metrics alone."
    studies = load_studies("phantom", phantoms=24, image_size=64)
    Path("own").mkdir()
    for i, s in enumerate(studies): s["frontal"].save(f"own/{i}.png")
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(24)], patient_id=range(24), text=studies["text"])).to_csv("own/metadata.csv", index=False)
    assert call("rclip_train", "--config", "demo", "--data.source", "own", "--data.image_size=48", "--train.epochs=1")[0] == 0
    assert call("rclip_eval")[0] == 0
    own = next(Path("results").glob("*/metrics.json"))
    before = own.read_bytes()
    Image.new("L", (64, 64), 9).save("own/0.png")
    code, err = call("rclip_eval")
    assert code == 1 and "images changed. To evaluate on it all the same, name it with --source" in err
    with pytest.warns(UserWarning, match="images changed"): assert call("rclip_eval", "--source", "own")[0] == 0
    other = json.loads(next(Path("results").glob("*/metrics-*.json")).read_text())
    own_run = json.loads(own.with_name("run.json").read_text())["data"]
    assert own_run["fingerprints"].keys() == {"studies", "patients", "texts", "labels", "views", "images"}
    assert own.read_bytes() == before and other["data"]["source"] == "own" and len(other["data"]["fingerprint"]) == 16


# A model without a run

@pytest.fixture(scope="session")
def others(tmp_path_factory):
    "30 drawn chests of another series, as pictures and a table whose columns have names of their own."
    from radiology_clip_mini.base.phantom import make_phantoms
    folder = tmp_path_factory.mktemp("others")
    studies = make_phantoms(30, seed=7, image_size=96)
    for i, s in enumerate(studies): s["frontal"].save(folder/f"{i}.png")
    pd.DataFrame(dict(picture=[f"{i}.png" for i in range(30)], who=[f"p{i//2}" for i in range(30)], study=range(30), report=studies["text"])).to_csv(folder/"table.csv", index=False)
    return folder


@pytest.fixture(params=["ours", "open_clip"])
def model(request, trained, tmp_path_factory):
    "A run that we trained, or a published model with random weights."
    if request.param == "open_clip": return save_open_clip(tmp_path_factory.mktemp("published"))
    return trained/Path((trained/"results/latest.txt").read_text().strip()).parent


COLUMNS = "{image: picture, patient_id: who, study_id: study, text: report}"

@pytest.mark.filterwarnings("ignore:.*reads only the beginning")
def test_a_model_without_a_run(call, model, others, monkeypatch):
    "The three commands on a folder; the figures are those of `evaluate`, and the results have a folder of their own."
    words = ["--model", model, "--data.source", others, "--data.columns", COLUMNS]
    assert call("rclip_eval", *words)[0] in (0, None)
    assert call("rclip_viz", *words)[0] in (0, None)
    asked = load_model(model)
    folder, = Path("results").iterdir()
    assert folder.name.startswith(f"{asked.name.replace('/', '-')}-")
    made = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert made | {"viz/gradcam_example.png"} == {"metrics.json", "metrics.md", "ranks.csv", "viz/evaluation.png", "viz/retrieval_grid.png", "viz/gradcam_example.png"}
    columns = dict(image="picture", patient_id="who", study_id="study", text="report")
    data = load_data(DataConfig(source=str(others), columns=columns, image_size=asked.image_size), only_test=True)
    result = json.loads((folder/"metrics.json").read_text())
    assert result.pop("asked") == dict(model=str(model), fingerprint=ask.fingerprint(data)) and folder.name.endswith(ask.fingerprint(data)[:8])
    expected, _ = evaluate(asked, data)
    assert result["n_queries"] == 30 and result["n_patients"] == 15
    for direction in ("image_to_text", "text_to_image"):
        for name in ("R@1", "R@5", "R@10", "MRR"): assert result[direction][name] == pytest.approx(expected[direction][name], abs=1e-9)
    shown = {}
    monkeypatch.setattr(ask, "serve_page", lambda words, port, no_browser: shown.update(json.loads(json.dumps(words))))
    monkeypatch.setattr(sys, "argv", ["rclip_app", *map(str, words)])
    cli.app_command()
    explorer = ask.explore(**shown)
    assert len(explorer.gallery) == 30


def test_a_model_without_a_run_on_a_known_part(call, trained, others):
    "A split file says which studies are the test; whoever was trained on them is reported."
    run = trained/Path((trained/"results/latest.txt").read_text().strip()).parent
    words = ["--model", run, "--data.source", others, "--data.columns", COLUMNS]
    Path("split.json").write_text(json.dumps(dict(train=[f"p{i}" for i in range(9)], val=["p9"], test=[f"p{i}" for i in range(10, 15)])))
    assert call("rclip_eval", *words, "--data.split_file=split.json")[0] in (0, None)
    assert json.loads(next(Path("results").glob("*/metrics.json")).read_text())["n_queries"] == 10
    with pytest.warns(UserWarning, match="was trained on .* of these patients, and may know them by heart"):
        assert call("rclip_eval", "--model", run, "--data.source=phantom", "--data.phantoms=60", "--data.image_size=48")[0] in (0, None)


@pytest.mark.parametrize("words, message", [
    (["--model", "m"], "--model NAME needs data, such as --data.source FOLDER"),
    (["--data.source", "x"], "--data needs --model"),
    (["--model", "m", "--data.source", "x", "--ckpt", "results"], "--ckpt names the run"),
    (["--model", "m", "--data.source", "x", "--source", "y"], "say where its data is now"),
    (["--model", "m", "--data.sourc", "x"], "--data.sourc"),
    (["--model", "m", "--data.views", "top"], "data.views"),
    (["--model", "./nothing", "--data.source", "x"], "./nothing"),
    (["--model", "{run}", "--data.source", "nowhere"], "no data at nowhere"),
    (["--model", "{run}", "--data.source", "phantom", "--data.phantoms", "9", "--data.split_file", "none.json"], "the split file none.json is no file"),
    (["--model", "{run}", "--data.source", "phantom", "--data.phantoms", "9", "--data.split", "iu_xray"], "it is for IU X-Ray"),
])
@pytest.mark.parametrize("command", ["rclip_eval", "rclip_viz"])
def test_asked_without_a_run_and_refused(call, trained, command, words, message):
    "One message says what goes with what; nothing is written."
    run = trained/Path((trained/"results/latest.txt").read_text().strip()).parent
    refuses(call(command, *(word.format(run=run) for word in words)), message)
    assert not Path("results").exists()
