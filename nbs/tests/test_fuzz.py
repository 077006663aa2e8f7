"Thousands of damaged inputs: each gives an answer or one clear message, and a model folder from elsewhere never runs code."
import base64, copy, io, json, os, pickle, shutil, sys, warnings
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import asdict
from functools import lru_cache
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import Dataset
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from safetensors.torch import save_file

from radiology_clip_mini import models, train
from radiology_clip_mini.base import collections, findings, pictures, settings as options, sources, splits
from radiology_clip_mini.base.collections import read_studies
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.lab import ask, cli, published, runs
from radiology_clip_mini.lab.cli import clear_errors

SEEN, REFUSED, NAMES = Counter(), Counter(), count()


def fuzz(n):
    "The same n examples each time."
    return settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def survives(kind, call, *named):
    "Runs `call` as a command does: its answer, or None after one message that holds one of `named`."
    SEEN[kind] += 1
    with redirect_stderr(io.StringIO()) as err, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try: return clear_errors(call, "rclip")
        except SystemExit as e: assert e.code == 1
    message = err.getvalue()[err.getvalue().index("rclip: error: ") + 14:]
    assert any(str(name) in message for name in named), f"none of {named} in: {message}"
    REFUSED[kind] += 1


@pytest.fixture(scope="module", autouse=True)
def quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def home(tmp_path_factory): return tmp_path_factory.mktemp("fuzz")


# Damage

anything = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3), max_leaves=6)
junk = st.binary(max_size=40) | st.sampled_from([b"", b"\0", b"\xff\xfe", b"\n", b",", b'"', b"{", b"]", b"<!--", b"\r", b"\xef\xbb\xbf", b"NaN", b"-1", b"1e999"])


@st.composite
def damaged(draw, whole):
    "Some bytes with a few places cut, changed or filled."
    if draw(st.integers(0, 9)) == 0: return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 4))):
        a, b = sorted(draw(st.tuples(*[st.integers(0, len(whole))]*2)))
        match draw(st.integers(0, 3)):
            case 0: whole = whole[:a]
            case 1: whole = whole[:a] + draw(junk) + whole[a:]
            case 2: whole = whole[:a] + draw(junk) + whole[b:]
            case 3: whole = whole[:a] + whole[b:]
    return whole


def places(tree, path=()):
    "The path of everything in nested dicts and lists."
    yield path
    for key, value in (tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()): yield from places(value, (*path, key))


@st.composite
def replanted(draw, tree):
    "Nested dicts and lists with one or two parts lost or replaced by anything."
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(list(places(tree)))) or (None,)
        if last is None: tree = draw(anything); continue
        at = tree
        for key in path: at = at[key]
        if draw(st.booleans()): del at[last]
        else: at[last] = draw(anything)
    return tree


# Sources

REPORTS = "uid,MeSH,Problems,image,indication,comparison,findings,impression\n1,normal,normal,Xray,x,,Clear lungs.,No disease.\n2,Cardiomegaly/mild,c,Xray,,,\"Large, heart.\",\n3,Opacity/lung,o,x,,,,\n"
PROJECTIONS = "uid,filename,projection\n1,1_IM-1-1001.dcm.png,Frontal\n1,1_IM-1-2001.dcm.png,Lateral\n2,2_IM-2-1001.dcm.png,Frontal\n"
METADATA = "file_name,patient_id,study_id,view,text,labels\na.png,1,1,PA,Clear lungs.,\nb.png,1,1,L,Clear lungs.,\nc.png,2,2,PA,Large heart.,cardiomegaly;edema\n"
LINES = '{"file_name": "a.png", "text": "Clear lungs.", "patient_id": 1}\n{"file_name": "b.png", "text": "Large heart.", "patient_id": "2", "labels": null}\n'
XML = ('<eCitation><uId id="CXR1"/><Abstract><AbstractText Label="FINDINGS">Clear <b>lungs</b>.</AbstractText><AbstractText Label="IMPRESSION"/></Abstract>'
       '<MeSH><major>Cardiomegaly/mild</major></MeSH><parentImage id="CXR1_IM-1-1001"/></eCitation>')
R2GEN = dict(train=[dict(id="CXR1_IM-1-1001", report="Clear lungs.", image_path=["CXR1_IM-1/0.png", "CXR1_IM-1/1.png"], split="train")],
             val=[dict(id="CXR2_IM-2", report="Large heart.", image_path=["CXR2_IM-2/0.png"])], test=[dict(id="CXR3_IM-3", report="Edema.", image_path=[])])


