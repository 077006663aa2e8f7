"""Reports cut into their sections, and the large collections as they are downloaded: MIMIC-CXR, CheXpert Plus, R2Gen's MIMIC, a hospital's export."""
import json, os, re, shutil, warnings, zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from dicoms import write_export
from radiology_clip_mini.base.collections import read_studies, source_path
from radiology_clip_mini.base.findings import FINDINGS, graded_findings, listed_findings, mesh_labels, named_finding
from radiology_clip_mini.base.sections import report_sections
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.base.splits import known_patients, known_split, only_known, unlike_asked

CASES = Path(__file__).parents[3]/"shared/cases"
MIMIC, PLUS = CASES/"large_collections/mimic-cxr-jpg", CASES/"large_collections/chexpert_plus"
quick = settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


def read(source, **more):
    "The studies of a source as a table, what was noticed, and all warnings."
    if not Path(source).exists(): pytest.skip(f"no copy of {Path(source).name} here")
    with pytest.warns(UserWarning) as warned:
        warnings.warn("none")
        studies, noticed = read_studies(DataConfig(source=str(source), **more))
    return studies, noticed, " | ".join(str(w.message) for w in warned)


def draw(path, grey=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (16, 16), grey).save(path)


def views(studies): return [studies.to_pandas()[view].notna().tolist() for view in ("frontal", "lateral")]


# Sections: what was written, its findings, its impression

