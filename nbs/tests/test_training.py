"""Training in several processes, and training that is killed: what it loses (nothing) and what it says."""
import json, multiprocessing, os, random, resource, shutil, signal, socket, subprocess, sys, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch

from test_commands import save_open_clip

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and gloo as POSIX has them")
multi = multiprocessing.get_context("forkserver") # imports once, so that each of the many processes starts in milliseconds
multi.set_forkserver_preload(["radiology_clip_mini.lab.runs"])
SMALL = ("--data.phantoms=40", "--data.image_size=32", "--train.epochs=6", "--train.batch_size=12", "--model.dropout=.1")


def settings(results, *more):
    from radiology_clip_mini.base.settings import load_config
    return load_config("demo", *SMALL, f"--paths.results_dir={results}", f"--data.cache_dir={results}/cache", *more)


def session(results, rank, world, port, resume, more, hurt, minutes=0):
    "One process of one session of a run, with a checkpoint after so many minutes; `hurt` names what goes wrong in it, and when."
    if world > 1: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler) # which a process in the background does not have
    from radiology_clip_mini.lab import runs
    from radiology_clip_mini.lab.cli import clear_errors
    runs.SAVE_MINUTES = minutes
    if hurt: HURT[hurt[0]](hurt[1])
    with open(f"{results}/log{rank}.txt", "a") as log, redirect_stdout(log), redirect_stderr(log):
        clear_errors(lambda: runs.train(settings(results, *more), resume=resume), "rclip_train")


def die(): os.kill(os.getpid(), signal.SIGKILL)


def die_in_step(n):
    "Dies in the n-th step of this session, after its gradients."
    from radiology_clip_mini import train as module
    real, count = module.average_gradients, iter(range(10**6))
    def average_gradients(model): die() if next(count) == n else real(model)
    module.average_gradients = average_gradients


def die_in_write(n):
    "Dies while it writes its n-th checkpoint: the file is there by half."
    from radiology_clip_mini.lab import runs
    real, count = runs.save_file, iter(range(10**6))
    def save_file(tensors, path, metadata):
        real(tensors, path, metadata)
        if next(count) == n: os.truncate(path, path.stat().st_size // 2), die()
    runs.save_file = save_file


def die_in_move(n):
    "Dies between writing its n-th checkpoint and moving it to its place."
    from radiology_clip_mini.lab.runs import CHECKPOINT
    real, count = os.replace, iter(range(10**6))
    def replace(a, b):
        if str(b).endswith(CHECKPOINT) and next(count) == n: die()
        real(a, b)
    os.replace = replace


def small_disk(n):
    "No file may grow beyond 1 MB once the n-th checkpoint is there, as on a full disk."
    from radiology_clip_mini.lab import runs
    real = runs.save_checkpoint
    def save_checkpoint(folder, state, **progress):
        if state.step > n: signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000,)*2)
        real(folder, state, **progress)
    runs.save_checkpoint = save_checkpoint


HURT = dict(step=die_in_step, write=die_in_write, move=die_in_move, disk=small_disk)


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def saved(results): return [p.stat().st_mtime_ns for p in Path(results).glob("2*/last/training.safetensors")]


def run(results, world=1, resume=None, more=(), hurt=None, after=None, trained=True):
    "One session. It is killed `after` seconds of its start or, `trained`, of its first checkpoint. Returns the exit codes."
    Path(results).mkdir(exist_ok=True)
    port = free_port()
    processes = [multi.Process(target=session, args=(str(results), r, world, port, resume, more, hurt if r == 0 else None)) for r in range(world)]
    before = saved(results)
    for p in processes: p.start()
    while after is not None and trained and saved(results) == before and processes[0].is_alive(): time.sleep(.001)
    if after is not None: time.sleep(after), processes[0].kill()
    processes[0].join(120)
    if processes[0].exitcode: [p.kill() for p in processes]
    for p in processes: p.join(60)
    return [p.exitcode for p in processes]


def folder_of(results): return next(p.parent for p in Path(results).glob("2*/run.json"))
def outcome(results): return [(folder_of(results)/name).read_bytes() for name in ("history.jsonl", "last/model.safetensors", "best/model.safetensors")]


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, tmp_path_factory):
    "How many processes, and a run of them that nobody disturbed."
    results = tmp_path_factory.mktemp(f"whole{request.param}")
    assert run(results, request.param) == [0]*request.param, (results/"log0.txt").read_text()
    return request.param, outcome(results)


