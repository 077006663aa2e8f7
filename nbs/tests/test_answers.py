"""One film in, answers out: `rclip_ask` as a user calls it, and what it says by hand."""
import json, shutil, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from radiology_clip_mini.base.phantom import make_phantoms
from radiology_clip_mini.base.pictures import read_grey
from radiology_clip_mini.lab import answers as lab, cli
from radiology_clip_mini.lab.answers import Answers, ask, calibrate, count_sentences, find_films, group_films, open_answers, probability, two_cuts, verdict
from radiology_clip_mini.lab.evaluate import finding_scores
from radiology_clip_mini.lab.runs import load_run

NOTICE = "research and education only, not for clinical decisions"


@pytest.mark.parametrize("with_it, without, expected", [
    (range(10, 30), range(20), (19, 11)), # one of 20 may be wrong on each side
    (range(30, 50), range(20), (30, 30)), # apart: one cut, at the lowest with the finding
    (range(20), range(20), (19, 1)), # one of 20 is at 19, so yes begins there; no ends at 1
    ([5]*10, [5]*10, (np.nextafter(5, 6), 5)), # nothing is told apart: no score says yes, none says no
])
def test_cuts_by_hand(with_it, without, expected):
    scores, truth = np.array([*with_it, *without], float), np.arange(len(with_it) + len(without)) < len(with_it)
    assert two_cuts(scores, truth) == expected
    yes, no = expected
    assert (scores[~truth] < yes).mean() >= .95 and (scores[truth] >= no).mean() >= .95


def test_probabilities():
    "Platt's targets by hand: with one score for all, the probability is their mean; perfectly apart, it stays inside them."
    truth = np.arange(40) < 10
    same = calibrate(np.zeros(40), truth)
    assert probability(same, np.zeros(1))[0] == pytest.approx((10*11/12 + 30*1/32)/40, abs=1e-4)
    apart = calibrate(np.where(truth, 1., -1.), truth)
    assert probability(apart, np.array([-1., 1.])) == pytest.approx([1/32, 11/12], abs=1e-3)
    assert verdict(apart, np.array([-1., 1.])).tolist() == ["no", "yes"]
    assert apart["yes"]["specificity"] == pytest.approx(dict(share=1, k=30, n=30, low=.025**(1/30), high=1))
    assert apart["no"]["sensitivity"] == pytest.approx(dict(share=1, k=10, n=10, low=.025**(1/10), high=1))


@pytest.mark.parametrize("n, m", [(9, 50), (50, 9), (0, 50)])
def test_refused(n, m):
    refused = calibrate(np.random.default_rng(0).normal(size=n + m), np.arange(n + m) < n)
    assert refused == {"with": n, "without": m, "refused": f"{n} validation studies have it and {m} do not; 10 of each are needed"}


def test_isotonic_from_1000_studies_on():
    "By hand: two blocks that do not fall become their means, where 100 studies or more are of each kind."
    scores, truth = np.repeat([0., 1.], 500), np.tile(np.arange(10), 100) < np.repeat([2, 7], 500)
    curve = calibrate(scores, truth)
    assert curve["method"] == "isotonic" and probability(curve, np.array([-1, 0, .5, 1, 2])) == pytest.approx([.2, .2, .45, .7, .7])
    assert calibrate(scores[1:], truth[1:])["method"] == "sigmoid"
    assert calibrate(scores, np.arange(1000) < 99)["method"] == "sigmoid"


def test_sentences_by_hand():
    reports = ["Clear.  No effusion.", "No effusion. No\neffusion. 3.", "1.", "Большое сердце. Clear."]
    assert count_sentences(reports) == {"Clear.": 2, "No effusion.": 2, "Большое сердце.": 1}
    assert list(count_sentences(reports, 2)) == ["Clear.", "No effusion."]


