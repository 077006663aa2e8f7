"""Tables, names, ids, views, labels and texts as people really hold them. A row each: what it is, and what must come out: the right value, or a message."""
import base64, gzip, io, json, os, warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image as Picture, List, Value
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from dicoms import write_export
import radiology_clip_mini.data as data_module
from radiology_clip_mini.base.collections import read_studies
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.base.splits import leak_report, load_splits
from radiology_clip_mini.lab.runs import load_data
from radiology_clip_mini.base.findings import listed_findings
from radiology_clip_mini.base.sources import _first_views, known_view, pick_text
from radiology_clip_mini.base.splits import plain_text, text_ids

quick = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def folder(tmp_path):
    "Four pictures, each of another grey."
    for name, grey in zip("abcd", (10, 60, 120, 180)): Image.new("L", (16, 16), grey).save(tmp_path/f"{name}.png")
    return tmp_path


def read(source, **more):
    "The studies of a source, what was noticed, and all warnings."
    with pytest.warns(UserWarning) as warned:
        warnings.warn("none")
        studies, noticed = read_studies(DataConfig(source=str(source), cache_dir=str(Path(source).parent/"cache_of_tests"), **more))
    return studies, noticed, " | ".join(str(w.message) for w in warned)


def greys(studies, view="frontal"): return [x and x.convert("L").getpixel((0, 0)) for x in studies[view]]


# F1: texts in every script, and signs that are all the difference

DIFFERENT = [("Сердце не увеличено.", "Сердце увеличено."), ("心影不大。", "心影增大。"), ("心拡大なし", "心拡大あり"), ("심장 비대 없음", "심장 비대"), ("القلب طبيعي", "القلب متضخم"),
             ("Η καρδιά είναι φυσιολογική", "Η καρδιά είναι μεγάλη"), ("הלב תקין", "הלב מוגדל"), ("हृदय सामान्य है", "हृदय सामान्य हैं"), ("หัวใจไม่โต", "หัวใจโต"), ("कि", "की"),
             ("Größe", "Grüße"), ("Pneumothorax +", "Pneumothorax -"), ("Pneumothorax (+)", "Pneumothorax (-)"), ("CTR > 0.5", "CTR < 0.5"), ("CTR ≥ 0.5", "CTR > 0.5"), ("Δ -3", "Δ 3"),
             ("Erguss +, Pneu -", "Erguss -, Pneu +"), ("Pneu +/-", "Pneu +"), ("↑", "↓"), ("Erguss -.", "Erguss."), ("1 ± 2", "1 + 2"), ("Pneu −", "Pneu +"), ("Pneumonia?", "Pneumonia.")]
SAME = [("Clear lungs.", "clear  lungs"), ("follow-up", "follow up"), ("Clear!", "clear"), ("lungs - clear", "lungs clear"), ("- No effusion", "No effusion"), ("Mü", "Mu\u0308"), ("STRASSE", "straße"),
        ("x\u200bray", "xray"), ("１２ cm", "12 cm"), ("ﬁbrosis", "fibrosis"), ("50%", "50 %"), ("СЕРДЦЕ", "сердце"), ("a – b", "a-b")]

@pytest.mark.parametrize("pair", DIFFERENT)
def test_different_texts(pair): assert text_ids(list(pair)).tolist() == [0, 1]

@pytest.mark.parametrize("pair", SAME)
def test_same_texts(pair): assert text_ids(list(pair)).tolist() == [0, 0]

@quick
@given(st.text(st.characters(categories=["L", "N", "M"]), min_size=1, max_size=8), st.text(st.characters(categories=["L", "N", "M"]), min_size=1, max_size=8))
def test_letters_of_every_script_count(a, b):
    assert (plain_text(a) == plain_text(b)) == (plain_text(a + ".") == plain_text(" " + b))
    assert plain_text(a) == plain_text(plain_text(a)) != ""


# F4: words for what is missing

SECTIONS = {"nan": (dict(findings="nan", impression="No disease."), "No disease."), "NaN": (dict(findings="NaN", impression="A."), "A."), "None beside text": (dict(findings="None", impression="A."), "A."),
            "N/A": (dict(findings="N/A", impression="A."), "A."), "<NA>": (dict(findings="<NA>", report="A."), "A."), "null": (dict(findings=" null ", impression="A."), "A."), "a dash": (dict(findings="-", impression="A."), "A."),
            "only nan": (dict(findings="nan", impression="nan"), ""), "None alone is meant": (dict(text="None"), "None"), "nan as a word in a text": (dict(text="nan fluid"), "nan fluid")}

@pytest.mark.parametrize("record, expected", SECTIONS.values(), ids=SECTIONS)
def test_missing_sections(record, expected): assert pick_text(record) == expected == pick_text(record, "both").removesuffix(".") + "."*expected.endswith(".")