F, I = "The heart is large. No effusion.", "Cardiomegaly."
KINDS = {
 "both": (f"FINDINGS: {F}\nIMPRESSION: {I}", F, I),
 "as in MIMIC": (f"                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___F with cough  // pneumonia?\n \n TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  None.\n \n FINDINGS: \n \n The heart is large.\n No effusion.\n \n IMPRESSION: \n \n {I}\n", F, I),
 "lower case": (f"Findings: {F}\nImpression: {I}", F, I),
 "all lower": (f"findings: {F}\nimpression: {I}", F, I),
 "no blank after the colon": (f"FINDINGS:{F}\nIMPRESSION:{I}", F, I),
 "a blank before the colon": (f"FINDINGS : {F}\nIMPRESSION : {I}", F, I),
 "no colon, own lines": (f"FINDINGS\n{F}\n\nIMPRESSION\n{I}", F, I),
 "no colon": (f"FINDINGS {F}\nIMPRESSION {I}", F, I),
 "a dash": (f"FINDINGS - {F}\nIMPRESSION - {I}", F, I),
 "a semicolon": (f"FINDINGS; {F}\nIMPRESSION; {I}", F, I),
 "markdown": (f"**Findings:** {F}\n\n**Impression:** {I}", F, I),
 "markdown headings": (f"## Findings\n{F}\n## Impression\n{I}", F, I),
 "numbered headings": (f"1. FINDINGS: {F}\n2. IMPRESSION: {I}", F, I),
 "one line": (f"FINAL REPORT EXAMINATION: CHEST INDICATION: Cough. COMPARISON: None. FINDINGS: {F} IMPRESSION: {I}", F, I),
 "one line, lower case": (f"Indication: Cough. Findings: {F} Impression: {I}", F, I),
 "one line without headings": (f"FINAL REPORT INDICATION: Cough. COMPARISON: None. {F}", F, ""),
 "Windows": (f"FINDINGS:\r\n{F}\r\n\r\nIMPRESSION:\r\n{I}\r\n", F, I),
 "FINDING": (f"FINDING: {F}\nIMPRESSION: {I}", F, I),
 "mistyped": (f"FINIDNGS: {F}\nIMPRESSON: {I}", F, I),
 "mistyped otherwise": (f"FINDNGS: {F}\nIMPRESSIONS: {I}", F, I),
 "CONCLUSION": (f"FINDINGS: {F}\nCONCLUSION: {I}", F, I),
 "Conclusions": (f"Findings: {F}\nConclusions: {I}", F, I),
 "OPINION": (f"FINDINGS: {F}\nOPINION: {I}", F, I),
 "SUMMARY": (f"FINDINGS: {F}\nSUMMARY: {I}", F, I),
 "INTERPRETATION": (f"INDICATION: Cough.\nINTERPRETATION: {I}", "", I),
 "the impression first": (f"IMPRESSION: {I}\n\nFINDINGS: {F}", F, I),
 "both under one heading": (f"FINDINGS AND IMPRESSION: {F}", F, ""),
 "both with a stroke": (f"FINDINGS/IMPRESSION: {F}", F, ""),
 "both the other way": (f"IMPRESSION AND FINDINGS:\n {F}", F, ""),
 "only findings": (f"COMPARISON: None.\n\nFINDINGS: {F}", F, ""),
 "only an impression": (f"FINAL REPORT\n HISTORY: Cough.\n \n IMPRESSION: {I}", "", I),
 "an empty heading": (f"FINDINGS: \n\nIMPRESSION: {I}", "", I),
 "no headings": (F, F, ""),
 "no headings, a title": (f"PORTABLE CHEST, ___\n\n{F}", F, ""),
 "after the last header": (f"FINAL REPORT\n INDICATION: Cough.\n \n COMPARISON: ___\n \n {F}\n", F, ""),
 "after the last header, with an impression": (f"FINAL REPORT\n HISTORY: Cough.\n \n COMPARISON: ___\n \n {F}\n \n IMPRESSION: {I}\n", F, I),
 "a heading of its view": (f"FINAL REPORT\n HISTORY: Cough.\n \n CHEST, PA AND LATERAL VIEWS: {F}\n \n IMPRESSION: {I}\n", F, I),
 "a view within the findings": ("FINDINGS: \n CHEST, TWO VIEWS: The heart is large.\n\nIMPRESSION: " + I, "CHEST, TWO VIEWS: The heart is large.", I),
 "organs within the findings": (f"FINDINGS:\nHeart: Large.\nLUNGS: Clear.\nIMPRESSION: {I}", "Heart: Large. LUNGS: Clear.", I),
 "only headers": ("FINAL REPORT\n EXAMINATION: CHEST\n \n INDICATION: Cough. Fever.\n \n COMPARISON: None.\n", "", ""),
 "several paragraphs": (f"FINDINGS:\nThe heart is large.\n\nNo effusion.\n\nIMPRESSION:\n1. One.\n2. Two.", F, "1. One. 2. Two."),
 "a recommendation": (f"FINDINGS: {F}\n\nIMPRESSION: {I}\n\nRECOMMENDATION(S): CT in 3 months.", F, I),
 "a notification": (f"FINDINGS: {F}\n\nIMPRESSION: {I}\n\nNOTIFICATION: Dr. ___ was called at 9:12 AM.", F, I),
 "an addendum at the end": (f"FINDINGS: {F}\n\nIMPRESSION: {I}\n\nADDENDUM: There is a nodule.", F, f"{I} There is a nodule."),
 "an addendum to findings only": (f"FINDINGS: {F}\n\nADDENDUM\nThere is a nodule.", f"{F} There is a nodule.", ""),
 "an addendum without headings": (f"INDICATION: Cough.\n\n{F}\n\nADDENDUM: There is a nodule.", f"{F} There is a nodule.", ""),
 "an addendum that stands first": (f"FINAL ADDENDUM\n ADDENDUM  There is a nodule.\n______________________________\n FINAL REPORT\n INDICATION: Cough.\n\n FINDINGS: {F}\n\n IMPRESSION: {I}", F, f"{I} There is a nodule."),
 "an addendum with sections": (f"FINDINGS: {F}\n\nIMPRESSION: {I}\n\nADDENDUM:\nFINDINGS: A nodule.\nIMPRESSION: Nodule.", f"{F} A nodule.", f"{I} Nodule."),
 "two addenda": (f"IMPRESSION: {I}\n\nADDENDUM #1: One.\n\nADDENDUM #2: Two.", "", f"{I} One. Two."),
 "only a wet read": ("FINAL REPORT\n INDICATION: Cough.\n \n WET READ: ___ ___ 9:09 PM\n  No acute process.\n", "No acute process.", ""),
 "a wet read before": (f"WET READ: ___ ___ 9:09 PM\n  No acute process.\n______________________________\n FINAL REPORT\n FINDINGS: {F}\n\n IMPRESSION: {I}", F, I),
 "a wet read before a text": (f"WET READ: ___ ___ 9:09 PM\n  No acute process.\n______________________________\n FINAL REPORT\n {F}", F, ""),
 "as in CheXpert Plus": (f"NARRATIVE:\nRADIOGRAPHIC EXAMINATION OF THE CHEST: 1/1/2001 \nCLINICAL HISTORY: <AGE> years old, chest pain\nFINDINGS:\n{F}\nIMPRESSION:\n1. {I}\nACCESSION NUMBER:\n12ABC\nThis report has been anonymized. All dates are offset.", F, f"1. {I}"),
 "the end is marked": (f"FINDINGS: {F}\nIMPRESSION:\n{I}\nEND OF IMPRESSION:\nsigned", F, I),
 "all in capitals": ("FINDINGS: THE HEART IS LARGE.\nIMPRESSION: CARDIOMEGALY.", "THE HEART IS LARGE.", "CARDIOMEGALY."),
 "words that are no headings": ("FINDINGS: The impression is that of a large heart.\nFindings are stable since the last study.\nIMPRESSION: " + I, "The impression is that of a large heart. Findings are stable since the last study.", I),
 "capitals that are no headings": ("FINDINGS: Large.\nFINDINGS ARE STABLE.\nIMPRESSION: " + I, "Large. FINDINGS ARE STABLE.", I),
 "two findings": ("FINDINGS: One.\nIMPRESSION: A.\nFINDINGS: Two.\nIMPRESSION: B.", "One. Two.", "A. B."),
 "blanks of its own": (f"FINDINGS:   The  heart\n   is large.   No effusion. \n\n", F, ""),
 "nothing": ("", "", ""),
 "blank": (" \n \n", "", ""),
}