def test_killed_at_any_moment(whole, tmp_path):
    "Twelve SIGKILLs, in steps, in half-written checkpoints, before they are moved, at the start, and at no chosen moment; then the same history and weights."
    world, expected = whole
    draw, kills = random.Random(world), 0
    plan = ["step", "write", "move", "any"]*2 + ["start", "write", "step", "any"]
    for kind in plan:
        started = list(tmp_path.glob("2*/run.json"))
        resume = folder_of(tmp_path) if started else None
        if kind in ("any", "start"): codes = run(tmp_path, world, resume, after=draw.uniform(0, .15), trained=kind == "any")
        else: codes = run(tmp_path, world, resume, hurt=(kind, 1 if kind == "step" else draw.randrange(2)))
        if codes[0] == 0: break
        assert codes[0] == -signal.SIGKILL, (tmp_path/"log0.txt").read_text()
        kills += 1
    assert kills >= 11, f"the run was over after {kills} kills"
    if codes[0]: assert run(tmp_path, world, folder_of(tmp_path)) == [0]*world, (tmp_path/"log0.txt").read_text()
    assert outcome(tmp_path) == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_well(tmp_path, number, whole):
    "A checkpoint is written, the message says how to go on, and the end is the signal's own; resumed, the run is as if nothing had been."
    world, expected = whole
    if world == 2: pytest.skip("one process is enough")
    process = multi.Process(target=session, args=(str(tmp_path), 0, 1, 0, None, (), None, 10))
    process.start()
    while not list(tmp_path.glob("2*/history.jsonl")): time.sleep(.01)
    time.sleep(.3)
    os.kill(process.pid, number)
    process.join(60)
    log = (tmp_path/"log0.txt").read_text()
    assert process.exitcode == (-signal.SIGTERM if number == signal.SIGTERM else 130), log
    assert "go on from it with rclip_train --resume" in log and (folder_of(tmp_path)/"last/training.safetensors").exists()
    assert run(tmp_path, 1, folder_of(tmp_path)) == [0]
    assert outcome(tmp_path) == expected


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, whole):
    "Training ends with a message, the checkpoint before is whole, and once there is room it goes on."
    world, expected = whole
    if world == 2: pytest.skip("one process is enough")
    assert run(tmp_path, hurt=("disk", 3)) == [1]
    log = (tmp_path/"log0.txt").read_text()
    assert "the checkpoint of step 4 could not be written" in log and "The last good checkpoint is that of step 3" in log and "Traceback" not in log
    assert not list(tmp_path.rglob("*.part"))
    assert run(tmp_path, 1, folder_of(tmp_path)) == [0]
    assert outcome(tmp_path) == expected


def test_results_that_vanish(tmp_path, whole):
    "Somebody removes the run's folder while it trains: a message, no traceback."
    if whole[0] == 2: pytest.skip("one process is enough")
    process = multi.Process(target=session, args=(str(tmp_path), 0, 1, 0, None, ("--train.epochs=200",), None))
    process.start()
    while not saved(tmp_path) and process.is_alive(): time.sleep(.01)
    while list(tmp_path.glob("2*")): shutil.rmtree(next(tmp_path.glob("2*")), ignore_errors=True)
    process.join(60)
    log = (tmp_path/"log0.txt").read_text()
    assert process.exitcode == 1 and "rclip_train: error: " in log and "Traceback" not in log, log


@pytest.mark.parametrize("n", [2, random.randrange(1, 12)], ids=["second step", "any step"])
def test_the_other_process_ends_too(tmp_path, n, whole):
    "One of two processes is killed in a step: the other ends within a minute with a message, and the run can be resumed."
    world, expected = whole
    if world == 1: pytest.skip("needs two processes")
    port = free_port()
    one, other = [multi.Process(target=session, args=(str(tmp_path), r, 2, port, None, (), ("step", n) if r else None)) for r in (0, 1)]
    one.start(), other.start()
    one.join(60), other.join(60)
    log = (tmp_path/"log0.txt").read_text()
    assert (one.exitcode, other.exitcode) == (1, -signal.SIGKILL), log
    assert "another process of this run has ended. " in log and "checkpoint" in log and "Traceback" not in log
    assert run(tmp_path, 2, folder_of(tmp_path)) == [0, 0]
    assert outcome(tmp_path) == expected


ADAPTED = ("--data.image_size=null", "--train.image=lora", "--train.text=lora", "--train.lr=.01", "--train.epochs=3")
BARE = "import sys; sys.modules['peft'] = None; from radiology_clip_mini.lab.published import load_model; load_model(sys.argv[1]).encode_text(['No effusion.'])"