def test_missing_words_in_a_csv(folder):
    (folder/"metadata.csv").write_text("file_name,study_id,patient_id,view,findings,impression,labels\na.png,1,1,PA,nan,No acute disease.,nan\nb.png,2,2,PA,nan,NaN,edema\n")
    studies, noticed, _ = read(folder)
    assert (studies["text"][:], studies["labels"][:], noticed) == (["No acute disease."], [[]], {"2": "no text"})


def test_patients_who_are_nan(folder):
    (folder/"metadata.csv").write_text("file_name,patient_id,view,text\na.png,nan,PA,Clear.\nb.png,nan,PA,Large.\n")
    with pytest.raises(ValueError, match="has no patient_id in 2 of 2 rows"): read(folder)


def test_many_patients_called_none_are_said(folder):
    (folder/"metadata.csv").write_text("file_name,study_id,patient_id,view,text\na.png,1,None,PA,Clear.\nb.png,2,None,PA,Large.\n")
    studies, _, warned = read(folder)
    assert studies["patient_id"][:] == ["None", "None"] and "has the patient_id 'None' in 2 rows" in warned


# F5: views

SIDES = {"LATERAL ERECT": "lateral", "Lateral upright": "lateral", "lat supine": "lateral", "Lateral (portable)": "lateral", "LLAT": "lateral", "RLAT": "lateral", "LA": "lateral", "seitlich": "lateral", "profil": "lateral",
         "de profil": "lateral", "XTABLE LATERAL": "lateral", "erect lat.": "lateral", "боковая": "lateral", "AP LLD": "frontal", "P.A.": "frontal", "AP semi-erect": "frontal", "de face": "frontal", "Left lateral decubitus": "frontal",
         "postero-anterior": "frontal", "PA erect": "frontal", "": "", "swimmer": "", "12": ""}

@pytest.mark.parametrize("cell, side", SIDES.items(), ids=[repr(s) for s in SIDES])
def test_sides(cell, side):
    noticed = {}
    views = _first_views([("x.png", cell, "X")], noticed)
    assert known_view(cell) == side and views[side or "frontal"] == "X"
    assert bool(noticed) == (not side and cell != "")

@quick
@given(st.sampled_from([s for s in SIDES if SIDES[s] == "lateral"]), st.sampled_from(["erect", "supine", "upright", "portable", "standing", ""]), st.booleans(), st.sampled_from([" ", "_", "-", ", "]))
def test_posture_never_outvotes(side, posture, first, between):
    assert known_view(f"{posture}{between}{side}" if first else f"{side}{between}{posture}".upper()) == "lateral"


@pytest.mark.parametrize("empty", ["", "other"])
def test_a_known_view_comes_first(folder, empty):
    (folder/"metadata.csv").write_text(f"file_name,study_id,patient_id,view,text\na.png,1,1,{empty},Clear.\nb.png,1,1,PA,Clear.\nc.png,1,1,LATERAL,Clear.\n")
    studies, noticed, _ = read(folder)
    assert (greys(studies), greys(studies, "lateral"), noticed["a.png"]) == ([60], [120], "a further frontal image of its study")


@pytest.mark.parametrize("column", ["ViewPosition", "Projection", "frontal_lateral", "View Position"])
def test_other_names_of_the_view(folder, column):
    (folder/"metadata.csv").write_text(f"file_name,study_id,patient_id,{column},text\na.png,1,1,LATERAL,Clear.\nb.png,1,1,PA,Clear.\n")
    studies, _, warned = read(folder)
    assert (greys(studies), greys(studies, "lateral")) == ([60], [10]) and f"{column} is taken for it" in warned


def test_no_view_at_all_is_said(folder):
    (folder/"metadata.csv").write_text("file_name,patient_id,text\na.png,1,Clear.\n")
    assert "has no column view: all images are frontal" in read(folder)[2]


# F6: labels

LABELS = {"semicolons": "Edema;Nodule", "bars": "Edema|Nodule", "a list of Python": "['Edema', 'Nodule']", "a list of JSON": '["Edema", "Nodule"]', "a list of NumPy": "['Edema' 'Nodule']", "a list": ["Edema", "Nodule"],
          "with no finding": "No Finding|Edema|Nodule", "with nan": ["Edema", float("nan"), "Nodule", None]}

@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels(labels): assert listed_findings(labels) == ["edema", "nodule"]

@pytest.mark.parametrize("labels", ["[]", "nan", "", [], None, "No Finding", "normal"], ids=repr)
def test_no_label(labels): assert listed_findings(labels) == []