@pytest.mark.parametrize("text, findings, impression", KINDS.values(), ids=KINDS)
def test_sections(text, findings, impression): assert report_sections(text) == dict(findings=findings, impression=impression)


SPELLINGS = dict(findings=["FINDINGS", "Findings", "findings", "FINDING", "FINIDNGS"], impression=["IMPRESSION", "Impression", "impression", "CONCLUSION", "Conclusions", "IMPRESSON"],
                 other=["INDICATION", "Clinical history", "TECHNIQUE", "COMPARISON", "REASON FOR EXAM", "RECOMMENDATION(S)"])
BODIES = dict(findings=["The heart is large.", "Lungs are clear.\n No effusion."], impression=["Cardiomegaly.", "1. Edema.\n2. No change since ___."], other=["None.", "Cough, 3 days // pneumonia?"])

@quick
@given(st.lists(st.sampled_from(sorted(SPELLINGS)).flatmap(lambda kind: st.tuples(st.just(kind), st.sampled_from(SPELLINGS[kind]), st.sampled_from(BODIES[kind]))), min_size=1, max_size=6),
       st.sampled_from([":", ": ", " : ", ":  \n ", ":\n \n ", ";\t"]), st.sampled_from(["\n", "\n \n ", "\n\n"]), st.sampled_from(["", "                       FINAL REPORT\n "]), st.sampled_from(["\n", "\r\n"]))
def test_any_order_and_spelling(parts, colon, between, head, newline):
    "Each body comes into its section, in the order of the report, and no heading and no other body does."
    written = (head + between.join(f"{name}{colon}{body}" for _, name, body in parts)).replace("\n", newline)
    expected = {kind: " ".join(" ".join(body.split()) for k, _, body in parts if k == kind) for kind in ("findings", "impression")}
    assert report_sections(written) == expected


@quick
@given(st.text(max_size=200))
def test_any_text_has_sections(text):
    found = report_sections(text)
    assert set(found) == {"findings", "impression"} and all(" ".join(x.split()) == x for x in found.values())


# MIMIC-CXR

def test_the_miniature_of_mimic():
    studies, noticed, said = read(MIMIC)
    images, split, labels = (pd.read_csv(MIMIC/f"mimic-cxr-2.0.0-{name}.csv.gz", dtype=str, keep_default_na=False) for name in ("metadata", "split", "chexpert"))
    side = images["ViewCodeSequence_CodeMeaning"].eq("lateral")
    frontal, lateral = ({study: list(own["dicom_id"]) for study, own in images[chosen].groupby("study_id")} for chosen in (~side, side))
    table = studies.to_pandas().set_index("study_id")
    assert (len(table), table["patient_id"].nunique(), noticed, said) == (images["study_id"].nunique(), images["subject_id"].nunique(), {}, "none") == (24, 12, {}, "none")
    for view, expected in dict(frontal=frontal, lateral=lateral).items():
        assert {study: [Path(cell["path"]).stem] for study, cell in table[view].dropna().items()} == expected
    assert table["split"].to_dict() == split.replace(dict(split={"validate": "val"})).set_index("study_id")["split"].to_dict()
    assert table["patient_id"].to_dict() == images.set_index("study_id")["subject_id"].to_dict()
    for row in labels.to_dict("records"):
        for column, own in dict(labels="1.0", uncertain="-1.0", denied="0.0").items():
            assert set(table[column][row["study_id"]]) == {named_finding(name) for name, value in row.items() if value == own} - {""}
    for study, patient in table["patient_id"].items():
        report = " ".join((MIMIC/f"files/p{patient[:2]}/p{patient}/s{study}.txt").read_text().split())
        assert table["text"][study] in report and not re.search("FINDINGS|IMPRESSION|COMPARISON|WET READ|[0-9] PM", table["text"][study])


