"""What must stay the same while the code moves: the demo's figures, and the tables that inputs of many forms give.

    python nbs/tests/goldens.py readers          # writes goldens/readers.json
    python nbs/tests/goldens.py demo RUN         # compares a run's files with goldens/demo, and says where they differ
    python nbs/tests/goldens.py demo RUN --write # stores them, with the machine they were made on

The demo's figures were renewed on 2026-12-01, when its image encoder came from timm: the same network, but the numbers of
its random start are drawn in another order, and so are those of the untrained baseline.
"""
import io, json, platform, shutil, sys, tempfile, warnings
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image as Picture, List, Value, disable_progress_bars
from PIL import Image

from radiology_clip_mini.base.pictures import read_grey
from radiology_clip_mini.base.collections import read_studies
from radiology_clip_mini.base.settings import DataConfig

HERE = Path(__file__).parent/"goldens"
FILES = ("history.jsonl", "metrics.json", "ranks.csv")
OWN = dict(text="words", patient_id="who", study_id="exam", image="x", view="side")
CSV = "file_name,study_id,patient_id,view,text,labels\na.png,1,p1,PA,Clear lungs.,\nb.png,1,p1,LATERAL ERECT,Clear lungs.,\nc.png,2,p1,,Large heart.,cardiomegaly;edema\nd.png,3,p2,AP,\"Größe normal, kein Erguß.\",nodule\n"


def draw(path, seed):
    "A small picture of its own."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40), np.uint8)).save(path, "PNG" if path.suffix.lower() != ".jpg" else "JPEG")
    return path


def four(folder):
    for i, name in enumerate("abcd"): draw(folder/f"{name}.png", i)


def metadata(folder, content=CSV.encode(), name="metadata.csv"):
    four(folder)
    (folder/name).write_bytes(content)


def json_lines(folder, array):
    four(folder)
    rows = [dict(file_name="a.png", patient_id=1, view="PA", text="Clear.", labels=["Edema", "nodule"]), dict(file_name="b.png", patient_id="2.0", view=None, text="Größe.", labels=[])]
    (folder/"metadata.jsonl").write_text(json.dumps(rows) if array else "\n".join(map(json.dumps, rows)), encoding="utf-8-sig")


def kaggle(folder, pictures="images"):
    for i, name in enumerate(("1_IM-0001-4001.dcm.png", "CXR1_IM-0001-3001.png", "2_IM-0652-1001.dcm.png", "2_IM-0652-2001.dcm.png")): draw(folder/pictures/name, i)
    (folder/"indiana_reports.csv").write_text('uid,MeSH,findings,impression\n1,normal,"Clear\nlungs.",Normal.\n2,Cardiomegaly/mild;Spine/degenerative,nan,Large heart.\n3,,Clear.,\n')
    (folder/"indiana_projections.csv").write_text("uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png,Lateral\n2,2_IM-0652-1001.dcm.png,Frontal\n2,2_IM-0652-2001.dcm.png,Frontal\n")