def test_labels_of_json_lines(folder):
    rows = [dict(file_name="a.png", patient_id=1, view="PA", text="Edema.", labels=["Cardiomegaly", "edema"]), dict(file_name="b.png", patient_id=2, view="PA", text="Clear.", labels=[])]
    (folder/"metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert read(folder)[0]["labels"][:] == [["cardiomegaly", "edema"], []]


@pytest.mark.parametrize("several", [True, False])
def test_labels_that_are_classes(folder, several):
    names = ClassLabel(names=["No Finding", "Edema", "Nodule"])
    features = Features(dict(words=Value("string"), who=Value("string"), x=Picture(), tags=List(names) if several else names))
    rows = dict(words=["Clear.", "Bad."], who=["1", "2"], x=[str(folder/"a.png"), str(folder/"b.png")], tags=[[0], [1, 2]] if several else [0, 1])
    Dataset.from_dict(rows, features=features).to_parquet(folder/"t.parquet")
    studies, *_ = read(folder/"t.parquet", columns=dict(text="words", patient_id="who", frontal="x", labels="tags"))
    assert studies["labels"][:] == [[], ["edema", "nodule"] if several else ["edema"]]


def test_labels_that_are_numbers(folder):
    pd.DataFrame(dict(words=["Clear."], x=["a.png"], tags=[[1, 2]])).to_parquet(folder/"t.parquet")
    with pytest.raises(ValueError, match="the labels are numbers"): read(folder/"t.parquet", columns=dict(text="words", frontal="x", labels="tags"))


def test_labels_of_several_rows(folder):
    (folder/"metadata.csv").write_text("file_name,study_id,patient_id,view,text,labels\na.png,1,1,PA,Bad.,edema\nb.png,1,1,L,Bad.,nodule\n")
    studies, noticed, _ = read(folder)
    assert (studies["labels"][:], noticed) == ([["edema", "nodule"]], {"1 labels": "its rows have different labels; all of them count"})


# F8, F22, F23: names

NAMES = {"the same": ("x.png", "x.png"), "no ending": ("x", "x.png"), "another ending": ("x.dcm", "x.png"), "capitals": ("x.png", "x.PNG"), "capitals in the table": ("X.JPG", "x.jpg"), "DICOM": ("x", "x.DCM"), "dicom": ("x.png", "x.dicom"),
         "tiff": ("x", "x.tif"), "webp": ("x.png", "x.webp"), "a backslash": ("sub\\x.png", "sub/x.png"), "blanks": (" x.png ", "x.png"), "composed": ("Mü.png", "Mu\u0308.png"), "decomposed": ("Mu\u0308.png", "Mü.png"), "dots": ("1.2.840.1", "1.2.840.1.png"),
         "dots and an ending": ("1.2.840.1.dcm", "1.2.840.1.png"), "no ending on the disk": ("IM0001.dcm", "IM0001"), "a folder in capitals": ("SUB/x.png", "sub/x.png"), "time": ("2024-01-01 10.30", "2024-01-01 10.30.jpg")}

@pytest.mark.parametrize("named, there", NAMES.values(), ids=NAMES)
def test_names(tmp_path, named, there):
    (tmp_path/there).parent.mkdir(exist_ok=True)
    Image.new("L", (16, 16), 77).save(tmp_path/there, "PNG")
    pd.DataFrame(dict(file_name=[named], patient_id=1, view="PA", text="Clear.")).to_csv(tmp_path/"metadata.csv", index=False)
    studies, noticed, _ = read(tmp_path)
    assert greys(studies) == [77] and noticed == {}


@pytest.mark.parametrize("named, there", {"a name that begins so": ("1.2.840.1", "1.2.840.png"), "too long": ("x"*300, "x.png"), "a report for a name": ("The heart is large. "*20, "x.png"), "either of two": ("X.png", ("x.PNG", "x.png")),
                                          "empty": ("", "x.png"), "another stem": ("scan.v2", "scan.png")}.values())
def test_names_that_are_not_there(tmp_path, named, there):
    for name in [there] if isinstance(there, str) else there: Image.new("L", (16, 16), 77).save(tmp_path/name)
    if len(list(tmp_path.iterdir())) < (1 if isinstance(there, str) else 2): pytest.skip("names differ in case only, which this disk cannot hold")
    Image.new("L", (16, 16), 9).save(tmp_path/"good.png")
    pd.DataFrame(dict(file_name=[named, "good.png"], study_id=[1, 2], patient_id=1, view="PA", text="Clear.")).to_csv(tmp_path/"metadata.csv", index=False)
    studies, noticed, _ = read(tmp_path)
    assert greys(studies) == [9] and noticed["1"] == "no image"


def test_three_names_with_dots(tmp_path):
    "Three names that begin alike are three pictures, or none."
    for i in range(4): Image.new("L", (16, 16), 50*i).save(tmp_path/("1.2.840.png" if i == 0 else f"1.2.840.{i}.png"))
    pd.DataFrame(dict(file_name=[f"1.2.840.{i}" for i in (1, 2, 3)], patient_id=1, view="PA", text="Clear.")).to_csv(tmp_path/"metadata.csv", index=False)
    assert greys(read(tmp_path)[0]) == [50, 100, 150]


@quick
@given(stem=st.text(st.characters(categories=["L", "N"], include_characters=".-_ "), min_size=1, max_size=12).filter(lambda s: s.strip(". ") == s and "/" not in s),
       ending=st.sampled_from(["png", "jpg", "dcm", "tif"]), upper=st.booleans(), known=st.booleans(), blank=st.booleans())
def test_any_name(tmp_path, stem, ending, upper, known, blank):
    "A name is found with its ending in any case, with another or none, whatever letters and dots it has."
    place = tmp_path/f"{abs(hash((stem, ending, upper)))}"
    place.mkdir(exist_ok=True)
    try: Image.new("L", (16, 16), 77).save(place/f"{stem}.{ending.upper() if upper else ending}", "PNG")
    except (OSError, UnicodeEncodeError): return
    pd.DataFrame(dict(file_name=[(f"{stem}.png" if known else stem) + " "*blank], patient_id=1, view="PA", text="Clear.")).to_csv(place/"metadata.csv", index=False)
    assert greys(read(place)[0]) == [77]


# F12: ids

IDS = {"floats": (["7.0", "7"], ["7", "7"]), "zeros": (["007", "7"], ["007", "7"]), "invisible": (["7\u200b", "\ufeff7"], ["7", "7"]), "blanks": (["\u00a07 ", " 7"], ["7", "7"]), "two forms": (["Mu\u0308", "Mü"], ["Mü", "Mü"]), "wide": (["７", "7"], ["7", "7"]),
       "a UID": (["1.2.840.0", "1.2.840"], ["1.2.840.0", "1.2.840"]), "an e": (["12e5", "1e5"], ["12e5", "1e5"])}

@pytest.mark.parametrize("written, expected", IDS.values(), ids=IDS)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_ids(folder, form, written, expected):
    table = pd.DataFrame(dict(file_name=["a.png", "b.png"], study_id=[1, 2], patient_id=written, view="PA", text="Clear."))
    if form == "csv": table.to_csv(folder/"metadata.csv", index=False)
    else: table.to_json(folder/"metadata.jsonl", orient="records", lines=True)
    assert read(folder)[0]["patient_id"][:] == expected


@pytest.mark.parametrize("column", ["study_id", "patient_id"])
@pytest.mark.parametrize("number", ["5.04143E+07", "5,04143E+07", "5E+07", "1.67683e+15"])
def test_rounded_ids(folder, column, number):
    row = dict(file_name="a.png", study_id="1", patient_id="1", view="PA", text="Clear.") | {column: number}
    pd.DataFrame([row]).to_csv(folder/"metadata.csv", index=False)
    with pytest.raises(ValueError, match="that a spreadsheet has rounded"): read(folder)


def test_large_numbers_of_a_table(folder):
    pd.DataFrame(dict(words=["Clear."], x=["a.png"], who=[1.2345678901234567e19])).to_parquet(folder/"t.parquet")
    with pytest.raises(ValueError, match="that a spreadsheet has rounded"): read(folder/"t.parquet", columns=dict(text="words", frontal="x", patient_id="who"))


def test_ids_in_two_cases(tmp_path):
    "They stay in one part of the split, and are named."
    for i in range(12): Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)).save(tmp_path/f"{i}.png")
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(12)], study_id=range(12), patient_id=["P1", "p1", *range(2, 12)], view="PA", text="Clear.")).to_csv(tmp_path/"metadata.csv", index=False)
    for seed in range(5):
        found = load_data(DataConfig(source=str(tmp_path), image_size=32, cache_dir=str(tmp_path/"cache"), val_fraction=.3, test_fraction=.3), seed)
        assert any({"P1", "p1"} <= set(ids) for ids in found.splits.values()) and found.skipped["patients P1, p1"].startswith("ids that differ in case only")