@pytest.mark.parametrize("source", [MIMIC, CASES/"r2gen_mimic"], ids=["mimic", "r2gen"])
def test_the_official_split(source):
    "Every study keeps its part, and no patient is in two."
    studies, *_ = read(source)
    split = known_split("official", source_path(str(source)), studies)
    assert split == dict(zip(studies["study_id"], studies["split"]))
    patients = known_patients(only_known(studies, split, {}), split)
    assert all(patients.values()) and sum(map(len, patients.values())) == len(set(studies["patient_id"])) == 12
    cfg = DataConfig(source=str(source), split="official")
    assert unlike_asked(patients, studies, cfg) == []
    assert unlike_asked(dict(train=patients["test"], val=patients["val"], test=patients["train"]), studies, cfg) == ["split official"]


def mimic_folder(folder, reports=True, ending=".jpg", metadata=True):
    "Two patients with a study of two frontals and a lateral each."
    rows = [f"{i}{k},1000000{i},5{i},{view},{code}" for i in (1, 2) for k, view, code in (("a", "", "postero-anterior"), ("b", "PA", ""), ("c", "LL", "lateral"))]
    for row in rows:
        image, subject, study = row.split(",")[:3]
        draw(folder/f"files/p10/p{subject}/s{study}/{image}{ending}")
        if reports: (folder/f"files/p10/p{subject}/s{study}.txt").write_text(f"FINDINGS: Report {study}.\n")
    if metadata: (folder/"mimic-cxr-2.1.0-metadata.csv").write_text("\n".join(["dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning", *rows]))
    return folder


@pytest.mark.parametrize("place", ["in the folder", "unpacked beside", "in a folder of its own", "an archive", "an archive beside", "MIMIC-CXR beside"])
def test_where_the_reports_of_mimic_lie(tmp_path, place):
    folder = mimic_folder(tmp_path/"physionet/mimic-cxr-jpg/2.1.0", place == "in the folder")
    home = {"unpacked beside": folder/"mimic-cxr-reports/files", "in a folder of its own": folder/"reports", "MIMIC-CXR beside": tmp_path/"physionet/mimic-cxr/2.1.0/files"}.get(place)
    for i in (1, 2) if home else ():
        (home/f"p10/p1000000{i}").mkdir(parents=True)
        (home/f"p10/p1000000{i}/s5{i}.txt").write_text(f"FINDINGS: Report 5{i}.\n")
    if "archive" in place:
        with zipfile.ZipFile((folder.parent if "beside" in place else folder)/"mimic-cxr-reports.zip", "w") as archive:
            for i in (1, 2): archive.writestr(f"files/p10/p1000000{i}/s5{i}.txt", f"FINDINGS: Report 5{i}.")
    studies, noticed, _ = read(folder)
    assert studies["text"][:] == ["Report 51.", "Report 52."]
    assert noticed == {f"{i}b": "a further frontal image of its study" for i in (1, 2)}
    assert [Path(cell["path"]).stem for cell in studies.to_pandas()["frontal"]] == ["1a", "2a"]


def test_reports_that_are_not_there(tmp_path):
    folder = mimic_folder(tmp_path, reports=False)
    with pytest.raises(ValueError, match="put mimic-cxr-reports.zip of MIMIC-CXR into this folder, or give --data.text none"): read(folder)
    studies, *_ = read(folder, text="none")
    assert (studies["text"][:], views(studies)) == (["", ""], [[True]*2]*2)


