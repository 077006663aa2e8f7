"""A corpus whose embedding is killed, and one that two processes share."""
import os, subprocess, sys, time
from unittest.mock import Mock

import numpy as np
import pytest

from radiology_clip_mini.base.settings import DataConfig, ModelConfig
from radiology_clip_mini.lab import ask
from radiology_clip_mini.lab.runs import load_data
from radiology_clip_mini.models import CLIPMini

N, SHARD = 40, 5
EVERY = np.arange(N)
EMBED = """
import sys, time
import numpy as np
import torch
from radiology_clip_mini.lab import ask
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.lab.runs import load_data
from radiology_clip_mini.models import CLIPMini
folder, pause = sys.argv[1], float(sys.argv[2])
real, rows = ask.embed, []
def embed(model, data, part, **more): time.sleep(pause); rows.extend(part.tolist()); return real(model, data, part, **more)
ask.embed = embed
data = load_data(DataConfig(source="phantom", phantoms=40, image_size=32, cache_dir=folder), seed=1)
model = CLIPMini.from_pretrained(folder + "/model")
image_emb, text_emb = ask.embed_corpus(model, data, np.arange(40), folder + "/corpora", shard_size=5)
if torch.distributed.is_initialized(): torch.distributed.destroy_process_group()
sys.stdout.write(f"embedded {len(rows)} of {len(image_emb)}\\n")
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "Data, a saved model, and their folder."
    folder = tmp_path_factory.mktemp("search")
    data = load_data(DataConfig(source="phantom", phantoms=N, image_size=32, cache_dir=str(folder)), seed=1)
    model = CLIPMini(ModelConfig(image_weights="none", text_encoder="scratch"), data.texts(data.rows("train"))).eval()
    model.save_pretrained(folder/"model")
    (folder/"script.py").write_text(EMBED)
    return data, model, folder


def shards(folder): return list(folder.glob("*/[0-9]*.npy"))


def same(some, others):
    for a, b in zip(some, others): assert np.allclose(a, b, atol=1e-5)


def test_a_killed_corpus_goes_on(parts, monkeypatch):
    data, model, folder = parts
    process = subprocess.Popen([sys.executable, folder/"script.py", folder, "0.5"], stdout=subprocess.DEVNULL)
    while len(shards(folder/"corpora")) < 2 and process.poll() is None: time.sleep(.01)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in shards(folder/"corpora")}
    assert 2 <= len(kept) < N // SHARD, "the process was not caught half-way"
    calls = Mock(wraps=ask.embed)
    monkeypatch.setattr(ask, "embed", calls)
    finished = ask.embed_corpus(model, data, EVERY, folder/"corpora", shard_size=SHARD)
    assert sum(len(call.args[2]) for call in calls.call_args_list) == N - SHARD*len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    same(finished, ask.embed_corpus(model, data, EVERY, folder/"fresh", shard_size=SHARD))


def test_two_processes_make_one_corpus(parts, tmp_path):
    data, model, folder = parts
    alone = ask.embed_corpus(model, data, EVERY, tmp_path, shard_size=SHARD)
    for path in shards(folder/"corpora"): path.unlink()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", folder/"script.py", folder, "0"]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=120, env=os.environ | dict(USE_LIBUV="0", CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("embedded")) == ["embedded 20 of 40"]*2
    assert len(shards(folder/"corpora")) == N // SHARD
    same(alone, ask.embed_corpus(model, data, EVERY, folder/"corpora", shard_size=SHARD))
