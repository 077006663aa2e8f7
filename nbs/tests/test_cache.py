"""The image cache when processes are killed, or want the same thing at once."""
import os, signal, subprocess, sys, time

import numpy as np
import pytest
from PIL import Image

from radiology_clip_mini.base import pictures
from radiology_clip_mini.base.sources import read_folder

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
