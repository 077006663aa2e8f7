"""Runs in places nobody thought of: moved weights, read-only folders, full disks, odd names. A row each: what happened, and what must come out."""
import errno, json, os, resource, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from accelerate.tracking import GeneralTracker
import pandas as pd
import pytest
from safetensors import SafetensorError
import torch
from transformers import DistilBertConfig, DistilBertModel

from radiology_clip_mini import models, train as training
from radiology_clip_mini.base import pictures as base_pictures
from radiology_clip_mini.base.collections import load_studies
from radiology_clip_mini.base.settings import load_config, ModelConfig
from radiology_clip_mini.lab import ask, cli, runs
from radiology_clip_mini.lab.runs import find_ckpt, load_run, read_run, resume_config, train
from radiology_clip_mini.models import CLIPMini, image_encoder, learn_tokenizer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="file names and limits as POSIX has them")
COMMANDS = dict(rclip_train=cli.train_command, rclip_eval=cli.eval_command, rclip_viz=cli.viz_command)
NET = "test_efficientnet" # timm's smallest that still has all kinds of layers
SMALL = (f"--model.image_encoder={NET}", "--data.image_size=32", "--train.epochs=2", "--train.batch_size=12", "--model.dropout=.1")
DRAWN = ("--data.phantoms=40", *SMALL)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    "Runs a command in an empty folder: (exit status, standard output, standard error)."
    monkeypatch.chdir(tmp_path)
    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
        try: COMMANDS[name](); status = 0
        except SystemExit as e: status = e.code
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return status, said.out, said.err
    return run


def outcome(run): return [(run/name).read_bytes() for name in ("history.jsonl", "last/model.safetensors", "best/model.safetensors", "last/config.json", "last/tokenizer.json")]


def first_weights(folder):
    "Weights for both encoders, as someone carries them to a machine without a network."
    torch.manual_seed(5)
    folder.mkdir()
    torch.save(image_encoder(NET).state_dict(), folder/"net.pth")
    tokenizer = learn_tokenizer(load_studies("phantom", phantoms=40, image_size=32)["text"][:])
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), dim=32, n_layers=1, n_heads=2, hidden_dim=32)).half().save_pretrained(folder/"bert")
    tokenizer.save_pretrained(folder/"bert")
    return f"--model.image_weights={folder}/net.pth", f"--model.text_encoder={folder}/bert"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    "Folders of first weights, of a whole run that began with them, and of the same run stopped after its second step."
    home = tmp_path_factory.mktemp("begun")
    words = (*DRAWN, *first_weights(home/"weights"), f"--data.cache_dir={home}/cache")
    whole = train(load_config("demo", *words, f"--paths.results_dir={home}/whole"))
    stopped = train(load_config("demo", *words, f"--paths.results_dir={home}/stopped", "--train.max_minutes=0"))
    stopped = train(resume_config(stopped), resume=stopped)
    return home/"weights", whole, stopped


# F15. A stopped run has all that it needs to go on

def moved(weights, run): shutil.move(weights, weights.with_name("elsewhere"))
def killed(weights, run): moved(weights, run), (run/"last/model.safetensors").unlink()
def before_this(weights, run): [p.unlink() for p in (run/"last").iterdir() if p.name != "training.safetensors"]
def overwritten(weights, run): torch.save(image_encoder(NET).state_dict(), weights/"net.pth")

MOVED = {
    "the weights are gone": (moved, []),
    "gone, and the run was killed": (killed, []),
    "other weights lie in their place": (overwritten, []),
    "gone, and none are asked for": (moved, ["--model.image_weights=none"]),
    "gone, and both settings differ": (moved, ["--model.image_weights=none", "--model.text_encoder=scratch"]),
    "the new place is given": (moved, ["--model.image_weights={home}/elsewhere/net.pth", "--model.text_encoder={home}/elsewhere/bert"]),
    "a name of the hub is given": (moved, ["--model.text_encoder=distilbert-base-uncased"]),
    "a run of an older version": (before_this, []),
}