def openi(folder):
    for i, name in enumerate(("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001")): draw(folder/f"images/{name}.png", i)
    for uid, text, images in ((1, "Clear lungs.", ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001")), (2, "Large heart.", ("CXR2_IM-0652-1001",))):
        pictures = "".join(f'<parentImage id="{name}"/>' for name in images)
        (folder/f"{uid}.xml").write_text(f'<eCitation><uId id="CXR{uid}"/><Abstract><AbstractText Label="FINDINGS">{text}</AbstractText></Abstract><MeSH><major>Cardiomegaly/mild</major></MeSH>{pictures}</eCitation>')


def r2gen(folder, mimic):
    entries = [dict(id=f"{s}-{k}", study_id=s, subject_id=s//10, report=f"Report {s}.", image_path=[f"p1/s{s}/{s}-{k}.jpg"]) for s in (11, 12, 21) for k in (0, 1)]
    if not mimic: entries = [dict(id=f"CXR{u}_IM-0001", report=f"Report {u}.", image_path=[f"CXR{u}_IM-0001/{k}.png" for k in (0, 1)]) for u in (1, 2)]
    for i, path in enumerate(path for entry in entries for path in entry["image_path"]): draw(folder/"images"/path, i)
    (folder/("mimic_annotation.json" if mimic else "annotation.json")).write_text(json.dumps(dict(train=entries[:-1], val=entries[-1:], test=[])))


def table(folder, cell="name"):
    four(folder)
    def held(name): return dict(name=name, bytes=(folder/name).read_bytes(), place=dict(path=name, bytes=None))[cell]
    return pd.DataFrame(dict(words=["Clear.", "Clear.", "Large heart."], who=[7., 7., 8.], exam=["1", "1", "2"], side=["PA", "LL", ""], x=[held(f"{n}.png") for n in "abc"]))


def classes(folder):
    four(folder)
    names = List(ClassLabel(names=["No Finding", "Edema", "Nodule"]))
    features = Features(dict(words=Value("string"), x=List(Picture()), side=List(Value("string")), tags=names))
    rows = dict(words=["Clear.", "Bad."], x=[[str(folder/"a.png"), str(folder/"b.png")], [str(folder/"c.png")]], side=[["PA", "LATERAL"], ["AP"]], tags=[[0], [1, 2]])
    Dataset.from_dict(rows, features=features).to_parquet(folder/"t.parquet")


def saved(folder, split):
    t = Dataset.from_pandas(table(folder)).map(lambda r: dict(x=str(folder/r["x"]))).cast_column("x", Picture())
    (DatasetDict(train=t, test=t.select([2])) if split else t).save_to_disk(folder/"saved")


def hub(folder):
    four(folder)
    content = (folder/"a.png").read_bytes()
    rows = [dict(uid=i, MeSH="normal" if i else "Opacity/lung/left", findings=None if i == 1 else f"Finding {i}.", impression="Impression.", img_frontal=None if i == 1 else content, img_lateral=content) for i in range(3)]
    pd.DataFrame(rows).to_parquet(folder/"t.parquet")


def parts(folder):
    for i, name in enumerate(("train-0", "train-1", "test-0")): table(folder, "bytes").assign(exam=[f"{i}{k}" for k in range(3)]).to_parquet(folder/f"{name}.parquet")


def names(folder):
    there = ("sub/x.PNG", "Mu\u0308.png", "1.2.840.png", "1.2.840.1.png", "IM0001")
    for i, name in enumerate(there): draw(folder/name, i)
    named = ("sub\\X.dcm", "Mü.jpg", "1.2.840", "1.2.840.1", "IM0001.dcm", "1.2.840.2", " 1.2.840.png ")
    pd.DataFrame(dict(file_name=named, study_id=range(7), patient_id=["7", " 7", "7.0", "7\u200b", "p", "P", "q"], view="PA", text="Clear.")).to_csv(folder/"metadata.csv", index=False)


def export(folder):
    import pydicom
    (folder/"DICOM").mkdir()
    for i, (number, view) in enumerate((("0047", "PA"), ("0047", "LL"), ("0048", ""))):
        head = pydicom.Dataset()
        head.file_meta = pydicom.dataset.FileMetaDataset()
        head.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        head.file_meta.MediaStorageSOPClassUID = head.file_meta.MediaStorageSOPInstanceUID = "1.2"
        head.AccessionNumber, head.PatientID, head.ViewPosition = number, f"P{number}", view
        head.Rows = head.Columns = 40
        head.SamplesPerPixel, head.PhotometricInterpretation, head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 1, "MONOCHROME2", 16, 12, 11, 0
        head.PixelData = (np.random.default_rng(i).integers(0, 4096, (40, 40))).astype(np.uint16).tobytes()
        head.save_as(folder/f"DICOM/IM{i:06}", enforce_file_format=True)
    (folder/"Befunde.csv").write_bytes("nr;Befund\r\n0047;Größe normal, kein Erguß.\r\n0048;Pneumothorax -\r\n".encode("cp1252"))


INPUTS = { # name: what makes the folder, and the settings; {} in a setting is the folder
    "kaggle": (kaggle, {}), "kaggle, both sections": (kaggle, dict(text="both")), "kaggle, pictures apart": (lambda f: kaggle(f, "../apart"), dict(images="{}/../apart")), "openi": (openi, {}),
    "r2gen": (lambda f: r2gen(f, False), {}), "r2gen of MIMIC": (lambda f: r2gen(f, True), {}), "metadata.csv": (metadata, {}), "metadata.csv, cp1252": (lambda f: metadata(f, CSV.encode("cp1252")), {}),
    "metadata.csv, UTF-16": (lambda f: metadata(f, CSV.encode("utf-16")), {}), "metadata.csv, semicolons": (lambda f: metadata(f, b"sep=;\n" + pd.read_csv(io.StringIO(CSV), dtype=str).to_csv(index=False, sep=";").encode("utf-8-sig")), {}),
    "metadata.jsonl": (lambda f: json_lines(f, False), {}), "metadata.jsonl, an array": (lambda f: json_lines(f, True), {}), "names and ids": (names, {}), "hub": (hub, dict(source="{}/t.parquet")),
    "parquet, bytes": (lambda f: table(f, "bytes").to_parquet(f/"t.parquet"), dict(columns=OWN)), "parquet, names": (lambda f: table(f).to_parquet(f/"t.parquet"), dict(columns=OWN)), "parquet, places": (lambda f: table(f, "place").to_parquet(f/"t.parquet"), dict(columns=OWN)),
    "parquet, classes and lists": (classes, dict(columns=dict(text="words", image="x", view="side", labels="tags"))), "parquet, splits": (parts, dict(columns=OWN, split_spec="test")), "saved": (lambda f: saved(f, False), dict(source="{}/saved", columns=OWN)),
    "saved, splits": (lambda f: saved(f, True), dict(source="{}/saved", columns=OWN, split_spec="test")), "csv by columns": (lambda f: table(f).to_csv(f/"list.csv", index=False), dict(columns=OWN)), "tsv by columns": (lambda f: table(f).to_csv(f/"list.tsv", sep="\t", index=False), dict(columns=OWN)),
    "Excel by columns": (lambda f: table(f).to_excel(f/"list.xlsx", index=False), dict(columns=OWN)), "DICOM by header": (export, dict(columns=dict(study_id="nr", text="Befund"))),
}


def digits(cell): # Of the pixels that training sees, at 32 × 32; None where there is no picture
    return cell and sha256(read_grey(cell, 32)[0].tobytes()).hexdigest()[:8]


def read_all() -> dict:
    "Each input as it is read: a row a study, and what was noticed."
    disable_progress_bars()
    found, top = {}, Path(tempfile.mkdtemp())
    for number, (name, (make, settings)) in enumerate(INPUTS.items()):
        folder = top/f"{number}"
        folder.mkdir()
        make(folder)
        where = {key: value.replace("{}", str(folder)) if isinstance(value, str) else value for key, value in settings.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            studies, noticed = read_studies(DataConfig(**dict(source=str(folder), cache_dir=str(top/"cache")) | where))
        cells = studies.cast_column("frontal", Picture(decode=False)).cast_column("lateral", Picture(decode=False))
        rows = [dict(study_id=r["study_id"], patient_id=r["patient_id"], text=r["text"], labels=r["labels"], frontal=digits(r["frontal"]), lateral=digits(r["lateral"])) for r in cells]
        found[name] = dict(studies=rows, noticed=dict(sorted(noticed.items())))
    shutil.rmtree(top)
    return found


def machine() -> dict:
    "On what figures were made, as far as they depend on it."
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "") if Path("/proc/cpuinfo").exists() else platform.processor()
    versions = {name: version(name) for name in ("torch", "timm", "transformers", "tokenizers", "numpy", "scipy", "pandas")}
    return dict(cpu=model, threads=torch.get_num_threads(), python=platform.python_version(), **versions)


def differences(run:Path, golden:Path=HERE/"demo") -> list[str]:
    "Which of a run's files are not those of the golden demo, to the byte, and where they begin to differ."
    found = []
    for name in FILES:
        ours, theirs = ((folder/name).read_text(encoding="utf-8") for folder in (run, golden))
        if ours == theirs: continue
        line = next((i for i, pair in enumerate(zip(ours.splitlines(), theirs.splitlines()), 1) if pair[0] != pair[1]), "the end")
        found.append(f"{name} differs from line {line} on")
    return found


def demo(run:Path, write:bool) -> int:
    "Compares or stores a run; its status: 0 where the files are the same, or the machine is another."
    if write:
        (HERE/"demo").mkdir(parents=True, exist_ok=True)
        for name in FILES: shutil.copy(run/name, HERE/"demo"/name)
        (HERE/"demo/machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
        return 0
    made, found = json.loads((HERE/"demo/machine.json").read_text()), differences(run)
    other = [f"{key} {machine()[key]} (there {value})" for key, value in made.items() if machine()[key] != value]
    print(f"the demo's figures: {'; '.join(found) or 'the same to the byte as in nbs/tests/goldens/demo'}")
    if found and other: print(f"they were made on another machine, so this proves nothing: {', '.join(other)}")
    return int(bool(found) and not other)


if __name__ == "__main__":
    if sys.argv[1] == "demo": sys.exit(demo(Path(sys.argv[2]), "--write" in sys.argv))
    (HERE/"readers.json").write_text(json.dumps(read_all(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
