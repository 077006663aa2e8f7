"""The linear probe on image embeddings: what it must find, whom it may learn from, and the command that prints it."""
import json, subprocess, sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
import torch

from radiology_clip_mini.base.collections import load_studies
from radiology_clip_mini.base.settings import DataConfig, ModelConfig
from radiology_clip_mini.data import prepare_data
from radiology_clip_mini.lab import evaluate as lab
from radiology_clip_mini.lab.evaluate import evaluate, linear_probe, SHARES, write_evaluation
from radiology_clip_mini.lab.report import format_metrics
from radiology_clip_mini.lab.runs import Run
from radiology_clip_mini.models import CLIPMini

FINDINGS = ["effusion", "nodule"]


class Words:
    "Texts of as many dimensions as the images; zero-shot looks at the first."
    def __init__(self, d): self.d = d
    def encode_text(self, texts): return torch.tensor([[-1. if "no " in t.lower() else 1.] + [0.]*(self.d - 1) for t in texts])


def part(seed, n=400, d=6, per_patient=2, noise=0., signal=1., prevalence=.3, **columns):
    "Embeddings whose first coordinates are the findings, and the rest noise."
    rng = np.random.default_rng(seed)
    has = rng.random((n, 2)) < prevalence
    emb = rng.normal(size=(n, d))
    emb[:, :2] = signal*(has - .5) + noise*rng.normal(size=(n, 2))
    labels = [[name for name, held in zip(FINDINGS, row) if held] for row in has]
    patients = [f"{seed}-{i // per_patient}" for i in range(n)]
    return emb, Dataset.from_dict(dict(patient_id=patients, labels=labels, **columns))


def parts(**words): return part(0, 1000, **words), part(1, **words), part(2, **words)


def test_a_finding_that_is_a_coordinate_is_found():
    table = linear_probe(Words(6), *parts(), n_boot=100)
    assert table.index.get_level_values("share").unique().tolist() == ["5 %", "25 %", "100 %"] # 1 %: 5 patients are too few
    assert (table.loc["100 %"][["AUC", "AUC_low", "AUC_high"]] == 1).all().all()
    assert table.loc["5 %", "AUC"].min() > .9
    assert table.loc[("100 %", "effusion"), "zero_shot"] == 1
    assert table.loc[("100 %", "nodule"), "zero_shot_low"] < .5 < table.loc[("100 %", "nodule"), "zero_shot_high"]


def test_noise_is_chance():
    table = linear_probe(Words(6), *parts(signal=0., noise=1.), n_boot=400)
    assert len(table) == 9
    assert ((table["AUC_low"] < .5) & (table["AUC_high"] > .5)).all(), table


def test_it_is_the_regression_of_scikit_learn():
    train, val, test = parts(noise=1.)
    table = linear_probe(Words(6), train, val, test, n_boot=10)
    for i, name in enumerate(FINDINGS):
        y, val_y, truth = ([name in labels for labels in studies["labels"]] for _, studies in (train, val, test))
        scaler, aucs = StandardScaler().fit(train[0]), []
        x, val_x, test_x = (scaler.transform(emb) for emb, _ in (train, val, test))
        for c in (.01, .001, .1, 1.):
            fitted = LogisticRegression(C=c, max_iter=1000).fit(x, y)
            aucs.append((roc_auc_score(val_y, fitted.decision_function(val_x)), -len(aucs), roc_auc_score(truth, fitted.decision_function(test_x))))
        assert table.loc[("100 %", name), "AUC"] == pytest.approx(max(aucs)[2], abs=1e-12)
    assert table.loc[("100 %", "macro"), "AUC"] == pytest.approx(table.loc["100 %"].loc[FINDINGS, "AUC"].mean(), abs=1e-12)