# F13, F45, F48, F50: texts that are not what they seem

@pytest.mark.parametrize("line", ["b.png,2,2,PA,Clear.", "b.png", "new17.jpg,2,2,PA,Clear."])
def test_a_quote_too_many(folder, line):
    (folder/"metadata.csv").write_text(f'file_name,study_id,patient_id,view,text\na.png,1,1,PA,"Large heart.\n{line}\nc.png,3,3,PA,Three."\nd.png,4,4,PA,"Heart, lungs, pleura, bones,\nand the rest, all, of, it, normal."\nb.png,5,5,PA,Five.\n')
    noticed = read(folder)[1]
    assert noticed == {"row 1": "its text holds what looks like further rows; is there a quote too many?"}


@pytest.mark.parametrize("text", ["HerzgrÃ¶ÃŸe normal", "kein ErguÃŸ", "clear &amp; normal", "CTR &lt; 0.5", "a\x00b", "a\x07b", "itâ€™s clear", "broken \ufffd"])
def test_odd_texts_are_listed(folder, text):
    (folder/"metadata.jsonl").write_text(json.dumps(dict(file_name="a.png", patient_id=1, view="PA", text=text)))
    studies, noticed, _ = read(folder)
    assert studies["text"][:] == [text.strip()] and "as after a wrong encoding or conversion" in noticed["a.png text"]