@pytest.mark.parametrize("happened, words", MOVED.values(), ids=MOVED)
def test_the_first_weights_are_not_needed_again(begun, tmp_path, happened, words):
    "The rest of the run is the same to the byte."
    weights, whole, stopped = begun
    home = Path(shutil.copytree(weights, tmp_path/"weights")).parent
    run = Path(shutil.copytree(stopped, tmp_path/"results"/stopped.name))
    try:
        shutil.move(weights, f"{weights}.away") # where run.json says they are
        if happened in (before_this, overwritten): shutil.copytree(home/"weights", weights)
        happened(weights if happened is overwritten else home/"weights", run)
        train(resume_config(run, "--train.max_minutes=null", *(word.format(home=home) for word in words)), resume=run)
    finally:
        shutil.rmtree(weights, ignore_errors=True)
        shutil.move(f"{weights}.away", weights)
    assert outcome(run) == outcome(whole)


def test_a_killed_run_has_its_architecture(begun, tmp_path, monkeypatch):
    "It lies beside the first checkpoint, whatever ends the run after it."
    def die(*_): raise KeyboardInterrupt
    monkeypatch.setattr(training, "end_epoch", die)
    monkeypatch.setattr(runs, "SAVE_MINUTES", 0)
    with pytest.raises(KeyboardInterrupt): train(load_config("demo", *DRAWN, f"--paths.results_dir={tmp_path}"))
    assert {p.name for p in tmp_path.glob("2*/last/*")} == {"training.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}


def with_older_settings(run, **more):
    "Puts settings into a run.json that have left the project, with their defaults unless others are given."
    info = read_run(run)
    info["config"]["data"] |= dict(form="auto", num_workers=0)
    info["config"]["model"] = dict(info["config"]["model"], blocks=more.pop("blocks", None))
    info["config"]["train"] |= dict(patience=None, warmup=.1, freeze_norm=False, augment=False, checkpoint_minutes=10., freeze="none") | more
    for name in ("start", "stage"): del info["config"]["model"][name]
    for name in ("image", "text", "lora_rank"): del info["config"]["train"][name]
    (run/"run.json").write_text(json.dumps(info))
    for file in run.glob("*/config.json"):
        saved = json.loads(file.read_text())
        model = {name: value for name, value in saved["model"].items() if name not in ("start", "stage")} | dict(blocks=None)
        file.write_text(json.dumps(dict(model=model, text=saved["text"])))
    return run


def test_an_older_run_goes_on(begun, tmp_path):
    "Settings that are gone change nothing where they had their defaults."
    run = with_older_settings(Path(shutil.copytree(begun[2], tmp_path/"run")))
    train(resume_config(run, "--train.max_minutes=null"), resume=run)
    assert outcome(run)[:3] == outcome(begun[1])[:3]
    assert load_run(run).data.splits == read_run(run, "splits.json")


@pytest.mark.parametrize("tower", ["text", "image"])
def test_a_frozen_encoder_stays_frozen(begun, tmp_path, tower):
    "The setting had another name and form."
    run = with_older_settings(Path(shutil.copytree(begun[2], tmp_path/"run")), freeze=tower)
    train = resume_config(run).train
    assert (train.text, train.image) == tuple("frozen" if name == tower else "full" for name in ("text", "image"))


@pytest.mark.parametrize("gone", [dict(patience=3), dict(warmup=0.), dict(freeze_norm=True), dict(augment=True), dict(blocks=5)], ids=str)
def test_an_older_run_that_cannot_go_on(begun, tmp_path, gone):
    "One sentence says which setting is gone and what to do. Reading the run still works."
    stopped = with_older_settings(Path(shutil.copytree(begun[2], tmp_path/"stopped")), **gone)
    group = "model" if "blocks" in gone else "train"
    message = f"was begun with {group}.{[*gone][0]}, which this version no longer has; finish it with the version that began it"
    with pytest.raises(ValueError, match=message): resume_config(stopped)
    run = with_older_settings(Path(shutil.copytree(begun[1], tmp_path/"run")), **gone)
    assert load_run(run).data.splits == read_run(run, "splits.json")


def test_without_a_checkpoint_the_first_weights_count(begun, tmp_path):
    "Such a run has learned nothing, so other weights would make it another run."
    run = Path(shutil.copytree(begun[2], tmp_path/"run"))
    (run/"last/training.safetensors").unlink()
    with pytest.raises(ValueError, match="model.image_weights would differ"): resume_config(run, "--model.image_weights=none")


def test_the_architecture_alone_is_in_full_precision(begun):
    "As training has it, though the text encoder came in half."
    assert {p.dtype for p in CLIPMini.from_pretrained(begun[2]/"last", weights=False).parameters()} == {torch.float32}


# F16. A run that is read elsewhere

@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    "A folder with a run of own data, whose reports and pictures lay apart, in places that are no longer there."
    home, studies = tmp_path_factory.mktemp("apart"), load_studies("phantom", phantoms=40, image_size=64)
    (home/"pics").mkdir()
    for i, s in enumerate(studies): s["frontal"].save(home/f"pics/{i}.png")
    (home/"reports").mkdir()
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(40)], patient_id=range(40), text=studies["text"])).to_csv(home/"reports/metadata.csv", index=False)
    words = (f"--data.source={home}/reports", f"--data.images={home}/pics", f"--data.cache_dir={home}/temp", f"--paths.results_dir={home}/results")
    run = train(load_config("demo", *words, *SMALL, "--train.epochs=1"))
    for name in ("pics", "reports"): (home/name).rename(home/f"new {name}")
    shutil.rmtree(home/"temp")
    (home/"temp").write_text("no folder can be made below a file, as on a read-only disk")
    return home, run