def test_small_shares_are_whole_patients_and_a_mean_of_draws(monkeypatch):
    train, val, test = parts(noise=2.)
    seen = []
    def fit(x, y, val_x, val_y):
        seen.append((len(x), x[:, 5].sum()))
        return real(x, y, val_x, val_y)
    real = lab._fit
    monkeypatch.setattr(lab, "_fit", fit)
    table = linear_probe(Words(6), train, val, test, findings=["effusion"], n_boot=10)
    assert table["patients"].loc[:, "effusion"].to_dict() == {"5 %": 25, "25 %": 125, "100 %": 500}
    assert [n for n, _ in seen] == [50]*5 + [250]*5 + [1000]
    assert len(set(seen[:5])) == 5 # other patients in each draw
    patients = np.array(train[1]["patient_id"])
    for share, fraction in SHARES.items():
        for rows in lab._draws(patients, fraction, 0): assert not set(patients[rows]) & set(patients[~rows])
    assert [rows.sum() for rows in lab._draws(patients, .01, 0)] == [10]*5
    again = linear_probe(Words(6), train, val, test, findings=["effusion"], n_boot=10)
    pd.testing.assert_frame_equal(table, again)


def test_intervals_are_over_patients():
    "Ten copies of each study are no more evidence."
    train, val, test = parts(noise=1.)
    ten = test[0].repeat(10, 0), test[1].select(np.arange(len(test[1])).repeat(10))
    once, often = (linear_probe(Words(6), train, val, each, n_boot=100) for each in (test, ten))
    np.testing.assert_allclose(once.to_numpy(float), often.to_numpy(float), atol=1e-9)


def test_patients_are_apart():
    train, val, test = parts()
    with pytest.raises(ValueError, match="would learn from 200 of its test patients; test another split"): linear_probe(Words(6), train, test, test)
    with pytest.raises(ValueError, match="would learn from 200 of its test patients"): linear_probe(Words(6), test, val, test)


def uncertain(seed, n=400):
    "Half of the studies are unsure of the effusion; their coordinate and their label say the contrary of each other."
    (emb, studies), unsure = part(seed, n), np.arange(n) % 2 == 0
    emb[unsure, 0] *= -1
    return emb, studies.add_column("uncertain", [["left effusion"] if each else [] for each in unsure])


def test_studies_that_are_not_sure_are_left_out():
    train, val, test = uncertain(0, 1000), uncertain(1), uncertain(2)
    table = linear_probe(Words(6), train, val, test, n_boot=50).loc["100 %"]
    assert table.loc["effusion", ["AUC", "AUC_low", "zero_shot"]].tolist() == [1, 1, 1]
    assert table.loc["nodule", "AUC"] == 1
    noisy = [part(seed, n, noise=1.) for seed, n in ((0, 1000), (1, 400), (2, 400))] # each second study is left out, or is not there
    marked = [(emb, studies.add_column("uncertain", [["left effusion"] if i % 2 else [] for i in range(len(emb))])) for emb, studies in noisy]
    halved = [(emb[::2], studies.select(range(0, len(emb), 2))) for emb, studies in noisy]
    with_them, without = (linear_probe(Words(6), *each, findings=["effusion"], n_boot=50) for each in (marked, halved))
    pd.testing.assert_frame_equal(with_them, without)
    taken = linear_probe(Words(6), *((emb, studies.remove_columns("uncertain")) for emb, studies in (train, val, test)), n_boot=50).loc["100 %"]
    assert taken.loc["effusion", "AUC"] < .7


def test_too_few_to_learn_from_is_blank():
    train, val, test = parts()
    rare = [[name for name in names if name != "nodule" or i < 6] for i, names in enumerate(train[1]["labels"])]
    n = sum("nodule" in names for names in rare)
    assert n < 5
    few = train[0], train[1].remove_columns("labels").add_column("labels", rare)
    table = linear_probe(Words(6), few, val, test, n_boot=10)
    assert set(table.index.get_level_values("finding")) == {"effusion", "macro"}
    silent = val[0], val[1].remove_columns("labels").add_column("labels", [[] for _ in range(400)])
    assert linear_probe(Words(6), train, silent, test, n_boot=10).loc[("100 %", "nodule"), "AUC"] == 1 # C as it is


def test_without_labels_there_is_no_probe():
    train, val, test = parts()
    none = test[0], test[1].remove_columns("labels").add_column("labels", [[] for _ in range(400)])
    assert linear_probe(Words(6), train, val, none).empty


CONFIG = DataConfig(source="phantom", phantoms=160, image_size=32, views="frontal", test_fraction=.3, val_fraction=.2)


@pytest.fixture(scope="module")
def studies(): return load_studies("phantom", phantoms=160, image_size=32)