def test_mimic_is_found_without_a_walk(tmp_path, monkeypatch):
    mimic_folder(tmp_path/"data/mimic")
    def walk(*_, **__): raise AssertionError("the whole tree was walked")
    monkeypatch.setattr(os, "walk", walk)
    for source in (tmp_path/"data/mimic", tmp_path/"data", tmp_path/"data/mimic/mimic-cxr-2.1.0-metadata.csv"): assert read(source)[0]["study_id"][:] == ["51", "52"]


def test_pictures_of_mimic_elsewhere(tmp_path):
    folder = mimic_folder(tmp_path/"tables")
    small = mimic_folder(tmp_path/"small", False, ".png", False)
    shutil.rmtree(small/"files/p10/p10000002")
    studies, noticed, _ = read(folder, images=str(small))
    assert studies["study_id"][:] == ["51"] and noticed["52"] == "no image" and noticed["2c"] == "the image file is not there"


def test_mimic_as_dicom(tmp_path):
    "MIMIC-CXR alone has a list of its records and no table of views: the headers tell them."
    pydicom = pytest.importorskip("pydicom")
    rows = ["subject_id,study_id,dicom_id,path"]
    for image, view in (("a", "LL"), ("b", "AP")):
        head = pydicom.Dataset()
        head.file_meta = pydicom.dataset.FileMetaDataset()
        head.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        head.file_meta.MediaStorageSOPClassUID = head.file_meta.MediaStorageSOPInstanceUID = "1.2"
        head.ViewPosition = view
        path = tmp_path/f"files/p10/p10000001/s51/{image}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        head.save_as(path, enforce_file_format=True)
        rows.append(f"10000001,51,{image},files/p10/p10000001/s51/{image}.dcm")
    (tmp_path/"files/p10/p10000001/s51.txt").write_text("IMPRESSION: Normal.")
    (tmp_path/"cxr-record-list.csv").write_text("\n".join(rows))
    studies, noticed, _ = read(tmp_path)
    assert (studies["text"][:], views(studies), noticed) == (["Normal."], [[True], [True]], {})
    assert Path(studies.to_pandas()["lateral"][0]["path"]).stem == "a"


# CheXpert Plus

def test_the_miniature_of_chexpert_plus():
    studies, noticed, said = read(PLUS)
    images = pd.read_csv(PLUS/"df_chexpert_plus_240401.csv", dtype=str, keep_default_na=False)
    study = images["path_to_image"].str.extract(r"(patient\d+/study\d+)")[0]
    table = studies.to_pandas().set_index("study_id")
    assert (len(table), table["patient_id"].nunique(), noticed, said) == (study.nunique(), images["deid_patient_id"].nunique(), {}, "none") == (18, 12, {}, "none")
    for view in ("frontal", "lateral"):
        assert sum(map(bool, table[view])) == images["frontal_lateral"].eq(view.title()).sum() == 18
        assert all(f"{key}/" in cell["path"] and view in cell["path"] for key, cell in table[view].items())
    expected = dict(zip(study, images["section_findings"].where(images["section_findings"] != "", images["section_impression"])))
    assert table["text"].to_dict() == {key: " ".join(text.split()) for key, text in expected.items()}
    with pytest.raises(ValueError, match="none is in val, test"): known_split("official", PLUS, studies)


@pytest.mark.parametrize("name", ["report_fixed.json", "chexbert_labels/impression_fixed.json"])
def test_labels_of_chexpert_plus(tmp_path, name):
    head = "path_to_image,frontal_lateral,deid_patient_id,report,section_findings,section_impression,split\n"
    (tmp_path/"df_chexpert_plus_240401.csv").write_text(head + "".join(f"{part}/patient{i}/study1/view1_frontal.jpg,Frontal,patient{i},IMPRESSION: Report {i}.,,,{part}\n" for i, part in enumerate(("train", "valid"))))
    for i, part in enumerate(("train", "valid")): draw(tmp_path/f"PNG/{part}/patient{i}/study1/view1_frontal.png")
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_text(json.dumps({"path_to_image": "valid/patient1/study1/view1_frontal.jpg", "Lung Opacity": 1.0, "Edema": -1.0, "Fracture": 0.0, "Pneumonia": None}) + "\n")
    studies, *_ = read(tmp_path)
    assert {column: studies[column][:] for column in ("text", "labels", "uncertain", "denied", "split")} == dict(text=["Report 0.", "Report 1."], labels=[[], ["opacity"]], uncertain=[[], ["edema"]], denied=[[], ["fracture"]], split=["train", "val"])