def places(home): return dict(source=f"{home}/new reports", images=f"{home}/new pics")


PLACES = {
    "the run's cache cannot be made": (lambda home, tmp: {}, None, "user"),
    "another cache is given": (lambda home, tmp: dict(cache_dir=f"{tmp}/given"), "given", "given"),
}

@pytest.mark.parametrize("more, kept, root", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("name", ["load_run", "explore"])
def test_a_run_is_read_elsewhere(apart, tmp_path, monkeypatch, name, more, kept, root):
    "The run says where things are now."
    home, run = apart
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"user"))
    seen = []
    monkeypatch.setattr(ask, "kept_gallery", lambda model, data, split: seen.append(data))
    monkeypatch.setattr(ask, "Explorer", lambda gallery: gallery)
    words = dict(ckpt=run) | places(home) | more(home, tmp_path)
    if kept: ask.explore(**words) if name == "explore" else seen.append(load_run(**words).data)
    else:
        with pytest.warns(UserWarning, match="user/radiology_clip_mini is used now, as the cache of this run cannot be: .*Not a directory"):
            ask.explore(**words) if name == "explore" else seen.append(load_run(**words).data)
    assert seen[0].images.folder.is_relative_to(tmp_path/root)
    if name == "explore": return
    data = load_run(**(words | dict(cache_dir=str(tmp_path/"now")))).info["config"]["data"]
    assert {field: data[field] for field in ("source", "images", "cache_dir")} == places(home) | dict(cache_dir=str(tmp_path/"now"))


@pytest.mark.parametrize("name", ["rclip_eval", "rclip_viz"])
def test_the_commands_know_the_places(call, apart, tmp_path, name):
    "--images and --cache_dir, beside --source."
    home, run = apart
    now = places(home)
    status, out, err = call(name, "--ckpt", run, "--source", now["source"], "--images", now["images"], "--cache_dir", tmp_path/"here", "--out", tmp_path/"out")
    assert status == 0 and (tmp_path/"here/radiology_clip_mini").is_dir(), err
    status, out, err = call(name, "--ckpt", run, "--source", now["source"])
    assert status == 1 and f"{home}/pics" in err