@pytest.mark.parametrize("text", ["Größe normal; kein Erguß – „unauffällig“", "A & B; C < D", "Zone é à ç, NÃO, São", "心影不大", "a\tb\nc"])
def test_sound_texts_are_not(folder, text):
    (folder/"metadata.jsonl").write_text(json.dumps(dict(file_name="a.png", patient_id=1, view="PA", text=text)))
    assert read(folder)[1] == {}


def test_one_file_with_two_views(folder):
    (folder/"metadata.csv").write_text("file_name,study_id,patient_id,view,text\na.png,1,1,PA,Clear.\na.png,1,1,L,Clear.\n")
    studies, noticed, _ = read(folder)
    assert (greys(studies), greys(studies, "lateral"), noticed) == ([10], [None], {"a.png": "named with two views; the first counts"})


@pytest.mark.parametrize("text", [["a", "b"], dict(findings="a")])
def test_a_text_that_is_none(folder, text):
    (folder/"metadata.jsonl").write_text(json.dumps(dict(file_name="a.png", patient_id=1, view="PA", text=text)))
    with pytest.raises(ValueError, match="has a text that is a (list|dict) in row 1"): read(folder)


# F28 to F31: files as other programs write them

CSV = "file_name,study_id,patient_id,view,text\na.png,1,1,PA,\"Größe normal, kein Erguß.\"\nb.png,2,2,PA,Clear; large.\n"
SAME_WITH = pd.read_csv(io.StringIO(CSV), dtype=str).to_csv
WAYS = {"UTF-8": CSV.encode(), "BOM": CSV.encode("utf-8-sig"), "UTF-16": CSV.encode("utf-16"), "UTF-16 without a mark": CSV.encode("utf-16-le"), "cp1252": CSV.encode("cp1252"), "Mac": CSV.encode("mac_roman"), "DOS": CSV.encode("cp850"),
        "packed": gzip.compress(CSV.encode()), "semicolons": SAME_WITH(sep=";", index=False).encode(), "tabs": SAME_WITH(sep="\t", index=False).encode("utf-16"),
        "sep=;": b"sep=;\r\n" + SAME_WITH(sep=";", index=False).encode("cp1252"), "quoted header": SAME_WITH(sep=";", index=False, quoting=1).encode()}

@pytest.mark.parametrize("content", WAYS.values(), ids=WAYS)
def test_a_csv_from_anywhere(folder, content):
    (folder/"metadata.csv").write_bytes(content)
    studies, noticed, _ = read(folder)
    assert (studies["text"][:], noticed) == (["Größe normal, kein Erguß.", "Clear; large."], {})


SCRIPTS = {"cp1251": "Сердце не увеличено, выпот слева. Очаговых теней нет.", "koi8-r": "Сердце не увеличено, выпот слева.", "cp1250": "Serce niepowiększone, płyn w lewej jamie opłucnowej.", "gb18030": "心影不大,左侧胸腔积液,右下肺野实变影。",
           "shift_jis": "心拡大なし、左胸水を認める、右下肺野に浸潤影。", "euc-kr": "심장 비대 없음, 좌측 흉수, 우하엽 경화.", "cp1253": "Η καρδιά είναι φυσιολογική, αριστερή συλλογή."}

@pytest.mark.parametrize("encoding, text", SCRIPTS.items())
def test_code_pages(folder, encoding, text):
    (folder/"metadata.csv").write_bytes(f'file_name;patient_id;view;text\na.png;1;PA;"{text}"\n'.encode(encoding))
    studies, _, warned = read(folder)
    assert studies["text"][:] == [text] and "is not UTF-8; it is read as" in warned


@quick
@given(separator=st.sampled_from(",;\t|"), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]), first=st.booleans(), newline=st.sampled_from(["\n", "\r\n"]),
       text=st.text(st.characters(categories=["L", "N"], include_characters=" ,;|.-"), min_size=3, max_size=30).filter(lambda s: any(c.isalnum() for c in s)))
def test_any_separator_and_encoding(folder, separator, encoding, first, newline, text):
    cells = [["file_name", "patient_id", "view", "text"], ["a.png", "1", "PA", '"' + text + '"']]
    whole = newline.join([f"sep={separator}"]*first + [separator.join(line) for line in cells]) + newline
    (folder/"metadata.csv").write_bytes(whole.encode(encoding))
    try: found = read(folder)[0]["text"][:]
    except ValueError as e: assert "no usable study" in str(e) and pick_text(dict(text=text)) == "" ; return
    assert found == [text.strip()]


JSON = [dict(file_name="a.png", patient_id=1, view="PA", text="Größe."), dict(file_name="b.png", patient_id=2, view=None, text="Clear.")]
LINES = "\n".join(json.dumps(r, ensure_ascii=False) for r in JSON)
@pytest.mark.parametrize("content", [LINES.encode(), LINES.encode("utf-8-sig"), LINES.encode("utf-16"), json.dumps(JSON).encode(), json.dumps(JSON, indent=1).encode(), LINES.replace("\n", "\r\n\r\n").encode()],
                         ids=["lines", "BOM", "UTF-16", "an array", "an array of many lines", "blank lines"])