MIMIC = {"mimic-cxr-2.0.0-metadata.csv": "dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning\na,10000001,51,PA,postero-anterior\nb,10000001,51,,lateral\nc,10000002,52,AP,antero-posterior\n",
         "mimic-cxr-2.0.0-split.csv": "dicom_id,study_id,subject_id,split\na,51,10000001,train\nb,51,10000001,train\nc,52,10000002,validate\n",
         "mimic-cxr-2.0.0-chexpert.csv": "subject_id,study_id,Edema,No Finding,Lung Opacity\n10000001,51,1.0,,-1.0\n10000002,52,,1.0,0.0\n",
         "files/p10/p10000001/s51.txt": "FINAL REPORT\n INDICATION: Cough.\n \n FINDINGS: Large heart.\n IMPRESSION: Edema.\n"}
PLUS = {"df_chexpert_plus_240401.csv": "path_to_image,frontal_lateral,deid_patient_id,report,section_findings,section_impression,split\ntrain/patient1/study1/a.jpg,Frontal,patient1,,Clear lungs.,,train\ntrain/patient1/study1/b.jpg,Lateral,patient1,FINDINGS: Edema.,,,train\n",
        "report_fixed.json": '{"path_to_image": "train/patient1/study1/a.jpg", "Edema": 1.0, "Fracture": null}\n'}


def folder_with(home, **files):
    "A new folder with these files and a small picture for each name that a source may look for."
    folder = home/f"{next(NAMES)}"
    (folder/"images/CXR1_IM-1").mkdir(parents=True)
    for name in ("a.png", "b.png", "1_IM-1-1001.dcm.png", "images/CXR1_IM-1/0.png"): shutil.copy(picture(home), folder/name)
    for name in ("files/p10/p10000001/s51/a.jpg", "train/patient1/study1/a.jpg"):
        (folder/name).parent.mkdir(parents=True)
        shutil.copy(picture(home), folder/name)
    for name, content in files.items(): (folder/name).write_bytes(content)
    return folder


def picture(home):
    if not (home/"picture.png").exists(): Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(home/"picture.png")
    return home/"picture.png"


def readable(home, files, layout):
    "Reads a folder of these files; the answer is a table of studies."
    folder = folder_with(home, **files)
    found = survives(layout, lambda: read_studies(DataConfig(source=str(folder))), folder)
    if found: assert found[0].features.items() >= sources.STUDY_FEATURES.items() and len(found[0]) and all(found[0]["text"])
    shutil.rmtree(folder)


TEXT_SOURCES = [("kaggle", {"indiana_reports.csv": REPORTS, "indiana_projections.csv": PROJECTIONS}), ("folder", {"metadata.csv": METADATA}),
                ("folder", {"metadata.jsonl": LINES}), ("openi", {"1.xml": XML}), ("r2gen", {"annotation.json": json.dumps(R2GEN)}), ("mimic", MIMIC), ("chexpert plus", PLUS)]

@pytest.mark.parametrize("layout, files", TEXT_SOURCES, ids=["kaggle", "metadata.csv", "metadata.jsonl", "openi", "r2gen", "mimic", "chexpert plus"])
def test_damaged_tables(home, layout, files):
    "Each source's text files, any of them damaged."
    @fuzz(150)
    @given(st.sampled_from(sorted(files)).flatmap(lambda name: damaged(files[name].encode()).map(lambda content: {name: content})))
    def check(changed): readable(home, {k: v.encode() for k, v in files.items()} | changed, layout)
    check()


@fuzz(150)
@given(tree=replanted(R2GEN))
def test_damaged_annotation(home, tree): readable(home, {"annotation.json": json.dumps(tree).encode()}, "r2gen")


@fuzz(60)
@given(content=damaged(json.dumps(R2GEN).encode()))
def test_a_damaged_archive(home, content): readable(home, {"NLMCXR_reports.tgz": content}, "openi")


ROW = dict(uid=1, MeSH="normal", findings="Clear lungs.", impression=None, img_frontal=b"x", img_lateral=None)