@pytest.mark.parametrize("names, sizes", [
    (["7_PA.png", "7_lateral.png"], [2]), (["7 AP.png", "7 Lat.jpg"], [2]), (["frontal.png", "lateral.png"], [2]),
    (["a/7_pa.png", "b/7_lat.png"], [1, 1]), (["7_pa.png", "8_lat.png"], [1, 1]), (["7.png", "8.png"], [1, 1]),
    (["study2/view1_frontal.jpg", "study2/view2_lateral.jpg"], [2]), (["s50414267/a_pa.jpg", "s50414267/b_lat.jpg", "s50414267/c.jpg"], [2, 1]),
    (["x/view1_frontal.jpg", "x/view2_lateral.jpg"], [1, 1]), (["7_pa.png", "7_ap.png", "7_lat.png"], [2, 1]), (["plateau.png", "palate.png"], [1, 1]),
])
def test_two_views_by_name(names, sizes): assert [len(film) for film in group_films(map(Path, names))] == sizes


def dicom(path, pixels, **fields):
    pydicom = pytest.importorskip("pydicom")
    head = pydicom.Dataset()
    head.file_meta = pydicom.dataset.FileMetaDataset()
    head.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    head.update(dict()) if not fields else [setattr(head, name, value) for name, value in fields.items()]
    head.Rows, head.Columns, head.SamplesPerPixel, head.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation, head.PixelData = 8, 8, 7, 0, pixels.tobytes()
    head.save_as(path, enforce_file_format=True)