def test_json_from_anywhere(folder, content):
    (folder/"metadata.jsonl").write_bytes(content)
    studies, noticed, _ = read(folder)
    assert (studies["text"][:], studies["patient_id"][:], noticed) == (["Größe.", "Clear."], ["1", "2"], {})


# F26, F27, F38: any table by a mapping

MAPPING = dict(image="file", view="side", study_id="exam", patient_id="who", findings="seen", impression="meant")
ROWS = pd.DataFrame(dict(file=["a.png", "b.png", "c.png"], side=["PA", "LATERAL", "AP"], exam=["1", "1", "2"], who=["7", "7", "8"], seen=["Clear.", "Clear.", "nan"], meant=["Normal.", "Normal.", "Large heart."]))
WRITERS = {"csv": lambda t, p: t.to_csv(p, index=False), "tsv": lambda t, p: t.to_csv(p, index=False, sep="\t"), "jsonl": lambda t, p: t.to_json(p, orient="records", lines=True), "xlsx": lambda t, p: t.to_excel(p, index=False),
           "parquet": lambda t, p: t.to_parquet(p), "csv.gz": lambda t, p: t.to_csv(p, index=False)}

@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_row_for_each_image(folder, form, named):
    if form == "xlsx": pytest.importorskip("openpyxl")
    WRITERS[form](ROWS, folder/f"list.{form}")
    studies, noticed, _ = read(folder/f"list.{form}" if named == "file" else folder, columns=MAPPING)
    assert (studies["study_id"][:], studies["patient_id"][:], studies["text"][:], greys(studies), greys(studies, "lateral"), noticed) == (["1", "2"], ["7", "8"], ["Clear.", "Large heart."], [10, 120], [60, None], {})
    assert read(folder/f"list.{form}", columns=MAPPING, text="impression")[0]["text"][:] == ["Normal.", "Large heart."]


def cells_of(folder, kind):
    "A picture as a table may hold it."
    content = (folder/"a.png").read_bytes()
    return dict(bytes=content, name="a.png", absolute=str(folder/"a.png"), struct=dict(bytes=content, path=None), place=dict(bytes=None, path="a.png"), base64=base64.b64encode(content).decode())[kind]

@pytest.mark.parametrize("kind", ["bytes", "name", "absolute", "struct", "place", "base64"])
def test_pictures_of_a_table(folder, kind, monkeypatch):
    monkeypatch.chdir(folder.parent) # a name is looked up beside the file, wherever we are
    pd.DataFrame(dict(words=["Clear."], x=[cells_of(folder, kind)])).to_parquet(folder/"t.parquet")
    assert greys(read(folder/"t.parquet", columns=dict(text="words", frontal="x"))[0]) == [10]


@pytest.mark.parametrize("place", ["sub/t.parquet", "t.parquet", "data/train-0.parquet"])
@pytest.mark.parametrize("named", ["beside", "below the source"])
def test_names_beside_the_file_or_below_the_source(tmp_path, place, named):
    path = tmp_path/place
    path.parent.mkdir(exist_ok=True)
    pictures = (path.parent if named == "beside" else tmp_path)/"pictures"
    pictures.mkdir()
    Image.new("L", (16, 16), 33).save(pictures/"x.png")
    pd.DataFrame(dict(words=["Clear."], x=["pictures/x.png"])).to_parquet(path)
    assert greys(read(tmp_path, columns=dict(text="words", frontal="x"))[0]) == [33]


def test_pictures_that_come_later(folder):
    pd.DataFrame(dict(words=["Clear."], x=["late.png"])).to_parquet(folder/"t.parquet")
    mapping = dict(text="words", frontal="x")
    read(folder/"t.parquet", columns=mapping)
    Image.new("L", (16, 16), 44).save(folder/"late.png")
    assert greys(read(folder/"t.parquet", columns=mapping)[0]) == [44]


@pytest.mark.parametrize("views", [["PA", "LATERAL"], None])
def test_a_list_of_pictures(folder, views):
    features = Features(dict(words=Value("string"), x=List(Picture())) | (dict(side=List(Value("string"))) if views else {}))
    Dataset.from_dict(dict(words=["Clear."], x=[[str(folder/"a.png"), str(folder/"b.png")]]) | (dict(side=[views]) if views else {}), features=features).to_parquet(folder/"t.parquet")
    studies, noticed, _ = read(folder/"t.parquet", columns=dict(text="words", image="x") | (dict(view="side") if views else {}))
    assert (greys(studies), greys(studies, "lateral")) == ([10], [60 if views else None]) and bool(noticed) == (views is None)


def test_two_images_in_one_row(folder):
    ROWS.assign(second="b.png").iloc[:1].to_csv(folder/"list.csv", index=False)
    studies, *_ = read(folder/"list.csv", columns=dict(frontal="file", lateral="second", text="seen"))
    assert (greys(studies), greys(studies, "lateral")) == ([10], [60])