@fuzz(90)
@given(name=st.sampled_from(sorted(ROW)), value=anything | st.binary(max_size=20), keep=st.booleans())
def test_cells_of_other_types(home, name, value, keep):
    "A parquet file with a column of another type, or without it."
    try: table = pa.table({k: pa.array([v]*2) for k, v in (ROW | {name: value}).items() if keep or k != name})
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError): return # nobody can have such a file
    path = home/f"{next(NAMES)}.parquet"
    try: pq.write_table(table, path)
    except pa.ArrowNotImplementedError: return
    survives("table", lambda: read_studies(DataConfig(source=str(path), cache_dir=str(home/"hub"))), path)


@fuzz(40)
@given(cut=st.floats(0, 1), fill=st.binary(max_size=20))
def test_a_damaged_parquet_file(home, cut, fill):
    pq.write_table(pa.table({k: [v] for k, v in ROW.items()}), whole := home/"whole.parquet")
    content = whole.read_bytes()
    path = home/f"{next(NAMES)}.parquet"
    path.write_bytes(content[:int(cut * len(content))] + fill)
    survives("table", lambda: read_studies(DataConfig(source=str(path), cache_dir=str(home/"hub"))), path)


FIELDS = ("text", "frontal", "lateral", "patient_id", "study_id", "labels", "report")

@fuzz(150)
@given(columns=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), st.sampled_from([*ROW, "nothing"]) | st.text(max_size=5), max_size=5))
def test_any_mapping(home, columns):
    if not (path := home/"mapped.parquet").exists(): pq.write_table(pa.table({k: [v]*2 for k, v in ROW.items()}), path)
    survives("data.columns", lambda: read_studies(DataConfig(source=str(path), columns=columns, cache_dir=str(home/"hub"))), "data.columns", path)


@fuzz(100)
@given(source=st.text(max_size=30).filter(lambda s: s.strip("/.\\")) | st.sampled_from(["", ".", "..", "\0", "~", "~nobody/x", "~no such user/x", "C:\\x", "s3://x/y", "a"*300, "hub ", "x/y/z", "file:///x"]))
def test_any_source(home, source, monkeypatch):
    (inner := home/"no/data/here").mkdir(exist_ok=True, parents=True)
    with monkeypatch.context() as m:
        m.chdir(inner)
        for name in ("HOME", "USERPROFILE"): m.setenv(name, str(inner))
        m.setattr(sources, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("offline")))
        if source in ("hub", "phantom"): return
        survives("source", lambda: read_studies(DataConfig(source=source)), "hub", "holds no data", "holds no usable study", "too long")


# Words

@fuzz(200)
@given(st.text(max_size=60), st.dictionaries(st.sampled_from(sources.TEXT_PRIORITY), st.none() | st.floats() | st.text(max_size=20)))
def test_any_text(term, record):
    SEEN["text"] += 1
    labels = findings.mesh_labels(term)
    assert labels == sorted(set(labels)) and all(findings.plain_finding(x) in [*findings.FINDINGS, "other"] for x in labels)
    assert (text := sources.pick_text(record)) == text.strip() and collections.image_key(term) == collections.image_key(collections.image_key(term) + ".png")
    ids = splits.text_ids([term, term, text])
    assert ids[0] == ids[1]


# Pictures

def encoded(form, **options):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)).save(out := io.BytesIO(), form, **options)
    return out.getvalue()


def dicom():
    pydicom = pytest.importorskip("pydicom")
    head = pydicom.Dataset()
    head.file_meta = pydicom.dataset.FileMetaDataset()
    head.file_meta.TransferSyntaxUID, head.SOPClassUID, head.SOPInstanceUID = pydicom.uid.ExplicitVRLittleEndian, "1.2", "1.2.3"
    head.file_meta.MediaStorageSOPClassUID, head.file_meta.MediaStorageSOPInstanceUID = "1.2", "1.2.3"
    head.Rows = head.Columns = 16
    head.SamplesPerPixel, head.PhotometricInterpretation, head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 1, "MONOCHROME2", 16, 12, 11, 0
    head.PixelData = np.arange(256, dtype=np.uint16).tobytes()
    head.save_as(out := io.BytesIO(), enforce_file_format=True)
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "DICOM"])
def test_damaged_pictures(form):
    "A picture decodes to the size asked for, or to the reason why not, and base64 of it the same."
    whole = dicom() if form == "DICOM" else encoded(form)
    assert pictures._try_read(dict(bytes=whole), 32)[0].shape == (32, 32)
    @fuzz(150)
    @given(damaged(whole))
    def check(content):
        SEEN[form] += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, note = pictures._try_read(sources.image_cell(base64.b64encode(content).decode()), 32)
        if found is None: REFUSED[form] += 1; assert note.strip() and "\n" not in note
        else: assert found.shape == (32, 32) and found.dtype == np.uint8
    check()


