"""The known layouts, on all reports of IU X-Ray where a copy of it is at hand: the same examination is the same study in each of them."""
import json
from collections import Counter
from pathlib import Path

import pytest
from datasets import Image as Picture

from radiology_clip_mini.base.collections import _annotation, _r2gen_study, _xml_files, _xml_report, image_key, read_kaggle, read_openi, r2gen_split, read_studies
from radiology_clip_mini.base.findings import mesh_labels
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.base.sources import _read_csv, pick_text
from radiology_clip_mini.base.splits import known_split

IU = Path(__file__).parents[3]/"shared/data/iu_xray"
SMALL = IU.with_name("iu_xray_256")
needs_copy = pytest.mark.skipif(not IU.exists(), reason="no copy of IU X-Ray here")


@pytest.fixture(scope="module")
def xml():
    reports = [_xml_report(content) for _, content in _xml_files(IU)]
    return {report["uid"]: report for report in reports}


@pytest.fixture(scope="module")
def csv(): return _read_csv(IU/"indiana_reports.csv").set_index("uid")


@needs_copy
def test_kaggle_and_openi_say_the_same(xml, csv):
    assert (len(xml), len(csv), set(csv.index) - set(xml)) == (3955, 3851, set())
    assert [uid for uid in csv.index if pick_text(csv.loc[uid]) != pick_text(xml[uid])] == []
    assert [uid for uid in csv.index if mesh_labels(csv.loc[uid, "MeSH"]) != mesh_labels(xml[uid]["MeSH"])] == []
    assert {uid for uid in xml if not xml[uid]["images"]} == set(xml) - set(csv.index)


@needs_copy
def test_the_views_are_those_that_somebody_saw():
    projections = _read_csv(IU/"indiana_projections.csv")
    seen = {image_key(name): view for name, view in zip(projections["filename"], projections["projection"])}
    assert (len(seen), list(seen.values()).count("Lateral")) == (7466, 3648)


@needs_copy
@pytest.mark.skipif(not SMALL.exists(), reason="no small pictures of IU X-Ray here")
def test_both_readers_find_the_same_pictures():
    def views(read):
        studies = read(IU, {}, images=SMALL)
        for view in ("frontal", "lateral"): studies = studies.cast_column(view, Picture(decode=False))
        return {row["study_id"]: (row["frontal"], row["lateral"]) for row in studies}
    at_kaggle, original = views(read_kaggle), views(read_openi)
    assert [uid for uid in at_kaggle if at_kaggle[uid] != original[uid]] == []


@needs_copy
def test_r2gen_has_texts_of_the_same_reports(csv):
    entries = [entry for part in _annotation(IU/"annotation.json").values() for entry in part]
    assert Counter(r2gen_split(IU/"annotation.json").values()) == dict(train=2069, val=296, test=590)
    assert [entry["id"] for entry in entries if pick_text(entry) != pick_text(csv.loc[_r2gen_study(entry)])] == []
    assert {len(entry["image_path"]) for entry in entries} == {2}


def by_study(studies):
    table = studies.select_columns(["study_id", "patient_id", "text", "labels"]).to_pandas()
    return table.assign(labels=table["labels"].map(list)).set_index("study_id").sort_index().to_dict("index")


@needs_copy
def test_a_source_may_name_the_file():
    "The folder holds three layouts: Kaggle's counts, unless the source names another file."
    read = {name: read_studies(DataConfig(source=str(IU/name))) for name in ("", "indiana_reports.csv", "NLMCXR_reports.tgz")}
    studies, skipped = read[""]
    reasons = Counter(skipped.values())
    assert len(studies) == 55 and reasons["no image"] + reasons["no text"] + 55 == 3851
    assert all(by_study(found) == by_study(studies) for found, _ in read.values())
    with pytest.raises(ValueError, match="holds no usable study. Skipped: 5,910 × the image file is not there"):
        read_studies(DataConfig(source=str(IU/"annotation.json")))
    assert len(known_split("r2gen", IU/"annotation.json")) == len(known_split("r2gen", IU/"indiana_reports.csv")) == 2955


@needs_copy
def test_a_file_that_is_no_table_of_studies():
    with pytest.raises(ValueError, match="needs file_name and one of"): read_studies(DataConfig(source=str(IU/"indiana_projections.csv")))
    with pytest.raises(ValueError, match="holds no data this project can read"): read_studies(DataConfig(source=str(IU/"README.md")))


@pytest.mark.parametrize("named", ["annotation.json", "iu_annotation.json"])
def test_reports_that_are_there_twice(tmp_path, named):
    "Two entries of one study become one, and a second text is listed."
    from PIL import Image
    (tmp_path/"images/CXR1_IM-1").mkdir(parents=True)
    Image.new("L", (9, 9)).save(tmp_path/"images/CXR1_IM-1/0.png")
    entry = dict(id="CXR1_IM-1", report="Clear.", image_path=["CXR1_IM-1/0.png"])
    (tmp_path/named).write_text(json.dumps(dict(train=[entry, entry | dict(report="Large heart.")])))
    with pytest.warns(UserWarning, match="does not name views"): studies, skipped = read_studies(DataConfig(source=str(tmp_path/named)))
    assert (studies["text"][:], skipped) == (["Clear."], {"1 text": "a further text of its study, which differs"})