def test_two_views_by_header(tmp_path):
    "Whatever the files are called; one without ViewPosition, or of another study, is by itself."
    pixels = np.zeros((16, 16), np.uint8)
    dicom(tmp_path/"1", pixels, StudyInstanceUID="1.2.3", ViewPosition="LL", SOPInstanceUID="1.9", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    dicom(tmp_path/"2.dcm", pixels, StudyInstanceUID="1.2.3", ViewPosition="PA", SOPInstanceUID="1.8", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    dicom(tmp_path/"3_lateral.dcm", pixels, StudyInstanceUID="1.2.4", ViewPosition="AP", SOPInstanceUID="1.7", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    dicom(tmp_path/"4", pixels, StudyInstanceUID="1.2.3", SOPInstanceUID="1.6", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    (tmp_path/"notes").write_text("no film")
    films = [{view: path.name for view, path in film.items()} for film in group_films(find_films([tmp_path]))]
    assert films == [dict(lateral="1", frontal="2.dcm"), dict(frontal="3_lateral.dcm"), dict(frontal="4")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "A run trained on a folder that is gone when films come, its answers prepared by the command; and films with two bad ones among them."
    folder = tmp_path_factory.mktemp("asked")
    (folder/"own").mkdir()
    studies = make_phantoms(120, seed=3, image_size=64)
    for i, s in enumerate(studies): s["frontal"].save(folder/f"own/{i}.png")
    labels = [";".join(names) for names in studies["labels"]]
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(120)], patient_id=range(120), text=studies["text"], labels=labels)).to_csv(folder/"own/metadata.csv", index=False)
    (folder/"films").mkdir()
    for i, s in enumerate(make_phantoms(3, seed=4, image_size=96)): s["frontal"].save(folder/f"films/{i}_pa.png")
    dicom(folder/"films/3", np.asarray(studies[0]["frontal"]), StudyInstanceUID="1.2", ViewPosition="PA", SOPInstanceUID="1.1", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    (folder/"films/broken.png").write_bytes(b"no picture")
    (folder/"films/short.png").write_bytes((folder/"films/0_pa.png").read_bytes()[:500])
    (folder/"films/notes.txt").write_text("no film")
    words = ["--config", "demo", "--data.source=own", "--data.image_size=48", "--train.epochs=1", "--data.val_fraction=.4", "--data.max_held_out=null", "--data.cache_dir=cache"]
    for argv in (["train", *words], ["ask", "films", "--out", "a.csv"]): done = command(folder, *argv)
    (folder/"said.txt").write_text(done.stdout)
    shutil.copytree(folder/"own", folder/"kept")
    shutil.rmtree(folder/"own")
    return folder


def command(folder, *argv):
    done = subprocess.run([sys.executable, "-m", "radiology_clip_mini", *argv], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def call(home, monkeypatch, capsys):
    "rclip_ask in the folder of the run: (exit status, standard output, standard error)."
    monkeypatch.chdir(home)
    def run(*argv):
        monkeypatch.setattr(sys, "argv", ["rclip_ask", *map(str, argv)])
        try: cli.ask_command(); status = 0
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    return run


def test_the_page(home):
    "Four films are answered, two cost a line each, the text is passed over; the answers are in the run."
    said = (home/"said.txt").read_text()
    assert said.count(NOTICE) == 4 and said.count("nearest sentences") == 4 and "notes.txt" not in said
    assert "not read: films/broken.png: the frontal picture cannot be read: UnidentifiedImageError" in said
    assert "not read: films/short.png: the frontal picture cannot be read: OSError" in said
    assert "films: 4 answered, 2 unreadable, " in said and said.rstrip().endswith("written: a.csv")
    assert max(map(len, said.splitlines())) <= 100
    kept = next((home/"results").glob("*/answers"))
    assert {p.name for p in kept.iterdir()} == {"findings.json", "answers.json", "answers.safetensors"}
    findings = json.loads((kept/"findings.json").read_text())["findings"]
    assert any("refused" in f for f in findings.values()) and any("yes" in f for f in findings.values())
    assert all(f["with"] + f["without"] == 48 for f in findings.values())


def test_again_without_data_and_by_hand(home, monkeypatch, call):
    "The data is gone, and the answers are those of the embeddings."
    monkeypatch.chdir(home)
    a = open_answers()
    table = ask(a, "films")
    first = pd.read_csv("a.csv", keep_default_na=False)
    assert first["file"].tolist() == table["file"].tolist() and first.loc[:3, "study 1 report"].tolist() == table.loc[:3, "study 1 report"].tolist()
    good = table[table["error"] == ""]
    pixels = np.stack([read_grey(file, 48)[0] for file in good["file"]])
    with torch.no_grad(): emb, texts = a.model.encode_image(a.model.preprocess(pixels)).numpy(), a.model.encode_text(list(a.sentences)).numpy()
    for name, scores in zip(a.findings, finding_scores(a.model, emb, list(a.findings))["contrast"].T):
        if "refused" in a.findings[name]: assert f"{name} answer" not in table
        else: assert good[f"{name} probability"].to_numpy(float) == pytest.approx(probability(a.findings[name], scores), abs=1e-4)
    best = (emb @ texts.T).argmax(1)
    assert good["sentence 1"].tolist() == [list(a.sentences)[i] for i in best]
    assert good["sentence 1 reports"].tolist() == [list(a.sentences.values())[i] for i in best]
    assert good["study 1"].tolist() == [a.ids[i] for i in (emb @ a.arrays["image_emb"].T).argmax(1)]
    assert call("films/0_pa.png", "films", "--out", "b.jsonl", "--k", 2)[0] == 0
    lines = [json.loads(line) for line in Path("b.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == table["file"].tolist() and "study 3" not in lines[0]
    assert lines[0]["sentence 1 cosine"] == pytest.approx(table["sentence 1 cosine"][0]) and lines[0]["unlike"] in (True, False)


def test_a_question(home, call):
    "The films by their cosine with the words; for --model no data is needed."
    run = next((home/"results").glob("*/run.json")).parent
    for words in ([], ["--model", run]):
        status, out, err = call("films", "--question", "large heart", "--out", "q.json", *words)
        ranked = pd.read_json("q.json")
        assert status == 0 and "films: 4 answered, 2 unreadable" in out and "preparing" not in out, err
        assert ranked["cosine"].is_monotonic_decreasing or ranked["cosine"][:4].is_monotonic_decreasing
    a = open_answers(model=str(run), bare=True)
    with torch.no_grad(): asked = a.model.encode_text(["large heart"])[0].numpy()
    pixels = np.stack([read_grey(file, a.image_size)[0] for file in ranked["file"][:4]])
    with torch.no_grad(): assert ranked["cosine"][:4].to_numpy() == pytest.approx(a.model.encode_image(a.model.preprocess(pixels)).numpy() @ asked, abs=1e-5)


def test_made_again(home, call, monkeypatch, tmp_path):
    "Other weights, a damaged file: the data is needed again. Where nothing can be written there are answers all the same."
    shutil.copytree(home/"results", tmp_path/"results")
    run = next((tmp_path/"results").glob("*/run.json")).parent
    monkeypatch.setattr(lab, "load_run", lambda *a: (_ for _ in ()).throw(ValueError("data is read")))
    assert call("films/0_pa.png", "--ckpt", run)[0] == 0
    whole = (run/"answers/findings.json").read_text()
    (run/"answers/findings.json").write_text(whole[:-9])
    assert "data is read" in call("films/0_pa.png", "--ckpt", run)[2]
    (run/"answers/findings.json").write_text(whole)
    shutil.copytree(run/"best", run/"first")
    (run/"best/model.safetensors").unlink()
    from safetensors.torch import load_file, save_file
    weights = load_file(run/"first/model.safetensors")
    weights["logit_scale"] += .1
    save_file(weights, run/"best/model.safetensors")
    assert "data is read" in call("films/0_pa.png", "--ckpt", run)[2]
    monkeypatch.setattr(lab, "load_run", load_run)
    assert "preparing answers" in call("films/0_pa.png", "--ckpt", run, "--source", home/"kept", "--images", home/"kept")[1]
    shutil.rmtree(run/"answers")
    (run/"answers").write_text("in the way")
    with pytest.warns(UserWarning, match="the answers are not kept: nothing could be written"):
        assert call("films/0_pa.png", "--ckpt", run, "--source", home/"kept")[0] == 0


def test_a_model_with_data(home, call):
    "Split by patient, kept in a folder of its own, and warned of: the run saw these patients."
    run = next((home/"results").glob("*/run.json")).parent
    words = "films", "--model", run, "--data.source", "kept", "--data.image_size", "48", "--data.val_fraction", ".3", "--data.test_fraction", ".4", "--data.cache_dir", "cache"
    with pytest.warns(UserWarning, match=r"was trained on \d+ of the held-out patients, and may know them by heart"): status, out, err = call(*words)
    assert status == 0 and "films: 4 answered" in out and "preparing answers from 120 studies" in out, err
    with pytest.warns(UserWarning): assert "preparing" not in call(*words)[1]
    with pytest.warns(UserWarning): assert "preparing" in call(*words, "--data.test_fraction", ".3")[1] # another split
    assert len(list((home/"results").glob("*/answers/findings.json"))) == 2


@pytest.mark.parametrize("words, message", [
    (["nowhere.png"], "there is no file or folder nowhere.png"), (["results/latest.txt", "--out", "x.xls"], "expected a file that ends in .csv"),
    ([], "paths"), (["films", "--k", "0"], "k"), (["films", "--model", "m"], "--model NAME needs data"), (["films", "--ckpt", "nowhere"], "no model folder nowhere"),
    (["empty"], "there is no picture in empty"), (["films", "--model", "m", "--data.source", "x", "--ckpt", "c"], "--ckpt names the run"),
])
def test_refuses(home, call, words, message):
    (home/"empty").mkdir(exist_ok=True)
    status, _, err = call(*words)
    assert status == 1 and message in err and "Traceback" not in err


def test_only_bad_files(call):
    status, out, err = call("films/broken.png", "films/notes.txt")
    assert status == 0 and "films: 0 answered, 2 unreadable" in out and "Traceback" not in out + err


def test_help(call):
    status, out, err = call("--help")
    assert status == 0 and "Films, or folders of them" in " ".join((out + err).split())