def test_rclip_app_knows_the_places(monkeypatch):
    monkeypatch.setattr(ask, "serve_page", lambda asked, port, no_browser: seen.update(asked))
    seen = {}
    monkeypatch.setattr(sys, "argv", ["rclip_app", "--images=a", "--cache_dir=b", "--source=c"])
    cli.app_command()
    assert (seen["images"], seen["cache_dir"], seen["source"]) == ("a", "b", "c")


# F33. Where no cache can be kept

class NoLocks:
    "As filelock on a file system that has none."
    def __init__(self, path): pass
    def __enter__(self): raise self.error
    def __exit__(self, *_): pass

CACHES = {
    "the home is read-only": (dict(HOME="{file}/home"), [], None, "Not a directory"),
    "the cache folder of the system is": (dict(XDG_CACHE_HOME="{file}"), [], None, "Not a directory"),
    "the one that is given is": ({}, ["--data.cache_dir={file}/c"], None, "Not a directory"),
    "a network drive without locks": ({}, [], OSError(errno.ENOLCK, "No locks available"), "No locks available"),
    "a file system without flock": ({}, [], NotImplementedError("FileSystem does not appear to support flock"), "support flock"),
}

@pytest.mark.parametrize("environment, words, error, reason", CACHES.values(), ids=CACHES)
def test_the_setting_for_the_cache_is_named(call, begun, tmp_path, monkeypatch, environment, words, error, reason):
    "In training, and where a run is read."
    (tmp_path/"file").touch()
    run = Path(shutil.copytree(begun[1], tmp_path/"run"))
    info = read_run(run)
    info["config"]["data"]["cache_dir"] = None
    (run/"run.json").write_text(json.dumps(info))
    if "HOME" in environment: monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, place in environment.items(): monkeypatch.setenv(name, place.format(file=tmp_path/"file"))
    if error: monkeypatch.setattr(base_pictures, "FileLock", type("FileLock", (NoLocks,), dict(error=error)))
    status, out, err = call("rclip_train", "--config=demo", *DRAWN, *(word.format(file=tmp_path/"file") for word in words))
    assert status == 1 and reason in err and "Give another folder: --data.cache_dir DIR" in err
    status, out, err = call("rclip_eval", "--ckpt", run, *(word.format(file=tmp_path/"file").replace("data.", "") for word in words))
    assert status == 1 and reason in err and "--cache_dir DIR to the other commands" in err


# F18. The disk is full while a model is saved

@contextmanager
def small_disk(n):
    "No file may grow beyond n bytes."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try: yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


FULL = {
    "the first best model": ("best", 1, 1_000_000),
    "the next best model": ("best", 2, 1_000_000),
    "the last model": ("last", 2, 1_000_000), # the first is the architecture, at the start
    "its tokenizer": ("best", 1, 1_000),
    "architecture and tokenizer": ("last", 1, 1_000),
}

@pytest.mark.parametrize("name, time, limit", FULL.values(), ids=FULL)
def test_a_full_disk_keeps_the_model_before(tmp_path, monkeypatch, name, time, limit):
    "The error names the last good checkpoint; the model that was there is whole; once there is room, the run goes on."
    real, before = CLIPMini.save_pretrained, []
    def save_pretrained(self, folder, **more):
        if Path(folder).name == name: before.append({p.name: p.read_bytes() for p in Path(folder).iterdir()} if Path(folder).exists() else None)
        if Path(folder).name != name or len(before) != time: return real(self, folder, **more)
        with small_disk(limit): return real(self, folder, **more)
    ever_better = iter(range(1, 9))
    monkeypatch.setattr(training, "validate", lambda model, data: dict.fromkeys(("recall", "R@1", "R@10"), next(ever_better)/10))
    monkeypatch.setattr(CLIPMini, "save_pretrained", save_pretrained)
    monkeypatch.setattr(runs, "SAVE_MINUTES", 0)
    config = load_config("demo", *DRAWN, f"--paths.results_dir={tmp_path}")
    with pytest.raises(OSError) as e: train(config)
    run = next(tmp_path.glob("2*"))
    advice = "There is no checkpoint yet" if name == "last" and time == 1 else f"go on from it with rclip_train --resume {run}"
    assert f"nothing could be written to {run/name} (" in str(e.value) and advice in str(e.value)
    now = {p.name: p.read_bytes() for p in (run/name).iterdir()} if (run/name).exists() else None
    assert now == before[-1]
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith("tmp") or p.suffix == ".part"]
    monkeypatch.setattr(CLIPMini, "save_pretrained", real)
    train(resume_config(run), resume=run)
    assert CLIPMini.from_pretrained(run/"best") and "best" in read_run(run)