@pytest.mark.parametrize("world, more", [(1, []), (1, ["--train.chunk_size=4"]), (2, [])], ids=["one process", "in chunks", "two processes"])
def test_adapters_go_on(tmp_path, world, more):
    "A published model with LoRA, killed and resumed without the weights it began with, ends as if nothing had been; what is saved needs no peft."
    pytest.importorskip("peft", reason="no peft: pip install 'radiology-clip-mini[lora]'")
    (tmp_path/"start").mkdir()
    words = (f"--model.start={save_open_clip(tmp_path/'start')}", *ADAPTED, *more)
    whole, killed = tmp_path/"whole", tmp_path/"killed"
    assert run(whole, world, more=words) == [0]*world, (whole/"log0.txt").read_text()
    assert run(killed, world, more=words, hurt=("step", 4))[0] == -signal.SIGKILL, (killed/"log0.txt").read_text()
    first = load_file(tmp_path/"start/open_clip_model.safetensors")
    shutil.rmtree(tmp_path/"start")
    assert run(killed, world, folder_of(killed), words) == [0]*world, (killed/"log0.txt").read_text()
    assert outcome(killed) == outcome(whole)
    best = load_file(folder_of(whole)/"best/model.safetensors")
    assert not [name for name in best if "lora_" in name or "base_layer" in name]
    learned = {name for name, x in best.items() if not any(x.shape == y.shape and torch.equal(x, y) for y in first.values())}
    assert {name.split(".")[0] for name in learned} >= {"image_encoder", "text_encoder", "image_projection", "text_projection"}
    assert not [name for name in learned if "norm" in name.lower() or "embed" in name], learned
    subprocess.run([sys.executable, "-c", BARE, folder_of(whole)], check=True)


def gradients(folder, rank, world, port, chunk_size, weight):
    "The loss and the gradients of one step on a batch of 11, BatchNorm and dropout in evaluation mode."
    if world > 1: os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    import numpy as np
    from radiology_clip_mini import train as m
    from radiology_clip_mini.lab.runs import load_data
    config = settings(folder, f"--train.sentence_weight={weight}", "--train.grad_clip=1e9")
    config.train.chunk_size = chunk_size
    accelerator, data = m.make_accelerator(False), load_data(config.data, 1)
    assert m.process() == (rank, world)
    m.set_seed(0)
    rows = data.rows("train")
    model = m.CLIPMini(config.model, data.texts(rows)).eval()
    singles = m.SentenceTable(data.texts(rows), model.token_table) if weight else None
    batch = next(m.shared_batches(data, rows, model.token_table(data.texts(rows)), [np.arange(11)], singles))
    class Keep(torch.optim.SGD):
        def step(self): torch.save([p.grad.clone() for p in model.parameters()], f"{folder}/{world}-{rank}.pt")
    step = m.train_step(model, batch, Keep(model.parameters(), 0.), accelerator, config.train)
    Path(f"{folder}/{world}-{rank}.json").write_text(json.dumps(step["loss"].item()))


@pytest.mark.parametrize("chunk_size, weight", [(None, 0), (3, 0), (None, .6), (3, .6)])
def test_two_processes_are_one(tmp_path, chunk_size, weight):
    "Two processes with half the batch each have the loss and the gradients of one with all of it, chunks or none."
    port = free_port()
    processes = [multi.Process(target=gradients, args=(str(tmp_path), rank, world, port, chunk_size, weight)) for world in (1, 2) for rank in range(world)]
    for p in processes[:1]: p.start(), p.join(60)
    for p in processes[1:]: p.start()
    for p in processes[1:]: p.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    one, *two = [(json.loads((tmp_path/f"{name}.json").read_text()), torch.load(tmp_path/f"{name}.pt", weights_only=True)) for name in ("1-0", "2-0", "2-1")]
    longest = torch.cat([g.flatten() for g in one[1]]).norm()
    for loss, grads in two:
        assert abs(loss - one[0]) < 1e-6
        assert all((g - expected).abs().max() <= 1e-6 * max(longest, 1) for g, expected in zip(grads, one[1]))


TORCHRUN = ["torch.distributed.run", "--nproc_per_node=2", "--master_port"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port"]
SCRIPT = """
import os
from radiology_clip_mini.lab.cli import train_command
train_command()
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
"""


@pytest.mark.parametrize("launcher, program", [(TORCHRUN, ["-m", "radiology_clip_mini", "train"]), (TORCHRUN, ["script.py"]), (ACCELERATE, ["-m", "radiology_clip_mini", "train"]), (ACCELERATE, ["script.py"])])
def test_the_same_words_on_two_processes(tmp_path, launcher, program):
    "torchrun and accelerate launch need nothing but their own options."
    (tmp_path/"script.py").write_text(SCRIPT)
    words = [str(free_port()), *program, "--config", "demo", *SMALL, "--train.epochs=1"]
    done = subprocess.run([sys.executable, "-m", *launcher, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if program == ["script.py"]: assert "rank 0 of 2" in done.stdout and "rank 1 of 2" in done.stdout
    assert done.stdout.count("best model:") == 1 and len(list(tmp_path.glob("results/2*"))) == 1