def test_a_picture_that_claims_to_be_huge():
    "A few bytes that would decode to gigabytes are refused before they do."
    content = bytearray(encoded("PNG"))
    content[16:24] = (60_000).to_bytes(4, "big")*2
    assert pictures._try_read(dict(bytes=bytes(content)), 32)[0] is None


@fuzz(100)
@given(value=anything | st.binary(max_size=20) | st.dictionaries(st.sampled_from(["bytes", "path"]), st.none() | st.text(max_size=9) | st.binary(max_size=9)))
def test_any_image_cell(value):
    survives("image cell", lambda: sources.image_cell(value), "")


# Splits

STUDIES = Dataset.from_dict(dict(patient_id=[str(i) for i in range(8)]))
SPLIT = dict(train=list("0123"), val=list("45"), test=list("67"))

@fuzz(150)
@given(tree=replanted(SPLIT))
def test_any_split(tree): survives("split", lambda: splits.check_splits(tree, STUDIES), "the split")


@fuzz(150)
@given(content=damaged(json.dumps(SPLIT).encode()))
def test_damaged_split_file(home, content):
    (path := home/"split.json").write_bytes(content)
    survives("split", lambda: splits.load_splits(STUDIES, path), path)


# Settings

@pytest.fixture(scope="module")
def parser():
    "The parser, made once: making it takes most of a call's time."
    with pytest.MonkeyPatch.context() as m:
        made = options.make_parser()
        m.setattr(options, "make_parser", lambda: made)
        yield


DEMO = (options.CONFIGS/"demo.yaml").read_bytes()
SETTINGS = [f"{part}.{f.name}" for part, kind in options.Config.__dataclass_fields__.items() if part != "seed" for f in kind.default_factory.__dataclass_fields__.values()]

def configured(*argv, named):
    "Parses, checks and writes settings."
    def call():
        config = options.parse_config(list(argv))
        options.check_config(config)
        return yaml.safe_dump(asdict(config))
    return survives("settings", call, *named)


@fuzz(250)
@given(content=damaged(DEMO) | anything.map(lambda x: json.dumps(x).encode()) | replanted(yaml.safe_load(DEMO)).map(lambda x: json.dumps(x).encode()))
def test_any_config_file(home, parser, content):
    (path := home/"config.yaml").write_bytes(content)
    configured("--config", str(path), named=["config", *options.Config.__dataclass_fields__])


@fuzz(300)
@given(name=st.sampled_from(SETTINGS) | st.text(max_size=10), value=anything.map(str) | st.text(max_size=10) | st.sampled_from(["nan", "inf", "-inf", "1e999", "[", "{a: b", "!!python/object:os.system x", "*a"]))
def test_any_override(parser, name, value): configured("--config", "demo", f"--{name}={value}", named=[name, "options", "arguments", "usage", "group"])


# Runs and models

@pytest.fixture(scope="module")
def model_folder(home):
    "The smallest model this project can save, in a run's folder."
    run = home/"run"
    model = models.CLIPMini(models.ModelConfig(image_encoder="test_efficientnet", image_weights="none", text_encoder="scratch", embed_dim=8), ["Clear lungs.", "Large heart."])
    model.save_pretrained(run/"best")
    (run/"run.json").write_text(json.dumps(RUN))
    (run/"splits.json").write_text(json.dumps(SPLIT))
    return run/"best"


@lru_cache
def home_model(folder): return models.CLIPMini.from_pretrained(folder)


RUN = dict(config=dict(seed=1, data=dict(source="phantom", phantoms=8, image_size=32)), data=dict(fingerprint="0"*16))