def test_a_model_saved_by_hand(tmp_path, monkeypatch):
    "The library's own error is an OSError too, and no empty folder stays."
    model = CLIPMini(ModelConfig(image_weights="none", text_encoder="scratch"), ["Clear lungs."])
    def full(*_): raise SafetensorError("I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(models, "save_file", full)
    with pytest.raises(OSError, match="nothing could be written to .*here .*No space left"): model.save_pretrained(tmp_path/"here")
    assert not list(tmp_path.iterdir())


# F20. Half precision on one device and then on another

class Scaler:
    "What accelerate has for float16."
    def __init__(self): self.loaded = []
    def state_dict(self): return dict(scale=8.)
    def load_state_dict(self, state): self.loaded.append(dict(state))


@pytest.mark.parametrize("before, now, loaded", [(None, Scaler(), []), (Scaler(), None, []), (Scaler(), Scaler(), [dict(scale=8.)]), (None, None, [])])
def test_a_scaler_is_loaded_where_both_have_one(tmp_path, before, now, loaded):
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    def state(scaler, step):
        accelerator = SimpleNamespace(is_main_process=True, scaler=scaler)
        return SimpleNamespace(model=net, optimizer=optimizer, accelerator=accelerator, step=step, best=None)
    runs.save_checkpoint(tmp_path, state(before, 3))
    resumed = state(now, 0)
    runs.load_checkpoint(tmp_path, resumed)
    assert resumed.step == 3
    assert (now.loaded if now else []) == loaded


# F25. Trackers

class Strict(GeneralTracker):
    "Takes what TensorBoard takes."
    name, requires_logging_directory, tracker, main_process_only = "strict", False, None, False
    def __init__(self, fails=False):
        super().__init__()
        self.fails, self.settings = fails, None
    def start(self):
        if self.fails: raise RuntimeError("no key is set")
    def log(self, values, step, **_): pass
    def store_init_configuration(self, values):
        odd = {name: value for name, value in values.items() if not isinstance(value, (int, float, str, bool))}
        if odd: raise ValueError(f"value should be one of int, float, str, bool, or torch.Tensor: {odd}")
        self.settings = values


@pytest.mark.parametrize("words", [[], ['--data.columns={"text": "report", "frontal": "image"}'], ["--data.max_patients=30", "--train.chunk_size=null"]])
def test_a_tracker_gets_plain_settings(tmp_path, monkeypatch, words):
    tracker, make = Strict(), runs.make_accelerator
    monkeypatch.setattr(runs, "make_accelerator", lambda amp, name: make(amp, tracker))
    train(load_config("demo", *DRAWN, "--train.epochs=1", f"--paths.results_dir={tmp_path}", *words))
    assert tracker.settings["train.batch_size"] == 12 and tracker.settings["data.max_patients"] in ("None", 30)
    if "columns" in "".join(words): assert tracker.settings["data.columns"] == "{'text': 'report', 'frontal': 'image'}"


def test_a_tracker_that_does_not_start(tmp_path, monkeypatch, begun):
    "No run folder stays, but for one that was there."
    make = runs.make_accelerator
    monkeypatch.setattr(runs, "make_accelerator", lambda amp, name: make(amp, Strict(fails=True)))
    with pytest.raises(ValueError, match="train.tracker .* does not start: no key is set"): train(load_config("demo", *DRAWN, f"--paths.results_dir={tmp_path}"))
    assert not list(tmp_path.iterdir())
    run = Path(shutil.copytree(begun[2], tmp_path/"run"))
    with pytest.raises(ValueError, match="does not start"): train(resume_config(run), resume=run)
    assert (run/"last/training.safetensors").exists()


def test_tensorboard_with_columns(call, tmp_path):
    pytest.importorskip("tensorboard")
    status, out, err = call("rclip_train", "--config=demo", *DRAWN, "--train.epochs=1", "--train.tracker=tensorboard", '--data.columns={"text": "report"}')
    assert status == 0 and list(tmp_path.glob("results/2*/**/events*")), err


# F34, F35. Read-only folders

@contextmanager
def read_only(folder):
    "Nothing can be made in a folder or below it, for root neither."
    real = os.open, os.mkdir
    def refuse(path): return Path(os.fsdecode(path)).resolve().is_relative_to(Path(folder).resolve())
    def open_(path, flags, *more, **options):
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and refuse(path): raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real[0](path, flags, *more, **options)
    def mkdir(path, *more, **options):
        if refuse(path) and not os.path.isdir(path): raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real[1](path, *more, **options)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(os, "open", open_)
        m.setattr(os, "mkdir", mkdir)
        yield


@pytest.mark.parametrize("words", [[], ["--paths.results_dir=elsewhere"]])
def test_a_read_only_run_is_copied_first(call, begun, words):
    with read_only(begun[2]): status, out, err = call("rclip_train", "--resume", begun[2], *words)
    assert status == 1 and f"results cannot be written to {begun[2]} (Read-only file system). Copy the run to" in err and "--paths.results_dir" not in err


def contents(folder): return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*")}

WRITES = dict(rclip_eval={"metrics.json", "metrics.md", "ranks.csv", "viz", "viz/evaluation.png"}, rclip_viz={"viz", "viz/retrieval_grid.png", "viz/gradcam_example.png"})

@pytest.mark.parametrize("name", WRITES)
def test_a_read_only_run_is_evaluated(call, begun, tmp_path, name):
    "The figures come first, then the message; --out takes the files."
    before = contents(begun[1])
    with read_only(begun[1]):
        status, out, err = call(name, "--ckpt", begun[1])
        assert status == 1 and f"nothing could be written to {begun[1]}" in err and "(Read-only file system). Give another folder, --out FOLDER, or copy the run" in err
        assert name == "rclip_viz" or "recall" in out.lower() or "R@1" in out
        status, out, err = call(name, "--ckpt", begun[1], "--out", "new/out")
    assert status == 0 and set(contents(tmp_path/"new/out")) == WRITES[name] and "new/out" in out
    assert contents(begun[1]) == before


@pytest.mark.parametrize("name", WRITES)
def test_a_disk_that_is_full_for_the_pictures(call, begun, tmp_path, name):
    "The files of an earlier evaluation stay together, none is half-written."
    Path("out/viz").mkdir(parents=True)
    for old in ("metrics.json", "ranks.csv", "viz/evaluation.png", "viz/retrieval_grid.png"): Path("out", old).write_text("of before")
    before = contents(tmp_path/"out")
    call(name, "--ckpt", begun[1], "--out", "warm") # the embeddings are kept now
    with small_disk(9_000): status, out, err = call(name, "--ckpt", begun[1], "--out", "out")
    assert status == 1 and "nothing could be written to out" in err and "File too large" in err
    assert name == "rclip_viz" or "R@1" in out
    assert contents(tmp_path/"out") == before


# F40. A page without a home

def test_the_page_without_a_home(begun, tmp_path):
    "It is served, and its kernel runs."
    pytest.importorskip("voila")
    (tmp_path/"file").touch()
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "XDG"))}
    words = ["-c", "from radiology_clip_mini.lab.cli import app_command; app_command()", "--no_browser", f"--port={port}", f"--ckpt={begun[1]}", f"--cache_dir={tmp_path}/cache"]
    with open(tmp_path/"log", "w") as log: page = subprocess.Popen([sys.executable, *words], env=bare | dict(HOME=f"{tmp_path}/file/home"), stdout=log, stderr=log)
    try:
        for _ in range(900):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0 or page.poll() is not None: break
            time.sleep(.1)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=90) as answer: assert answer.status == 200 and "kernelId" in answer.read().decode(), (tmp_path/"log").read_text()
    finally: page.kill(), page.wait()


