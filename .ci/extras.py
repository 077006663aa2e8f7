"""Asks one question of an extra, in an environment that holds nothing else: python .ci/extras.py app|compare|dicom|lora

Expects a run in ./results, as `rclip_train --config demo` leaves it.
"""
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np


def app():
    "The explorer answers a phrase, and its page is served."
    from radiology_clip_mini.lab.ask import explore
    from radiology_clip_mini.gradcam import phrase_query
    explorer = explore()
    explorer.ask(phrase_query(explorer.gallery, "large heart"))
    assert "large heart" in explorer.page.answers[0]["title"] and explorer.hits
    server = subprocess.Popen([Path(sys.executable).parent/"rclip_app", "--no_browser", "--port=8901"])
    try:
        for _ in range(600):
            time.sleep(.1)
            assert server.poll() is None, "rclip_app has ended"
            try: page = urlopen("http://127.0.0.1:8901/", timeout=60).read()
            except ConnectionError: continue
            except OSError as e:
                if "refused" in str(e): continue
                raise
            break
        assert b"radiology_clip_mini" in page
    finally: server.terminate()


def command(name, *words):
    "Runs one of the project's commands."
    subprocess.run([Path(sys.executable).parent/name, *map(str, words)], check=True)


def train_further(start, results, *words):
    "Trains one epoch of a few phantoms from a model; the run's folder."
    small = ("--data.source=phantom", "--data.phantoms=40", "--train.epochs=1", "--train.batch_size=16")
    command("rclip_train", *small, f"--model.start={start}", f"--paths.results_dir={results}", *words)
    return Path(Path(results, "latest.txt").read_text().strip()).parent


def compare():
    "A small random model of open_clip's form is evaluated beside the run, trained further, and evaluated again."
    import open_clip
    from safetensors.torch import save_file
    vision = dict(image_size=32, layers=1, width=64, patch_size=16)
    text = dict(context_length=77, vocab_size=49408, width=64, heads=1, layers=1)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "random")
        folder.mkdir()
        model = open_clip.model.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)
        preprocess = dict(mean=[.5]*3, std=[.5]*3)
        settings = dict(model_cfg=dict(embed_dim=24, vision_cfg=vision, text_cfg=text), preprocess_cfg=preprocess)
        (folder/"open_clip_config.json").write_text(json.dumps(settings))
        save_file(model.state_dict(), folder/"open_clip_model.safetensors")
        command("rclip_eval", "--compare", folder)
        latest = Path("results/latest.txt").read_text().strip()
        result = json.loads((Path(latest).parent/"metrics.json").read_text())
        assert list(result["compare"]) == [folder.name]
        run = train_further(folder, Path(home, "results"))
        command("rclip_eval", "--ckpt", run)
        assert json.loads((run/"metrics.json").read_text())["n_queries"]


def lora():
    "LoRA on the text encoder of the run's own model leaves a model without adapters."
    from safetensors.torch import load_file
    first = Path(Path("results/latest.txt").read_text().strip())
    with tempfile.TemporaryDirectory() as results:
        run = train_further(first.parent, results, "--train.text=lora", "--train.image=frozen", "--train.lora_rank=2")
        before, after = (load_file(folder/"model.safetensors") for folder in (first, run/"best"))
        assert before.keys() == after.keys() # no adapters
        changed = [name for name in before if not (before[name] == after[name]).all()]
        assert any(name.startswith("text_encoder.") for name in changed)
        assert not any(name.startswith("image_encoder.") for name in changed)


def dicom():
    "A DICOM file is read as it is meant to be seen, and there is a decoder for each compression."
    import pydicom
    from radiology_clip_mini.base.pictures import read_grey
    values = np.tile(np.arange(64, dtype=np.uint16) * 60, (64, 1))
    head = pydicom.Dataset()
    head.file_meta = pydicom.dataset.FileMetaDataset()
    head.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    head.file_meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    head.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    head.Rows, head.Columns, head.SamplesPerPixel, head.PhotometricInterpretation = 64, 64, 1, "MONOCHROME1"
    head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 16, 12, 11, 0
    head.PixelData = values.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        head.save_as(Path(folder, "a.dcm"), enforce_file_format=True)
        grey, _ = read_grey(dict(bytes=None, path=str(Path(folder, "a.dcm"))), 64)
    compressed = (pydicom.uid.JPEGLosslessSV1, pydicom.uid.JPEGLSLossless, pydicom.uid.HTJ2KLossless)
    assert all(pydicom.pixels.get_decoder(syntax).is_available for syntax in compressed)
    assert grey[0, 0] == 255 and grey[0, -1] == 0 and (np.diff(grey[0].astype(int)) <= 0).all()


if __name__ == "__main__":
    dict(app=app, compare=compare, dicom=dicom, lora=lora)[sys.argv[1]]()
    print(f"{sys.argv[1]}: imports and answers")
