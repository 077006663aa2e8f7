"""The image cache when processes are killed, or want the same thing at once."""
import os, signal, subprocess, sys, time

import numpy as np
import pytest
from PIL import Image

from radiology_clip_mini.base import pictures
from radiology_clip_mini.base.settings import DataConfig, load_config
from radiology_clip_mini.base.sources import read_folder
from radiology_clip_mini.data import prepare_data
from radiology_clip_mini.lab import runs

N = 300
BUILD = """
import sys
from radiology_clip_mini.base import pictures
from radiology_clip_mini.base.sources import read_folder
real, reads = pictures.read_grey, []
def read(*args): reads.append(1); return real(*args)
pictures.read_grey = read
print("ready", flush=True)
pictures.build_cache(read_folder(sys.argv[1], {}), 64, sys.argv[2], workers=1)
print(len(reads))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "300 noisy images, slow enough to decode that a build can be caught half-way."
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(N): Image.fromarray(rng.integers(0, 256, (400, 400), np.uint8)).save(folder/f"{i}.png")
    rows = "".join(f"{i}.png,{i},PA,Clear.\n" for i in range(N))
    (folder/"metadata.csv").write_text("file_name,patient_id,view,text\n" + rows)
    return folder


def start(folder, cache): return subprocess.Popen([sys.executable, "-c", BUILD, folder, cache], stdout=subprocess.PIPE, text=True)


def done_rows(cache):
    parts = list(cache.glob("radiology_clip_mini/*/done.part.npy"))
    try: return int(np.load(parts[0], mmap_mode="r").sum()) if parts else 0
    except (ValueError, OSError, EOFError): return 0 # not written yet, or renamed since


def test_a_killed_build_goes_on(folder, tmp_path, monkeypatch):
    process = start(folder, tmp_path)
    while done_rows(tmp_path) < 64 and process.poll() is None: time.sleep(.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = done_rows(tmp_path)
    assert 64 <= kept < N, "the build was not caught half-way"
    assert not list(tmp_path.rglob("pixels.npy"))
    real, reads = pictures.read_grey, []
    monkeypatch.setattr(pictures, "read_grey", lambda *args: (reads.append(1), real(*args))[1])
    finished = pictures.build_cache(read_folder(folder, {}), 64, tmp_path)
    assert len(reads) == N - kept
    whole = pictures.build_cache(read_folder(folder, {}), 64, tmp_path/"fresh")
    assert (finished.hashes == whole.hashes).all()
    every = np.arange(N), np.zeros(N, int)
    assert (finished.read(*every) == whole.read(*every)).all()


def test_a_torn_part_is_started_anew(folder, tmp_path):
    studies = read_folder(folder, {})
    whole = pictures.build_cache(studies, 64, tmp_path)
    for name in ("pixels", "hashes"): (whole.folder/f"{name}.npy").rename(whole.folder/f"{name}.part.npy")
    (whole.folder/"done.part.npy").write_bytes(b"\x93NUMPY torn")
    again = pictures.build_cache(studies, 64, tmp_path)
    assert (again.hashes == whole.hashes).all()


def test_two_processes_decode_once(folder, tmp_path):
    both = [start(folder, tmp_path) for _ in range(2)]
    reads = [int(p.communicate(timeout=120)[0].split()[-1]) for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sorted(reads) == [0, N]


def test_a_training_with_an_official_split_does_not_wait(tmp_path, monkeypatch):
    "The first step has decoded one batch; the finished run knows all pictures, and is read again."
    own, rng = tmp_path/"own", np.random.default_rng(0)
    own.mkdir()
    rows = ["file_name,study_id,patient_id,view,text,split"]
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(own/f"{i}.png")
        rows.append(f"{i}.png,s{i},p{i},PA,Finding {i % 7} of {i}.,{'train' if i < 40 else 'validate' if i < 50 else 'test'}")
    (own/"metadata.csv").write_text("\n".join(rows))
    (own/"59.png").write_bytes(b"damaged")
    seen = []
    class Watch:
        def after_step(self, state): seen.append((state.data.images.full, int(state.data.images.done.sum())))
    config = load_config("demo", f"--data.source={own}", "--data.split=official", "--data.image_size=32", "--train.epochs=1",
                         "--train.batch_size=8", f"--data.cache_dir={tmp_path}", f"--paths.results_dir={tmp_path}/results")
    folder = runs.train(config, hooks=[Watch()])
    assert seen == [(False, 8*k) for k in range(1, 6)]
    info = runs.read_run(folder)["data"]
    assert len(info["fingerprint"]) == 16 and info["counts"]["test"]["studies"] == 9
    assert info["leaks"]["train-test"] == dict(patients=0, texts=0, images=0)
    assert info["skipped"]["unreadable frontal image: UnidentifiedImageError"] == ["s59"]
    run = runs.load_run(folder)
    assert run.data.images.full and run.data.splits["test"] == [f"p{i}" for i in range(50, 60)]
    assert runs.what_changed(info, runs.data_marks(run.data)) == ""


def test_before_all_is_decoded_there_is_no_fingerprint(folder, tmp_path):
    data = prepare_data(read_folder(folder, {}), DataConfig(split="patient", image_size=32, cache_dir=str(tmp_path)))
    data.images = pictures.build_cache(read_folder(folder, {}), 48, tmp_path, lazy=True)
    assert runs.data_marks(data) == dict(fingerprint=None, fingerprints={})
    assert runs.what_changed(dict(fingerprint="0"), runs.data_marks(data)) == ""