# F46. latest.txt of another system

@pytest.mark.parametrize("written", ["results\\run\\best", "D:\\study\\results\\run\\best\r\n", "..\\results\\run\\best", "results/run/best", "/home/me/results/run/best", "results/run\\best"])
def test_the_latest_model_of_another_system(tmp_path, written):
    (tmp_path/"run/best").mkdir(parents=True)
    (tmp_path/"latest.txt").write_bytes(written.encode())
    assert find_ckpt(results_dir=tmp_path) == tmp_path/"run/best"


@pytest.mark.parametrize("written", ["..", "..\\..", "..\\secret", "\\secret", "C:\\..\\..", "results\\..\\..\\secret"])
def test_no_latest_model_outside(tmp_path, written):
    (tmp_path/"results").mkdir()
    (tmp_path/"secret").mkdir()
    (tmp_path/"results/latest.txt").write_text(written)
    with pytest.raises(FileNotFoundError): find_ckpt(results_dir=tmp_path/"results")


# F41. Names that are not UTF-8

ODD = os.fsdecode(b"r\xfcn")

def results(folder, run): return "rclip_train", f"--paths.results_dir={folder}"
def cached(folder, run): return "rclip_train", f"--data.cache_dir={folder}"
def evaluated(folder, run): return "rclip_eval", f"--ckpt={shutil.copytree(run, folder/'run')}"
def drawn(folder, run): return "rclip_viz", f"--ckpt={shutil.copytree(run, folder/'run')}"
def pictures(folder, run):
    for i, s in enumerate(load_studies("phantom", phantoms=12, image_size=32)): s["frontal"].save(folder/f"{i}.png")
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(12)], patient_id=range(12), text="Clear lungs.")).to_csv(folder/"metadata.csv", index=False)
    return "rclip_train", f"--data.source={folder}"