# A hospital's export

def test_the_export_in_the_material():
    folder = CASES/"dicom_export/Röntgen Thorax 2024"
    pydicom = pytest.importorskip("pydicom")
    studies, noticed, said = read(folder)
    heads = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted((folder/"DICOM").iterdir())]
    reports = pd.read_csv(folder/"Befunde.csv", sep=";", encoding="cp1252", dtype=str).set_index("Anforderungs-Nr.")["Befund"]
    table = studies.to_pandas().set_index("study_id")
    lateral = {str(h.AccessionNumber) for h in heads if h.ViewPosition not in ("PA", "AP")}
    assert noticed == {} and table["text"].to_dict() == reports[reports.index.isin(table.index)].to_dict()
    assert table["patient_id"].to_dict() == {str(h.AccessionNumber): str(h.PatientID) for h in heads}
    assert (table["frontal"].notna().sum(), set(table.index[table["lateral"].notna()])) == (len({h.AccessionNumber for h in heads}), lateral)
    assert "matched by Anforderungs-Nr. (40 of 40 rows). Taken: Befund for findings, Anforderungs-Nr. for study_id" in said


EXPORTS = {"UIDs": ("uid,Befund\n1.2.0047,Large heart.\n1.2.0048,Clear.\n", "Befund for findings, uid for study_id"), "a number of the report": ("Befund-ID,Nr,Befund\n1,47,Large heart.\n2,48,Clear.\n", "Befund for findings, Nr for study_id"),
           "two sections": ("Findings;Impression;Accession\nLarge heart.;Cardiomegaly.;0047\nClear.;Normal.;0048\n", "Findings for findings, Impression for impression, Accession for study_id"),
           "names that say nothing": ("a\tb\tc\n0047\tChest\tLarge heart.\n0048\tChest\tClear.\n", "c for text, a for study_id"), "patients": ("patient,words\nP0047,Large heart.\nP0048,Clear.\n", "words for text, patient for study_id"),
           "a column twice": ("Nr,Befund,Nr \n0047,Large heart.,x\n0048,Clear.,y\n", "Befund for findings, Nr for study_id")}

@pytest.mark.parametrize("content, taken", EXPORTS.values(), ids=EXPORTS)
@pytest.mark.parametrize("named", [False, True], ids=["the folder", "the list"])
def test_exports(tmp_path, content, taken, named):
    write_export(tmp_path)
    (tmp_path/"list.csv").write_text(content)
    studies, noticed, said = read(tmp_path/"list.csv" if named else tmp_path)
    assert (studies["text"][:], studies["patient_id"][:], views(studies), noticed) == (["Large heart.", "Clear."], ["P0047", "P0048"], [[True, True], [True, False]], {})
    assert f"(2 of 2 rows). Taken: {taken}; --data.columns names others" in said


def test_an_export_in_excel(tmp_path):
    pytest.importorskip("openpyxl")
    write_export(tmp_path)
    pd.DataFrame(dict(Nr=[47, 48], Befund=["Large heart.", "Clear."])).to_excel(tmp_path/"list.xlsx", index=False)
    assert read(tmp_path)[0]["text"][:] == ["Large heart.", "Clear."]


def test_an_export_whose_headers_say_little(tmp_path):
    "The view from the series, the patient from the list."
    write_export(tmp_path, PatientID="", ViewPosition="", SeriesDescription="Thorax seitlich")
    (tmp_path/"list.csv").write_text("Nr,Patient,Befund\n0047,a,Large heart.\n0048,a,Clear.\n")
    studies, noticed, said = read(tmp_path)
    assert (studies["patient_id"][:], views(studies)) == (["a", "a"], [[False, False], [True, True]]) and "Patient for patient_id" in said
    assert noticed == {"DICOM/IM000001": "a further lateral image of its study"}


@pytest.mark.parametrize("content", ["Nr,Befund\n99,Clear.\n", "Befund\nClear.\n", "Nr,Befund\n"], ids=["other numbers", "no number", "no rows"])
def test_an_export_that_does_not_fit(tmp_path, content):
    write_export(tmp_path)
    (tmp_path/"list.csv").write_text(content)
    with pytest.raises(ValueError, match="no column of .* has the AccessionNumber, StudyInstanceUID or PatientID of the DICOM files; it has: "): read(tmp_path)


# A table of one's own

