"""Input that could be read wrongly without a word. A row each: what it is, and what must come out: the drawn chest, or a message."""
import io, os, signal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image, TiffImagePlugin

from radiology_clip_mini.base import pictures, settings as options
from radiology_clip_mini.lab import report, runs
from radiology_clip_mini.base.collections import load_studies, read_studies
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.lab.runs import load_data
from radiology_clip_mini.lab.evaluate import plain_cell
from radiology_clip_mini.models import image_encoder
from radiology_clip_mini.base.phantom import make_phantoms

SIZE = 96
CHEST = np.asarray(make_phantoms(1, seed=3, image_size=SIZE)[0]["frontal"].convert("L"))
DEEP = CHEST.astype(np.float64)


def likeness(picture): return np.corrcoef(picture.ravel().astype(float), DEEP.ravel())[0, 1]


def saved(values, form, **options):
    "An array or image as the bytes of a file."
    im = values if isinstance(values, Image.Image) else Image.fromarray(values)
    im.save(out := io.BytesIO(), form, **options)
    return out.getvalue()


def tagged(values, **tags):
    "A TIFF with further tags."
    ifd = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items(): ifd[dict(smallest=340, largest=341)[name]] = value
    return saved(values, "TIFF", tiffinfo=ifd)


def white_is_zero():
    "A 16-bit TIFF whose low values are bright: PIL writes tag 262 as 1, so that byte is changed."
    whole = bytearray(saved((4095 - DEEP*16).astype(np.uint16), "TIFF"))
    at = whole.index((262).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    whole[at + 8] = 0
    return bytes(whole)


def turned(orientation, form):
    "The chest as a camera held another way stores it."
    back = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    im = Image.fromarray(CHEST)
    exif = im.getexif()
    exif[0x0112] = orientation
    return saved(im.transpose(back[orientation]) if orientation > 1 else im, form, exif=exif, **(dict(quality=95) if form == "JPEG" else {}))


def dicom(values, photometric="MONOCHROME2", signed=0, **fields):
    pydicom = pytest.importorskip("pydicom")
    head = pydicom.Dataset()
    head.file_meta = pydicom.dataset.FileMetaDataset()
    head.file_meta.TransferSyntaxUID, head.SOPClassUID, head.SOPInstanceUID = pydicom.uid.ExplicitVRLittleEndian, "1.2", "1.2.3"
    head.file_meta.MediaStorageSOPClassUID, head.file_meta.MediaStorageSOPInstanceUID = "1.2", "1.2.3"
    head.Rows = head.Columns = SIZE
    head.SamplesPerPixel, head.PhotometricInterpretation, head.BitsAllocated, head.BitsStored, head.HighBit, head.PixelRepresentation = 1, photometric, 16, 16, 15, signed
    head.PixelData = values.round().astype(np.int16 if signed else np.uint16).tobytes()
    for name, value in fields.items(): setattr(head, name, value)
    head.save_as(out := io.BytesIO(), enforce_file_format=True)
    return out.getvalue()


def padded(values, filler):
    "The outer eight rows are padding."
    values = values.copy()
    values[:8] = filler
    return values


def with_nan(values):
    values = values.astype(np.float32)
    values[0, :5], values[1, :5] = np.nan, np.inf
    return values


grey, rgb = Image.fromarray(CHEST), Image.fromarray(CHEST).convert("RGB")
see_through = Image.merge("LA", [grey, Image.new("L", grey.size, 255)])
PICTURES = {
    **{f"{form}, 8 bits": lambda form=form, options=options: saved(grey, form, **options) for form, options in
       dict(PNG={}, TIFF={}, JPEG=dict(quality=95), GIF={}, WEBP=dict(quality=95), BMP={}, JPEG2000={}, PPM={}, TGA={}, ICO=dict(sizes=[grey.size])).items()},
    **{f"{form}, colours": lambda form=form, options=options: saved(rgb, form, **options) for form, options in
       dict(PNG={}, TIFF={}, JPEG=dict(quality=95), WEBP=dict(quality=95), BMP={}, JPEG2000={}, PPM={}, TGA={}).items()},
    **{f"{form}, transparency": lambda form=form: saved(see_through.convert("RGBA"), form) for form in ("PNG", "TIFF", "BMP", "JPEG2000", "TGA")},
    **{f"TIFF of mode {mode}": lambda mode=mode: saved(rgb.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr")},
    "TIFF of mode LAB": lambda: saved(Image.merge("LAB", [grey, Image.new("L", grey.size, 128), Image.new("L", grey.size, 128)]), "TIFF"),
    "JPEG of mode CMYK": lambda: saved(rgb.convert("CMYK"), "JPEG", quality=95),
    "PNG with a palette": lambda: saved(grey.convert("P"), "PNG"),
    "TIFF with a palette": lambda: saved(grey.convert("P"), "TIFF"),
    "PNG of grey and alpha": lambda: saved(see_through, "PNG"),
    **{f"{form}, {bits} bits in 16": lambda form=form, bits=bits: saved((DEEP * (2**bits - 1) / 255).astype(np.uint16), form)
       for form in ("PNG", "TIFF", "PPM", "JPEG2000") for bits in (10, 12, 14, 16)},
    "PNG, 16 bits, a narrow range far up": lambda: saved((40_000 + DEEP*4).astype(np.uint16), "PNG"),
    "PNG, 16 bits, values below 256": lambda: saved(DEEP.astype(np.uint16), "PNG"),
    "TIFF, signed": lambda: saved((DEEP*12 - 1024).astype(np.int32), "TIFF"),
    "TIFF, 32 bits": lambda: saved((DEEP*2**20).astype(np.int32), "TIFF"),
    "TIFF, big endian": lambda: saved(Image.fromarray((DEEP*16).astype(">u2")), "TIFF"),
    **{f"TIFF, floats up to {top}": lambda top=top: saved((DEEP / 255 * top).astype(np.float32), "TIFF") for top in (1, 255, 4080)},
    "TIFF, floats, some of them none": lambda: saved(with_nan(DEEP), "TIFF"),
    "TIFF, declared range": lambda: tagged((DEEP*16 + 500*(DEEP > 250)).astype(np.uint16), smallest=0, largest=4095),
    "TIFF, white is zero": white_is_zero,
    **{f"JPEG, orientation {o}": lambda o=o: turned(o, "JPEG") for o in range(1, 9)},
    "PNG, orientation 6": lambda: turned(6, "PNG"),
    "WEBP, orientation 3": lambda: turned(3, "WEBP"),
    "DICOM": lambda: dicom(DEEP*16),
    "DICOM, signed, rescaled": lambda: dicom(DEEP*8 - 1024, signed=1, RescaleSlope=2, RescaleIntercept=-100),
    "DICOM, MONOCHROME1": lambda: dicom(4095 - DEEP*16, "MONOCHROME1"),
    "DICOM, MONOCHROME1 and INVERSE": lambda: dicom(4095 - DEEP*16, "MONOCHROME1", PresentationLUTShape="INVERSE"),
    "DICOM, INVERSE": lambda: dicom(4095 - DEEP*16, PresentationLUTShape="INVERSE"),
    "DICOM, several windows": lambda: dicom(DEEP*16, WindowCenter=[2040, 100], WindowWidth=[4080, 10]),
}

@pytest.mark.parametrize("write", PICTURES.values(), ids=PICTURES)
def test_every_picture_is_the_chest(write):
    found, note = pictures.read_grey(dict(bytes=write()), SIZE)
    assert note == "" and likeness(found) >= .99 and found.max() > 200


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(form=st.sampled_from(["PNG", "TIFF", "PPM", "DICOM"]), bits=st.integers(9, 16), start=st.integers(0, 40_000), inverse=st.booleans())
def test_any_range_of_values(form, bits, start, inverse):
    "However many bits, from wherever on; a DICOM also the other way round."
    top = min(2**bits - 1, 65_535 - start)
    values = start + DEEP / 255 * top
    if form == "DICOM": whole = dicom(start + top - DEEP / 255 * top, "MONOCHROME1") if inverse else dicom(values)
    else: whole = saved(values.astype(np.uint16), form)
    assert likeness(pictures.read_grey(dict(bytes=whole), SIZE)[0]) >= .99


@pytest.mark.parametrize("padding, fields", [(65_535, {}), (0, {}), (64_000, dict(PixelPaddingRangeLimit=65_535))], ids=["high", "low", "range"])
def test_padding_is_black_and_stretches_nothing(padding, fields):
    found, _ = pictures.read_grey(dict(bytes=dicom(padded(DEEP*16 + 1, padding), PixelPaddingValue=padding, **fields)), SIZE)
    assert found[:8].max() == 0 and np.corrcoef(found[8:].ravel(), DEEP[8:].ravel())[0, 1] >= .99 and found.max() > 200


@pytest.mark.parametrize("form", ["TIFF", "GIF", "WEBP", "PNG"])
def test_further_pages_are_named(form):
    "What is written as several pages is read as the first of them."
    whole = saved(grey, form, save_all=True, append_images=[grey.transpose(Image.Transpose.ROTATE_180)], **(dict(quality=95) if form == "WEBP" else {}))
    found, note = pictures.read_grey(dict(bytes=whole), SIZE)
    assert note == "only the first of 2 pages was read" and likeness(found) >= .99


REFUSED = {"no value at all": (lambda: saved(np.full((16, 16), np.nan, np.float32), "TIFF"), "no pixel has a value"),
           "a few pixels": (lambda: saved(CHEST[:5], "PNG"), "only 96 × 5 pixels"), "no picture": (lambda: b"text", "UnidentifiedImageError"),
           "cut off": (lambda: saved(grey, "PNG")[:200], "OSError")}

@pytest.mark.parametrize("write, message", REFUSED.values(), ids=REFUSED)
def test_what_is_no_picture_says_so(write, message): assert pictures._try_read(dict(bytes=write()), SIZE) == (None, message)


# Tables

HEAD = "file_name,study_id,patient_id,view,text\n"

@pytest.fixture
def folder(tmp_path):
    "A folder of pictures, and how to write its table."
    for name in "abcd": grey.save(tmp_path/f"{name}.png")
    return tmp_path


def read(folder, lines, head=HEAD, encoding="utf-8"):
    (folder/"metadata.csv").write_bytes((head + lines).encode(encoding))
    return read_studies(DataConfig(source=str(folder)))


VIEWS = {"": 0, "PA": 0, "AP": 0, "AP supine": 0, "AP ERECT": 0, "Portable": 0, "LORDOTIC": 0, "LPO": 0, "RAO": 0, "LLD": 0, "Left lateral decubitus": 0,
         "LAT": 1, "LL": 1, "RL": 1, "L": 1, "lateral": 1, "Left Lateral": 1, " ll ": 1}

@pytest.mark.parametrize("view, lateral", VIEWS.items(), ids=[repr(v) for v in VIEWS])
def test_every_view_is_known(folder, view, lateral):
    studies, noticed = read(folder, f"a.png,1,1,{view},Clear.\n")
    assert (studies[0]["lateral"] is not None) == bool(lateral) and noticed == {}


TABLES = {
    "spaces around ids": ("a.png,1, 7,PA,Clear.\nb.png,2,7 ,PA,Clear.\n", ["7", "7"], ["Clear."]*2, {}),
    "the text in the second row": ("a.png,1,7,PA,\nb.png,1,7,L,Clear.\n", ["7"], ["Clear."], {}),
    "one text twice": ("a.png,1,7,PA,Clear.\nb.png,1,7,L,Clear.\n", ["7"], ["Clear."], {}),
    "two texts": ("a.png,1,7,PA,Clear.\nb.png,1,7,L,Large heart.\n", ["7"], ["Clear."], {"1 text": "a further text of its study, which differs"}),
    "a file twice with two texts": ("a.png,1,7,PA,Clear.\na.png,1,7,PA,Large heart.\n", ["7"], ["Clear."], {"1 text": "a further text of its study, which differs"}),
    "two frontal images": ("a.png,1,7,PA,Clear.\nb.png,1,7,AP,Clear.\n", ["7"], ["Clear."], {"b.png": "a further frontal image of its study"}),
    "an unknown view": ("a.png,1,7,swimmer,Clear.\n", ["7"], ["Clear."], {"a.png": "the view 'swimmer' is unknown; taken as frontal"}),
    "a comma in quotes": ('a.png,1,7,PA,"Clear, small heart."\n', ["7"], ["Clear, small heart."], {}),
    "a line break in quotes": ('a.png,1,7,PA,"Clear.\nSmall."\n', ["7"], ["Clear.\nSmall."], {}),
    "Windows line ends": ("a.png,1,7,PA,Clear.\r\n", ["7"], ["Clear."], {}),
    "a line that is too short": ("a.png,1,7,PA\nb.png,2,8,PA,Clear.\n", ["8"], ["Clear."], {"1": "no text"}),
    "NA as a patient": ("a.png,1,NA,PA,None\n", ["NA"], ["None"], {}),
    "an id with leading zeros": ("a.png,1,007,PA,Clear.\n", ["007"], ["Clear."], {}),
    "an absolute path inside": ("{folder}/a.png,1,7,PA,Clear.\n", ["7"], ["Clear."], {}),
}

@pytest.mark.parametrize("lines, patients, texts, noticed", TABLES.values(), ids=TABLES)
def test_every_table_is_read_as_meant(folder, lines, patients, texts, noticed):
    studies, found = read(folder, lines.replace("{folder}", str(folder)))
    assert (studies["patient_id"][:], studies["text"][:], found) == (patients, texts, noticed)


def test_a_table_with_a_byte_order_mark(folder): assert read(folder, "a.png,1,7,PA,Clear.\n", encoding="utf-8-sig")[0]["text"][:] == ["Clear."]


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(patient=st.from_regex(r"[A-Za-z0-9_.-]{1,8}", fullmatch=True), left=st.sampled_from(["", " ", "\t", "  "]), right=st.sampled_from(["", " ", "\t"]),
       view=st.sampled_from(sorted(VIEWS)), upper=st.booleans(), empty=st.integers(0, 2))
def test_any_way_to_write_a_row(folder, patient, left, right, view, upper, empty):
    "Spaces around an id, a view in any case, and empty texts before the one that counts change nothing."
    rows = "".join(f"{name}.png,1,{left}{patient}{right},{view},\n" for name in "bcd"[:empty])
    studies, _ = read(folder, f"{rows}a.png,1,{patient},{view.upper() if upper else view},Clear.\n")
    assert (studies["patient_id"][:], studies["text"][:]) == ([patient], ["Clear."])
    assert (studies[0]["lateral"] is not None) == bool(VIEWS[view])


WRONG = {
    "an empty patient": ("a.png,1,,PA,Clear.\nb.png,2,7,PA,Clear.\n", HEAD, "has no patient_id in 1 of 2 rows: 1"),
    "an empty study": ("a.png,1,7,PA,Clear.\nb.png, ,7,PA,Clear.\n", HEAD, "has no study_id in 1 of 2 rows: 2"),
    "a comma without quotes": ("a.png,1,7,PA,Clear, small heart.\n", HEAD, "could not be read as a CSV"),
    "a comma without quotes, later": ("a.png,1,7,PA,Clear.\nb.png,2,7,PA,Clear, small.\n", HEAD, "could not be read as a CSV"),
    "a path upwards": ("../a.png,1,7,PA,Clear.\n", HEAD, "leads out of"),
    "a path upwards inside": ("x/../../a.png,1,7,PA,Clear.\n", HEAD, "leads out of"),
    "an absolute path": ("/etc/a.png,1,7,PA,Clear.\n", HEAD, "leads out of"),
    "one study of two patients": ("a.png,1,7,PA,Clear.\nb.png,1,8,L,Clear.\n", HEAD, "has more than one patient_id"),
}

@pytest.mark.parametrize("lines, head, message", WRONG.values(), ids=WRONG)
def test_every_wrong_table_says_so(folder, lines, head, message):
    with pytest.raises(ValueError, match=message): read(folder, lines, head)


@pytest.mark.parametrize("patients, expected", [([7., 8.], ["7", "8"]), ([7, 8], ["7", "8"]), ([" 7", "8 "], ["7", "8"]), ([7., None], None), ([None, "a"], None), (["", "a"], None)])
def test_ids_of_mapped_tables(folder, patients, expected):
    path, columns = folder/"t.parquet", dict(text="words", patient_id="who", frontal="picture")
    pd.DataFrame(dict(words=["Clear."]*2, who=patients, picture=[saved(grey, "PNG")]*2)).to_parquet(path)
    def found(): return read_studies(DataConfig(source=str(path), columns=columns, cache_dir=str(folder/"cache")))[0]["patient_id"][:]
    if expected: assert found() == expected
    else:
        with pytest.raises(ValueError, match="has no patient_id in 1 of 2 rows"): found()


# Collections

def test_odd_pictures_are_listed_and_kept(folder):
    "One of thirty chests is inverted, one upside down, one blank, one has two pages."
    chests = [np.asarray(p.convert("L")) for p in make_phantoms(30, seed=5, image_size=64)["frontal"]]
    chests[2], chests[3], chests[4], chests[5] = 255 - chests[2], chests[3][::-1], np.full_like(chests[4], 9), 255 - chests[5]
    for i, chest in enumerate(chests): Image.fromarray(chest).save(folder/f"{i}.tif", **(dict(save_all=True, append_images=[grey.copy()]) if i == 5 else {}))
    (folder/"metadata.csv").write_text(HEAD + "".join(f"{i}.tif,{i},{i},PA,Text {i}.\n" for i in range(30)))
    data = load_data(DataConfig(source=str(folder), image_size=64, cache_dir=str(folder/"cache")))
    assert len(data.studies) == 30 and data.skipped == {
        "2 frontal": "frontal image: looks inverted", "3 frontal": "frontal image: looks upside down", "4 frontal": "frontal image: nearly one grey",
        "5 frontal": "frontal image: only the first of 2 pages was read; looks inverted"}
    titles = {ax.get_title() for ax in report.contact_sheet(data).axes} - {""}
    assert titles == {"2: looks inverted", "3: looks upside down", "4: nearly one grey", "5: only the first of 2 pages was read; looks inverted"}


def test_one_picture_under_two_patients(folder):
    "Whatever the seed, the two stay together, and they are named."
    chests = make_phantoms(30, seed=5, image_size=64)["frontal"]
    for i, chest in enumerate(chests): chest.save(folder/f"{i}.png")
    chests[0].save(folder/"29.png")
    (folder/"metadata.csv").write_text(HEAD + "".join(f"{i}.png,{i},p{i},PA,Text {i}.\n" for i in range(30)))
    for seed in range(12):
        data = load_data(DataConfig(source=str(folder), image_size=64, cache_dir=str(folder/"cache"), val_fraction=.3, test_fraction=.3), seed)
        assert any({"p0", "p29"} <= set(ids) for ids in data.splits.values())
        assert data.skipped == {"patients p0, p29": "a picture in common; kept in one part of a new split"}


# Settings and paths

ALIASES = "a: &a [1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)]*9)}]\n" for i in range(12))
SETTINGS = { # a message of jsonargparse names the setting and its bounds
    "a seed below 0": ("--seed=-1", '"seed".*-1 does not conform to restriction v>=0 and v<4294967296'),
    "no number": ("--data.val_fraction=.nan", '"data.val_fraction"'), "a share of 1": ("--data.test_fraction=1", '"data.test_fraction".*1 does not conform to restriction v>0 and v<1'),
    "a trillion epochs": ("--train.epochs=1000000000000", '"train.epochs".*restriction v>=1 and v<=100000'),
    "endless decay": ("--train.weight_decay=inf", '"train.weight_decay".*restriction v>=0 and v<inf'),
    "no rate": ("--train.lr=nan", '"train.lr".*restriction v>0 and v<inf'), "no patient": ("--data.max_patients=0", '"data.max_patients"'),
    "a batch of one": ("--train.batch_size=1", '"train.batch_size".*restriction v>=2'), "a tiny picture": ("--data.image_size=31", '"data.image_size".*restriction v>=32'),
}

@pytest.mark.parametrize("option, message", SETTINGS.values(), ids=SETTINGS)
def test_every_wrong_setting_says_so(option, message):
    with pytest.raises(ValueError, match=f"(?s){message}"): options.load_config("demo", option)


@pytest.mark.parametrize("option", [option for option, _ in SETTINGS.values()])
def test_a_config_made_in_python_is_refused_as_well(option):
    name, value = option.removeprefix("--").split("=")
    config, group, field = options.Config(), *name.rpartition(".")[::2]
    setattr(getattr(config, group) if group else config, field, float(value.replace(".n", "n")))
    with pytest.raises(ValueError, match=f'"{name}"'): options.check_config(config)


def test_a_config_of_nested_aliases_ends_at_once(tmp_path):
    (tmp_path/"bomb.yaml").write_text(ALIASES)
    with pytest.raises(ValueError, match="holds an alias"): options.load_config(str(tmp_path/"bomb.yaml"))


def test_the_home_folder_is_meant(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = options.load_config("demo", "--paths.results_dir=~/r", "--data.split_file=~/s.json")
    assert (config.paths.results_dir, config.data.split_file) == (f"{tmp_path}/r", f"{tmp_path}/s.json")


@pytest.mark.parametrize("where", ["/tmp/elsewhere/best", "..", "../..", "../secret"])
def test_the_latest_model_lies_in_the_results(tmp_path, where):
    (tmp_path/"results").mkdir()
    (tmp_path/"secret").mkdir()
    (tmp_path/"results/latest.txt").write_text(where)
    with pytest.raises(FileNotFoundError): runs.find_ckpt(results_dir=tmp_path/"results")


def test_no_formula_in_a_table(): assert [plain_cell(x) for x in ("=1+1", "+1", "-1", "@x", "s1", 2.)] == ["'=1+1", "'+1", "'-1", "'@x", "s1", 2.]


# Pipes and folders where a file should be: nobody waits for them

PLACES = {
    "the source": lambda f: (f/"pipe", lambda: read_studies(DataConfig(source=str(f/"pipe")))),
    "a parquet file": lambda f: (f/"t.parquet", lambda: read_studies(DataConfig(source=str(f/"t.parquet")))),
    "metadata.csv": lambda f: (f/"metadata.csv", lambda: read_studies(DataConfig(source=str(f)))),
    "metadata.jsonl": lambda f: (f/"metadata.jsonl", lambda: read_studies(DataConfig(source=str(f)))),
    "annotation.json": lambda f: (f/"annotation.json", lambda: read_studies(DataConfig(source=str(f)))),
    "a report": lambda f: (f/"1.xml", lambda: read_studies(DataConfig(source=str(f)))),
    "a config": lambda f: (f/"c.yaml", lambda: options.load_config(str(f/"c.yaml"))),
    "a split file": lambda f: (f/"s.json", lambda: load_data(DataConfig(source="phantom", phantoms=6, image_size=32, cache_dir=str(f), split_file=str(f/"s.json")))),
    "weights": lambda f: (f/"w.pth", lambda: image_encoder("resnet18", str(f/"w.pth"))),
    "latest.txt": lambda f: (f/"latest.txt", lambda: runs.find_ckpt(results_dir=f)),
    "run.json": lambda f: (f/"run.json", lambda: runs.read_run(f)),
}

@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("kind", ["pipe", "folder"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_nobody_waits_for_a_pipe(tmp_path, place, kind):
    path, call = place(tmp_path)
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    def too_long(*_): raise AssertionError("waited for five seconds")
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(5)
    try:
        with pytest.raises((ValueError, OSError)): call()
    finally: signal.alarm(0)


def test_a_pipe_among_the_pictures(folder):
    "It counts as an image that is not there, in a folder and in a table."
    os.mkfifo(folder/"e.png")
    studies, noticed = read(folder, "a.png,1,1,PA,Clear.\ne.png,2,2,PA,Clear.\n")
    assert studies["study_id"][:] == ["1"] and noticed == {"e.png": "the image file is not there", "2": "no image"}
    assert pictures._try_read(dict(path=str(folder/"e.png"), bytes=None), 32) == (None, "FileNotFoundError")
    assert pictures._identity(dict(path=str(folder/"e.png"), bytes=None)).endswith("missing")