@pytest.mark.parametrize("place", [results, cached, evaluated, drawn, pictures])
def test_a_name_that_is_not_utf8(call, begun, tmp_path, place):
    "The message says so, with the name, and no run folder stays."
    (tmp_path/ODD).mkdir()
    name, word = place(tmp_path/ODD, begun[1])
    status, out, err = call(name, *(["--config=demo", *DRAWN] if name == "rclip_train" else []), word)
    assert status == 1 and "the name of a file or folder is not UTF-8: '" in err and "r\\udcfcn" in err and "Rename it" in err and "codec" not in err
    assert not list(tmp_path.rglob("2*/run.json"))


@pytest.mark.parametrize("path, shown", [(ODD, "'r\\udcfcn'"), (f"中文/{ODD}/x", "'中文/r\\udcfcn/x'"), ("x"*500 + ODD, "xr\\udcfcn'"), (f"one\n{ODD}\ntwo", "'r\\udcfcn'")])
def test_the_name_is_shown(capsys, path, shown):
    def behind():
        try: path.encode()
        except UnicodeEncodeError as e: raise ValueError("a library's own words") from e
    for fails in (path.encode, behind):
        with pytest.raises(SystemExit): cli.clear_errors(fails, "rclip_eval")
        err = capsys.readouterr().err
        assert shown in err and len(err) < 400


def test_other_words_stay(capsys):
    "A character that a terminal cannot show is another matter."
    with pytest.raises(SystemExit): cli.clear_errors(lambda: "→".encode("ascii"), "rclip_eval")
    assert "ordinal not in range" in capsys.readouterr().err