def own_table(folder, rows, **columns):
    for i in range(rows): draw(folder/f"{i}.png", 20*i)
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(rows)], view="PA") | columns).to_csv(folder/"metadata.csv", index=False)
    return folder


def test_a_table_with_a_split(tmp_path):
    folder = own_table(tmp_path, 6, patient_id=list("aabcde"), text="Clear.", split=["train", "Train", "valid", "Validation", "test", ""])
    studies, *_ = read(folder)
    assert studies["split"][:] == ["train", "train", "val", "val", "test", ""]
    split, skipped = known_split("official", folder, studies), {}
    assert known_patients(only_known(studies, split, skipped), split) == dict(train=["a"], val=["b", "c"], test=["d"])
    assert skipped == {"5.png": "not in the split that was asked for"}


def test_patients_in_two_official_parts(tmp_path):
    studies, *_ = read(own_table(tmp_path, 5, patient_id=list("aabbc"), text="Clear.", split=["test", "train", "test", "val", "test"]))
    with pytest.warns(UserWarning, match="^2 patients are in several official parts"): split = known_split("official", tmp_path, studies)
    assert known_patients(studies, split) == dict(train=["a"], val=["b"], test=["c"])


def test_a_source_without_a_split(tmp_path):
    studies, *_ = read(own_table(tmp_path, 2, patient_id=list("ab"), text="Clear."))
    assert "split" not in studies.column_names
    with pytest.raises(ValueError, match="of 2 studies 0 have a part.*Give the table a column split, or give --data.split patient"): known_split("official", tmp_path, studies)


def test_a_table_without_reports(tmp_path):
    "Labels alone are enough where no text is asked for."
    folder = own_table(tmp_path, 2, patient_id=list("ab"), labels=["Effusion|Infiltration", "No Finding"])
    with pytest.raises(ValueError, match="needs file_name and one of findings"): read(folder)
    studies, noticed, _ = read(folder, text="none")
    assert (studies["text"][:], studies["labels"][:], noticed) == (["", ""], [["pleural effusion", "consolidation"], []], {})
    mapped, *_ = read(folder, text="none", columns=dict(image="file_name", patient_id="patient_id", labels="labels"))
    assert mapped["labels"][:] == studies["labels"][:]
    with pytest.raises(ValueError, match="must map text"): read(folder, columns=dict(image="file_name", labels="labels"))


# One vocabulary

CHEXPERT = {"Atelectasis": "atelectasis", "Cardiomegaly": "cardiomegaly", "Consolidation": "consolidation", "Edema": "edema", "Enlarged Cardiomediastinum": "enlarged cardiomediastinum", "Fracture": "fracture",
            "Lung Lesion": "nodule", "Lung Opacity": "opacity", "No Finding": "", "Pleural Effusion": "pleural effusion", "Pleural Other": "pleural other", "Pneumonia": "consolidation", "Pneumothorax": "pneumothorax", "Support Devices": "implant"}
NIH = {"Effusion": "pleural effusion", "Infiltration": "consolidation", "Mass": "nodule", "Nodule": "nodule", "Emphysema": "emphysema", "Fibrosis": "interstitial markings", "Pleural_Thickening": "pleural thickening", "Hernia": "hiatal hernia"}
MESH = {"Pulmonary Atelectasis/base": "atelectasis", "Pulmonary Edema": "edema", "Pleural Effusion/small": "pleural effusion", "Opacity/lung": "opacity", "Fractures, Bone/ribs": "fracture", "Hernia, Hiatal": "hiatal hernia", "Medical Device": "implant", "Density/lung": "opacity"}

@pytest.mark.parametrize("name, ours", {**CHEXPERT, **NIH}.items())
def test_names_of_other_collections(name, ours):
    assert named_finding(name) == ours and listed_findings([name]) == ([ours] if ours else [])
    if ours in FINDINGS: assert mesh_labels(name.replace("_", " ")) == [ours]

@pytest.mark.parametrize("term, ours", MESH.items())
def test_terms_of_mesh(term, ours): assert mesh_labels(term) == [ours]

def test_uncertain_and_denied_are_not_missing():
    found = graded_findings({"Edema": ["1.0", "-1.0", "0.0", ""], "Fracture": [1, -1, 0, None]})
    assert found == dict(labels=[["edema", "fracture"], [], [], []], uncertain=[[], ["edema", "fracture"], [], []], denied=[[], [], ["edema", "fracture"], []])