def damaged_copy(home, model_folder, name, content):
    folder = home/f"{next(NAMES)}"/"best"
    shutil.copytree(model_folder, folder, copy_function=os.link)
    (folder/name).unlink()
    (folder/name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_damaged_models(home, model_folder, name):
    whole = (model_folder/name).read_bytes()
    contents = damaged(whole)
    if name.endswith("json"): contents = replanted(json.loads(whole)).map(lambda x: json.dumps(x).encode()) | contents
    @fuzz(60)
    @given(contents)
    def check(content):
        folder = damaged_copy(home, model_folder, name, content)
        survives("model", lambda: models.CLIPMini.from_pretrained(folder), folder)
        if name == "config.json": survives("model", lambda: published.load_model(folder), folder)
    check()


@pytest.fixture(scope="module")
def library_folder(home):
    "A small random model as open_clip publishes it."
    import open_clip
    (folder := home/"library").mkdir()
    cfg = dict(embed_dim=8, vision_cfg=dict(image_size=32, layers=1, width=64, patch_size=16), text_cfg=dict(context_length=16, vocab_size=49408, width=8, heads=1, layers=1))
    (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=cfg, preprocess_cfg=dict(size=32, mean=[.5]*3, std=[.5]*3))))
    save_file(open_clip.CLIP(**cfg).state_dict(), folder/"open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("saved", [False, True], ids=["as published", "saved by us"])
def test_damaged_published_models(home, library_folder, saved):
    folder, name = library_folder, "open_clip_config.json"
    if saved: folder, name = published.load_model(folder).save_pretrained(home/"published-saved"), "config.json"
    tree = json.loads((folder/name).read_bytes())
    @fuzz(50)
    @given(replanted(tree).map(lambda x: json.dumps(x).encode()))
    def check(content):
        spoiled = damaged_copy(home, folder, name, content)
        survives("model", lambda: published.load_model(spoiled), spoiled)
    check()


@fuzz(150)
@given(tree=replanted(RUN), text=st.booleans(), content=damaged(json.dumps(RUN).encode()))
def test_damaged_run(home, tree, text, content):
    folder = home/f"{next(NAMES)}"
    folder.mkdir()
    (folder/"run.json").write_bytes(content if text else json.dumps(tree).encode())
    (folder/"splits.json").write_text("{}")
    survives("run.json", lambda: (runs.read_run(folder, "splits.json"), runs.data_settings(runs.read_run(folder), folder)), folder)


RESUMED = dict(config=asdict(options.Config()), data=dict(fingerprint="0"*16))

@fuzz(120)
@given(tree=replanted(RESUMED), text=st.booleans(), content=damaged(json.dumps(RESUMED).encode()))
def test_damaged_run_to_resume(home, parser, tree, text, content):
    folder = home/f"{next(NAMES)}"
    folder.mkdir()
    (folder/"run.json").write_bytes(content if text else json.dumps(tree).encode())
    survives("resumed", lambda: options.check_config(runs.resume_config(folder)), folder, "config", *options.Config.__dataclass_fields__)


@fuzz(40)
@given(cut=st.floats(0, 1), fill=st.binary(max_size=30), tree=replanted(dict(progress=dict(step=1, best={}, seconds=1.), scaler=None)), text=st.booleans())
def test_damaged_checkpoint(home, model_folder, cut, fill, tree, text):
    model = home_model(model_folder)
    run = home/f"{next(NAMES)}"
    (run/"last").mkdir(parents=True)
    tensors = {f"model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    path = run/runs.CHECKPOINT
    save_file(tensors, path, metadata=dict(info=json.dumps(tree) if text else json.dumps(dict(progress=dict(step=1), scaler=None))))
    if not text: path.write_bytes(path.read_bytes()[:int(cut * path.stat().st_size)] + fill)
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    state = train.TrainState(options.Config(), model, None, optimizer, train.make_accelerator(False), n_steps=2)
    survives("checkpoint", lambda: runs.load_checkpoint(run, state), run)


@fuzz(60)
@given(content=damaged(b"results/20260101-000000/best\n"))
def test_damaged_latest(home, content):
    (home/"latest.txt").write_bytes(content)
    survives("latest.txt", lambda: runs.find_ckpt(results_dir=home), "latest", "model folder")


@fuzz(60)
@given(cut=st.floats(0, 1), fill=st.binary(max_size=30))
def test_damaged_shards(home, cut, fill):
    "A shard that was cut off or filled with something else is made anew, never read."
    if not (whole := home/"whole.npy").exists(): np.save(whole, np.ones((2, 9, 4), np.float32))
    content, path = whole.read_bytes(), home/f"{next(NAMES)}.npy"
    path.write_bytes(content[:int(cut * len(content))] + fill)
    SEEN["shard"] += 1
    if ask._read_shard(path, 9) is None: REFUSED["shard"] += 1


# Code

class Trap:
    "A pickle that leaves a file when it is opened."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


def set_traps(folder, sprung):
    "Everything by which libraries run a folder's code: modules named in its settings, and pickles."
    code = f"open({str(sprung)!r}, 'w')\nclass Own: pass\n"
    for name in ("modeling_own.py", "tokenization_own.py", "conftest.py", "__init__.py"): (folder/name).write_text(code)
    own = {f"Auto{kind}": "modeling_own.Own" for kind in ("Config", "Model", "Tokenizer")}
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder/name).read_text()) if (folder/name).exists() else {}
        for part in (settings, settings.get("text", {})): part["auto_map"] = own if name == "config.json" else {"AutoTokenizer": ["tokenization_own.Own", None]}
        settings["tokenizer_class"] = "Own"
        (folder/name).write_text(json.dumps(settings))
    for name in ("pytorch_model.bin", "model.pt", "weights.pth", "open_clip_pytorch_model.bin"): (folder/name).write_bytes(pickle.dumps(Trap(sprung)))