def test_several_tables_ask_which(folder):
    for name in ("one.csv", "two.csv"): ROWS.to_csv(folder/name, index=False)
    with pytest.raises(ValueError, match="holds 2 tables: give one of them as --data.source"): read(folder, columns=MAPPING)


def test_a_table_without_a_mapping_is_named(folder):
    ROWS.to_csv(folder/"list.csv", index=False)
    with pytest.raises(ValueError, match="to read list.csv, say what its columns are with --data.columns"): read(folder)
    ROWS.to_csv(folder/"metadata.csv", index=False)
    with pytest.raises(ValueError, match="needs file_name and one of .* --data.columns maps other names"): read(folder)


# F11, F17: datasets on the disk

def test_only_the_split_that_was_asked_for(folder):
    for i, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")): pd.DataFrame(dict(words=[f"{i}", f"{i}b"], x=["a.png"]*2, n=[f"{i}", f"{i}b"])).to_parquet(folder/f"{name}.parquet")
    mapping = dict(text="words", frontal="x", study_id="n")
    assert read(folder, columns=mapping)[0]["study_id"][:] == ["0", "0b", "1", "1b"]
    assert read(folder, columns=mapping, split_spec="test")[0]["study_id"][:] == ["2", "2b"]
    with pytest.raises(ValueError, match="validation"): read(folder, columns=mapping, split_spec="validation")


def test_nothing_is_written_beside_saved_data(folder):
    Dataset.from_dict(dict(words=["Clear."]*3, x=[str(folder/f"{n}.png") for n in "abc"])).cast_column("x", Picture()).save_to_disk(folder/"saved")
    before = sorted(p.name for p in (folder/"saved").rglob("*"))
    studies, *_ = read(folder/"saved", columns=dict(text="words", frontal="x"))
    assert greys(studies) == [10, 60, 120] and sorted(p.name for p in (folder/"saved").rglob("*")) == before


# F2, F36, F37: R2Gen's annotation of MIMIC-CXR

def annotated(folder, name="annotation.json", image=list):
    "12 subjects with two studies of two images each, an entry for each image; 9 subjects for training."
    parts = dict(train=[], val=[], test=[])
    for subject in range(12):
        for exam in range(2):
            for k in range(2):
                number = 100*subject + exam
                path = f"p{subject}/s{number}/{number}-{k}.jpg"
                (folder/"images"/path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.random.default_rng(10*number + k).integers(0, 255, (40, 40), np.uint8)).save(folder/"images"/path)
                parts["train" if subject < 8 else "val" if subject < 10 else "test"].append(dict(id=f"{number}-{k}", study_id=number, subject_id=1000 + subject, report=f"Report {number}.", image_path=image([path])))
    (folder/name).write_text(json.dumps(parts))

@pytest.mark.parametrize("name", ["annotation.json", "mimic_annotation.json"])
@pytest.mark.parametrize("split", ["patient", "r2gen"])
@pytest.mark.parametrize("image", [list, lambda paths: paths[0]], ids=["a list", "one path"])
def test_subjects_are_patients(tmp_path, name, split, image):
    annotated(tmp_path, name, image)
    with pytest.warns(UserWarning, match="does not name views"):
        found = load_data(DataConfig(source=str(tmp_path), split=split, views="both", image_size=32, cache_dir=str(tmp_path/"cache"), val_fraction=.2, test_fraction=.2))
    assert (len(found.studies), len(set(found.studies["patient_id"])), (found.view_ids >= 0).sum()) == (24, 12, 48)
    assert all(pair["patients"] == pair["texts"] == pair["images"] == 0 for pair in leak_report(found).values())


def test_the_annotation_in_the_material():
    cases = Path(__file__).parents[3]/"shared/cases/r2gen_mimic"
    if not cases.exists(): pytest.skip("no copy of the cases here")
    with pytest.warns(UserWarning, match="does not name views"): studies, noticed = read_studies(DataConfig(source=str(cases)))
    assert (len(studies), len(set(studies["patient_id"])), noticed) == (24, 12, {}) and all(studies.to_pandas()[view].notna().all() for view in ("frontal", "lateral"))

# A hospital's export: DICOM files without names, and a list

@pytest.mark.parametrize("column, written", {"accession numbers": ("nr", "{:04}"), "without zeros": ("nr", "{}"), "UIDs": ("nr", "1.2.{:04}")}.values())
def test_pictures_by_their_headers(tmp_path, column, written):
    write_export(tmp_path, ["0047", "0047", "0048"])
    (tmp_path/"Befunde.csv").write_bytes(("nr;Befund\n" + f"{written.format(47)};Größe normal.\n{written.format(48)};Erguß.\n").encode("cp1252"))
    studies, noticed, _ = read(tmp_path, columns=dict(study_id="nr", text="Befund"))
    table = studies.to_pandas()
    assert (studies["patient_id"][:], studies["text"][:], noticed) == (["P0047", "P0048"], ["Größe normal.", "Erguß."], {})
    assert (table["frontal"].notna().tolist(), table["lateral"].notna().tolist()) == ([True, True], [True, False])