@pytest.fixture(scope="module")
def model(studies):
    torch.manual_seed(0)
    return CLIPMini(ModelConfig(image_weights="none", text_encoder="scratch", embed_dim=32), studies["text"][:], 32)


def blank(studies, *columns):
    "The same studies, with empty texts or labels."
    empty = dict(text="", labels=[])
    return studies.map(lambda _: {name: empty[name] for name in columns}, features=studies.features)


def test_a_collection_without_reports(model, studies, tmp_path):
    "Retrieval is left out, the rest is there, and so are the files."
    data = prepare_data(blank(studies, "text"), CONFIG, 1)
    result, ranks = evaluate(model, data, probe=True)
    assert ranks.empty and not {"image_to_text", "text_to_image"} & set(result)
    assert {"zero_shot", "probe"} <= set(result) and "100 %" in result["probe"]
    page = format_metrics(result)
    n = len(data.rows("test"))
    assert page.startswith(f"test split: {n} studies without reports") and "linear probe" in page and max(map(len, page.splitlines())) <= 100
    folder = write_evaluation(Run(tmp_path, model, data, {}), result, ranks)
    assert sorted(p.name for p in folder.iterdir()) == ["metrics.json", "metrics.md"]
    assert json.loads((folder/"metrics.json").read_text()) == result
    assert "## Linear probe" in (folder/"metrics.md").read_text()
    with pytest.raises(ValueError, match="compared by retrieval, and these studies have no reports"): evaluate(model, data, rivals=dict(x=(model, data)))


def test_reports_change_no_finding(model, studies):
    "The same pictures with reports give the same figures for findings."
    silent, told = (evaluate(model, prepare_data(each, CONFIG, 1), probe=True)[0] for each in (blank(studies, "text"), studies))
    assert silent["probe"] == told["probe"] and silent["zero_shot"] == told["zero_shot"]
    assert list(told)[-4:] == ["image_to_text", "text_to_image", "zero_shot", "probe"]


def test_nothing_to_measure(model, studies):
    with pytest.warns(UserWarning, match="there is no linear probe: it needs labels"):
        assert "probe" not in evaluate(model, prepare_data(blank(studies, "labels"), CONFIG, 1), probe=True)[0]
    with pytest.raises(ValueError, match="nothing to measure"): evaluate(model, prepare_data(blank(studies, "labels", "text"), CONFIG, 1))
    with pytest.raises(ValueError, match="one is empty"): evaluate(model, prepare_data(studies, CONFIG, 1, only_test=True), probe=True)
    with pytest.raises(ValueError, match="of its test patients"): evaluate(model, prepare_data(studies, CONFIG, 1), "train", probe=True)
    assert "probe" in evaluate(model, prepare_data(studies, CONFIG, 1), "val", probe=True)[0]


def command(folder, *words):
    done = subprocess.run([sys.executable, "-m", "radiology_clip_mini", *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


SOME = ["--data.source", "phantom", "--data.phantoms=160", "--data.image_size=32"]


def test_the_command(tmp_path):
    "rclip_eval --probe of a run, and of a model with other studies, which are split."
    held_out = ["--data.test_fraction=.3", "--data.val_fraction=.2"]
    command(tmp_path, "train", "--config", "demo", *SOME, *held_out, "--data.max_held_out=null", "--train.epochs=1")
    printed = command(tmp_path, "eval", "--probe")
    run = tmp_path/Path((tmp_path/"results/latest.txt").read_text().strip()).parent
    result = json.loads((run/"metrics.json").read_text())
    assert "macro AUC of a linear probe" in printed and max(map(len, printed.split("written")[0].splitlines())) <= 100
    macro, counts = result["probe"]["100 %"]["macro"], json.loads((run/"run.json").read_text())["data"]["counts"]
    assert macro["patients"] == counts["train"]["patients"] and f"{macro['AUC']:.3f}" in printed
    assert 0 <= macro["AUC_low"] <= macro["AUC"] <= macro["AUC_high"] <= 1
    printed = command(tmp_path, "eval", "--model", str(run/"best"), *SOME, *held_out, "--probe", "--out", "elsewhere")
    assert json.loads(next(Path(tmp_path/"elsewhere").glob("metrics*.json")).read_text())["probe"].keys() == result["probe"].keys()
    assert "probe" not in command(tmp_path, "eval", "--model", str(run/"best"), *SOME, "--out", "elsewhere")