def loads(folder):
    "All ways in which this project opens a folder or file of a model."
    return dict(saved=lambda: models.CLIPMini.from_pretrained(folder), other=lambda: published.load_model(folder), text=lambda: models.text_encoder(str(folder)),
                **{name: lambda name=name: models.image_encoder("test_efficientnet", str(folder/name)) for name in ("weights.pth", "pytorch_model.bin")})


@pytest.mark.parametrize("weights", [True, False], ids=["safetensors", "pickle only"])
@pytest.mark.parametrize("kind", ["distilbert", "clip", "own", "ours", "open_clip"])
def test_a_foreign_folder_runs_no_code(home, model_folder, monkeypatch, kind, weights):
    "Code and pickles beside a model are never run, not even where somebody answers yes."
    asked = []
    monkeypatch.setattr("builtins.input", lambda *a: asked.append(a) or "y")
    sprung, folder = home/f"sprung-{next(NAMES)}", home/f"{next(NAMES)}"/"best"
    pickle.loads(pickle.dumps(Trap(home/"works")))
    assert (home/"works").exists()
    shutil.copytree(model_folder, folder)
    settings = dict(distilbert=dict(model_type="distilbert", dim=8, n_layers=1, n_heads=1, hidden_dim=8, vocab_size=30), clip=dict(model_type="clip"), own=dict(model_type="own"))
    if kind in settings: (folder/"config.json").write_text(json.dumps(settings[kind]))
    if kind == "open_clip": (folder/"open_clip_config.json").write_text(json.dumps(dict(model_cfg=dict(embed_dim=8, vision_cfg=dict(image_size=32, layers=1, width=64, patch_size=16),
                                                                                 text_cfg=dict(hf_model_name=str(folder), hf_tokenizer_name=str(folder))), preprocess_cfg={})))
    if not weights: (folder/"model.safetensors").unlink()
    set_traps(folder, sprung)
    for name, call in loads(folder).items():
        SEEN["code"] += 1
        try: call()
        except (ValueError, OSError): REFUSED["code"] += 1
        assert not sprung.exists(), f"{name} of {kind} ran code"
        assert not asked, f"{name} of {kind} offered to run code"


# The commands

@pytest.mark.parametrize("argv", [["--config"], ["--config", "\0"], ["--config", "demo", "--data.source", "\0"], ["--config", "demo", "--paths.results_dir", "\0"],
                                  ["--config", "demo", "--data.source", ".", "--data.columns", "{text: x}"], ["--config", "demo", "--data.phantoms=8", "--data.split_file", "."], ["--", "--x"], ["demo"]])
def test_commands_end_with_a_message(argv, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rclip_train", *argv])
    with pytest.raises(SystemExit) as e: cli.train_command()
    assert e.value.code == 1
    assert "rclip_train: error: " in (err := capsys.readouterr().err) and "Traceback" not in err


def test_there_were_enough(request):
    "Two thousand inputs and more, most of them refused."
    if len(request.session.items) < 40: pytest.skip("only some of the tests were run")
    print(f"\n{sum(SEEN.values()):,} inputs, {sum(REFUSED.values()):,} refused: " + ", ".join(f"{k} {REFUSED[k]}/{n}" for k, n in SEEN.items()))
    assert sum(SEEN.values()) >= 2000 and sum(REFUSED.values()) >= 1000