def test_zeros_that_tell_two_examinations_apart(tmp_path):
    "Where 0047 and 047 are two, a list that says 47 means neither."
    write_export(tmp_path, ["0047", "048", "047"])
    (tmp_path/"list.csv").write_text("nr,Befund\n47,Clear.\n48,Large.\n")
    studies, noticed, _ = read(tmp_path, columns=dict(study_id="nr", text="Befund"))
    assert (studies["study_id"][:], noticed) == (["48"], {"47": "no image"})


def test_a_list_of_other_examinations(tmp_path):
    write_export(tmp_path, ["0047"])
    (tmp_path/"list.csv").write_text("nr,Befund\n99,Clear.\n")
    with pytest.raises(ValueError, match="no DICOM file in .* has an AccessionNumber or StudyInstanceUID that is a study_id"): read(tmp_path, columns=dict(study_id="nr", text="Befund"))


# F10, F24, F42: splits

PATIENTS = Dataset.from_dict(dict(patient_id=[f"{i}" for i in range(40)], text=[f"Text {i//2}." for i in range(40)], study_id=[f"{i}" for i in range(40)], labels=[[]]*40))
SPLIT = dict(train=[f"{i}" for i in range(30)], val=[f"{i}" for i in range(30, 35)], test=[f"{i}" for i in range(35, 40)])

@pytest.mark.parametrize("asked, said", {"a text split": (dict(split="text"), "split text"), "a larger test": (dict(test_fraction=.4), "test_fraction 0.4"), "a larger val": (dict(val_fraction=.4), "val_fraction 0.4"), "the same": (dict(test_fraction=.125), ""), "nothing": ({}, "")}.values())
def test_a_split_file_decides_and_says_so(tmp_path, asked, said):
    path = tmp_path/"s.json"
    path.write_text(json.dumps(SPLIT))
    with pytest.warns(UserWarning) as warned:
        warnings.warn("none")
        assert data_module.get_splits(PATIENTS, DataConfig(split_file=str(path), **asked)) == SPLIT
    messages = " ".join(str(w.message) for w in warned)
    assert (f"so {said} is not followed" in messages) if said else "not followed" not in messages


def test_an_official_split_may_name_more(tmp_path):
    path = tmp_path/"s.json"
    path.write_text(json.dumps(SPLIT | dict(train=[*SPLIT["train"], "x", "y"])))
    with pytest.warns(UserWarning, match="names 2 patients without a usable study here .x, y"): assert load_splits(PATIENTS, path) == SPLIT
    path.write_text(json.dumps(SPLIT | dict(train=SPLIT["train"][1:])))
    with pytest.raises(ValueError, match="was made for other data: of 40 patients here, it lacks 1 .0."): load_splits(PATIENTS, path)


@pytest.mark.parametrize("split", ["iu_xray", "r2gen"])
def test_a_known_split_of_other_data(tmp_path, split):
    (tmp_path/"annotation.json").write_text(json.dumps(dict(train=[dict(id="CXR1_IM-1", report="x", image_path=[])], val=[], test=[])))
    for i in range(6): Image.new("L", (40, 40), 40*i).save(tmp_path/f"{i}.png")
    pd.DataFrame(dict(file_name=[f"{i}.png" for i in range(6)], patient_id=[f"p{i}" for i in range(6)], view="PA", text="Clear.")).to_csv(tmp_path/"metadata.csv", index=False)
    with pytest.raises(ValueError, match="knows none of these 6 studies"): load_data(DataConfig(source=str(tmp_path), split=split, image_size=32, cache_dir=str(tmp_path/"cache")))


# F47, F49

def test_the_names_that_data_promises():
    names = {}
    exec("from radiology_clip_mini.data import *", names)
    assert {"DataConfig", "prepare_data", "StudyData"} <= set(names)


def test_a_table_on_top_needs_no_walk(folder, monkeypatch):
    (folder/"metadata.csv").write_text("file_name,patient_id,view,text\na.png,1,PA,Clear.\n")
    def walk(*_, **__): raise AssertionError("the whole tree was walked")
    monkeypatch.setattr(os, "walk", walk)
    assert greys(read(folder)[0]) == [10]


def test_chexpert_plus_maps():
    "Its list names JPEGs, its folder holds PNGs; a row is an image, and findings and impression are two columns."
    cases = Path(__file__).parents[3]/"shared/cases/large_collections/chexpert_plus"
    if not cases.exists(): pytest.skip("no copy of the cases here")
    mapping = dict(image="path_to_image", view="frontal_lateral", patient_id="deid_patient_id", findings="section_findings", impression="section_impression")
    studies, noticed = read_studies(DataConfig(source=str(cases), images=str(cases/"PNG"), columns=mapping))
    table = studies.to_pandas()
    assert (len(table), table["patient_id"].nunique(), table["frontal"].notna().sum(), table["lateral"].notna().sum(), noticed) == (36, 12, 18, 18, {})
