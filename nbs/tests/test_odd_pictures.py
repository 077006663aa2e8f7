"""Pictures that viewers show and a program easily reads wrongly. A row each: what is odd about it; the drawn chest must come out, or a message."""
import base64, io, zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from radiology_clip_mini.base import pictures
from radiology_clip_mini.base.collections import read_studies
from radiology_clip_mini.base.settings import DataConfig
from radiology_clip_mini.base.sources import read_folder
from radiology_clip_mini.base.splits import SPLITS
from radiology_clip_mini.data import gather_data
from test_odd_inputs import CHEST, DEEP, SIZE, dicom, grey, saved, tagged

pydicom = pytest.importorskip("pydicom")
CASES = Path(__file__).parents[3]/"shared/cases"
FLAT = np.zeros(CHEST.shape, bool)


def read(whole, size=SIZE): return pictures.read_grey(dict(bytes=whole), size)


def is_chest(found, odd=FLAT, chest=DEEP):
    "Where it is not odd, the picture is the chest, and it is bright enough."
    shown, meant = found[~odd].astype(float), chest[~odd]
    return np.corrcoef(shown, meant)[0, 1] > .95 and np.percentile(shown, 99) > 100 and shown.std() > 15


def stretched(values):
    "From the smallest to the largest value, as a picture with nothing odd."
    values = np.asarray(values, float)
    return np.round(255*(values - values.min())/np.ptp(values)).astype(np.uint8)


# A few values far from the rest

def block(share, at=(4, 60)):
    "A square that covers this share of the picture."
    odd, side = FLAT.copy(), max(1, round(SIZE*share**.5))
    odd[at[0]:at[0] + side, at[1]:at[1] + side] = True
    return odd


def border(share):
    odd = FLAT.copy()
    odd[:, :round(SIZE*share)] = True
    return odd


def dots(*places):
    odd = FLAT.copy()
    for place in places: odd[place] = True
    return odd


def with_odd(values, odd, far):
    values = np.asarray(values, float).copy()
    values[odd] = far
    return values


def soft(values, odd, far):
    "A marker with smooth edges."
    share = np.asarray(Image.fromarray(255*odd.astype(np.uint8)).resize((SIZE//3, SIZE//3)).resize((SIZE, SIZE), Image.Resampling.BILINEAR))/255
    return values*(1 - share) + far*share, share > .02


def deep(form, values): return dicom(values) if form == "DICOM" else saved(np.asarray(values).round().astype(np.uint16), form)
def floats(values): return saved(np.asarray(values, np.float32), "TIFF")
def whole_numbers(values): return saved(np.asarray(values).round().astype(np.int32), "TIFF")


marker, some = block(.03), dots((3, 5), (40, 41), (70, 9), (90, 90), (12, 77))
FAR = {
    **{f"{form}, a marker": lambda form=form: (deep(form, with_odd(DEEP*16, marker, 65_535)), marker) for form in ("PNG", "TIFF", "PPM", "JPEG2000", "DICOM")},
    **{f"a marker of {share:.1%}": lambda share=share: (deep("PNG", with_odd(DEEP*16, block(share), 65_535)), block(share)) for share in (.005, .05, .15)},
    **{f"a marker on {bits} bits": lambda bits=bits: (deep("PNG", with_odd(DEEP/255*(2**bits - 1), marker, 65_535)), marker) for bits in (8, 10, 14)},
    "a marker in a declared range": lambda: (tagged(with_odd(DEEP*16, marker, 65_535).astype(np.uint16), smallest=0, largest=65_535), marker),
    **{f"{form}, one hot pixel": lambda form=form: (deep(form, with_odd(DEEP*8, dots((40, 40)), 65_535)), dots((40, 40))) for form in ("PNG", "DICOM")},
    "cold pixels": lambda: (deep("TIFF", with_odd(30_000 + DEEP*4, some, 0)), some),
    "hot pixels of several values": lambda: (deep("PNG", with_odd(DEEP*16, some, [9000, 20_000, 31_000, 44_000, 65_535])), some),
    "hot and cold pixels": lambda: (deep("PNG", with_odd(with_odd(30_000 + DEEP*4, some, 0), marker, 65_535)), some | marker),
    "a border of -1000 around ones": lambda: (floats(with_odd(DEEP/255, border(.3), -1000)), border(.3)),
    "a border of -2000": lambda: (whole_numbers(with_odd(DEEP*2, border(.3), -2000)), border(.3)),
    "a border of -32768": lambda: (whole_numbers(with_odd(DEEP*16, border(.3), -32_768)), border(.3)),
    "a border of the smallest float": lambda: (floats(with_odd(DEEP, border(.3), -3.4e38)), border(.3)),
    "a border of 0 far below": lambda: (deep("PNG", with_odd(40_000 + DEEP*4, border(.3), 0)), border(.3)),
    "a border that covers more than half": lambda: (deep("PNG", with_odd(40_000 + DEEP*4, border(.55), 0)), border(.55)),
    "a border of no number, and a marker": lambda: (floats(with_odd(with_odd(DEEP, border(.2), np.nan), marker, 1e6)), border(.2) | marker),
    "a border and a marker": lambda: (whole_numbers(with_odd(with_odd(DEEP*16, border(.3), -30_000), marker, 65_535)), border(.3) | marker),
    "DICOM, a window of 16 bits": lambda: (dicom(with_odd(DEEP*16, marker, 65_535), WindowCenter=32_768, WindowWidth=65_536), marker),
    "DICOM, padding without its tag": lambda: (dicom(with_odd(DEEP*16, border(.2), -32_768), signed=1), border(.2)),
    "DICOM, MONOCHROME1, a marker": lambda: (dicom(with_odd(65_535 - DEEP*16, marker, 0), "MONOCHROME1"), marker),
    "DICOM, a marker beside padding": lambda: (dicom(with_odd(with_odd(DEEP*16 + 1, border(.2), 0), marker, 65_535), PixelPaddingValue=0), border(.2) | marker),
}

@pytest.mark.parametrize("write", FAR.values(), ids=FAR)
def test_values_far_from_the_rest_set_no_range(write):
    whole, odd = write()
    found, note = read(whole)
    assert is_chest(found, odd) and note == ""


@pytest.mark.parametrize("share", [.002, .01, .03, .08])
def test_a_marker_with_smooth_edges(share):
    "The edges may be noticed, since they have many values."
    values, odd = soft(DEEP*16, block(share), 65_535)
    assert is_chest(read(deep("PNG", values))[0], odd)


tail = np.random.default_rng(0).exponential(1, CHEST.shape)
KEPT = {
    "nothing odd": DEEP*16, "a steep curve": (DEEP/255)**4*65_535, "a tail that fades out": tail/tail.max()*60_000, "two values": (DEEP > 120)*65_535, "three values": np.digitize(DEEP, [60, 120])*30_000,
    "a border beside the darkest values": with_odd(1000 + DEEP*16, border(.4), 0), "a marker beside the brightest values": with_odd(DEEP*10, marker, 4095),
    "half of it bright": with_odd(DEEP*8, border(.5), 60_000 + DEEP[border(.5)]*8),
}

@pytest.mark.parametrize("values", KEPT.values(), ids=KEPT)
def test_a_range_without_a_gap_is_kept(values):
    values = values.round().astype(np.uint16)
    found, note = read(saved(values, "PNG"))
    assert (found == stretched(values)).all() and note == ""


DARK = with_odd(DEEP/10, marker, 255).astype(np.uint8)
EIGHT = {"PNG": (lambda: saved(DARK, "PNG"), DARK), "TIFF": (lambda: saved(DARK, "TIFF"), DARK),
         "DICOM": (lambda: dicom(DEEP, BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=DARK.tobytes()), stretched(DARK))}

@pytest.mark.parametrize("write, expected", EIGHT.values(), ids=EIGHT)
def test_eight_bits_stay_as_they_are(write, expected): assert (read(write())[0] == expected).all()


def test_a_cut_that_may_hide_something_is_noticed():
    "The far part is a picture of its own, not a flat marker."
    values = with_odd(DEEP*4, border(.2), 50_000 + DEEP[border(.2)]*30)
    found, note = read(saved(values.astype(np.uint16), "PNG"))
    assert note == "more than 1 % of its pixels, far from the rest, were clipped" and is_chest(found, border(.2))


def test_a_cut_and_a_second_page_are_both_noticed():
    values = with_odd(DEEP*4, border(.2), 50_000 + DEEP[border(.2)]*30).astype(np.uint16)
    whole = saved(values, "TIFF", save_all=True, append_images=[grey.copy()])
    assert read(whole)[1] == "only the first of 2 pages was read; more than 1 % of its pixels, far from the rest, were clipped"


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(form=st.sampled_from(["PNG", "TIFF", "PPM", "JPEG2000", "DICOM"]), bits=st.integers(8, 15), start=st.integers(0, 30_000), kind=st.sampled_from(["block", "pixels", "border"]),
       size=st.floats(.0001, 1), where=st.integers(0, 10**6), high=st.booleans(), distance=st.floats(0, 1), both=st.booleans())
def test_any_value_far_from_the_rest(form, bits, start, kind, size, where, high, distance, both):
    "Whatever it is, wherever it lies and however far away: the chest is seen, or the cut is noticed."
    rng, values = np.random.default_rng(where), start + DEEP/255*(2**bits - 1)
    if kind == "block": odd = block(.05*size, (where % 70, where // 70 % 70))
    elif kind == "border": odd = border(.4*size)
    else: odd = np.isin(np.arange(SIZE**2), rng.choice(SIZE**2, 1 + int(30*size))).reshape(FLAT.shape)
    up, down = values.max() + distance*(65_535 - values.max()), values.min()*(1 - distance)
    values = with_odd(values, odd, up if high else down)
    if both: values = with_odd(values, some, down if high else up)
    found, note = read(deep(form, values))
    assert note or is_chest(found, odd | some)


# DICOM: what is empty or impossible is not there

def table(entries, bits, data, vr="OW", first=0):
    "A lookup table; its data as bytes, or as words."
    item = pydicom.Dataset()
    item.LUTDescriptor = [entries, first, bits]
    item.add_new("LUTData", vr, data)
    return dict(VOILUTSequence=[item])


def padding(values, vr, *ends, signed=0):
    "A value and a limit that are written as signed or unsigned whatever the pixels are."
    head = pydicom.dcmread(io.BytesIO(dicom(values, signed=signed)))
    for name, end in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), ends): head.add_new(name, vr, end)
    head.save_as(out := io.BytesIO())
    return out.getvalue()


def palette(data=None):
    "A palette that turns 255 - grey into grey."
    data = np.arange(255, -1, -1, dtype=np.uint8).tobytes() if data is None else data
    names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
    return {f"{name}Descriptor": [256, 0, 8 if len(data) == 256 else 16] for name in names} | {f"{name}Data": data for name in names}


def small(values, **fields): return dict(BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=np.asarray(values, np.uint8).tobytes(), **fields)


curve = np.arange(4096)
colours = np.stack([CHEST]*3, -1)
chest_of_tags = np.linspace(0, 255, 4096).astype("<u2")
FIELDS = {
    "a padding value below 0 beside unsigned pixels": lambda: padding(with_odd(DEEP*16, border(.2), 63_536), "SS", -2000),
    "a padding range below 0 beside unsigned pixels": lambda: padding(with_odd(DEEP*16, border(.2), 64_000), "SS", -2000, -1),
    "a padding value above 32767 beside signed pixels": lambda: padding(with_odd(DEEP*16, border(.2), -2000), "US", 63_536, signed=1),
    "PALETTE COLOR": lambda: dicom(DEEP, "PALETTE COLOR", **small(255 - CHEST), **palette()),
    "PALETTE COLOR of 16 bits": lambda: dicom(DEEP, "PALETTE COLOR", **small(255 - CHEST), **palette((np.arange(255, -1, -1)*257).astype("<u2").tobytes())),
    "a table of 8 bits, an entry a word": lambda: dicom(DEEP*16, **table(4096, 8, chest_of_tags.tobytes())),
    "a table of 8 bits as numbers": lambda: dicom(DEEP*16, **table(4096, 8, chest_of_tags.tolist(), "US")),
    "a table of 8 bits, an entry a byte": lambda: dicom(DEEP*16, **table(4096, 8, chest_of_tags.astype(np.uint8).tobytes())),
    "a table that is shorter than it says": lambda: dicom(DEEP*16, **table(8192, 16, (curve*16).astype("<u2").tobytes())),
    "a table without data": lambda: dicom(DEEP*16, **table(4096, 16, b"")),
    "a table without data, and a window": lambda: dicom(with_odd(DEEP*16, marker, 6000), WindowCenter=2040, WindowWidth=4080, **table(4096, 16, b"")),
    "a table in which all is one": lambda: dicom(DEEP*16, **table(4096, 16, bytes(8192))),
    "RescaleSlope 0": lambda: dicom(DEEP*16, RescaleSlope=0, RescaleIntercept=0),
    "RescaleSlope 0 beside a window": lambda: dicom(DEEP*16, RescaleSlope=0, RescaleIntercept=-1000, WindowCenter=1040, WindowWidth=4080),
    "RescaleSlope empty": lambda: dicom(DEEP*16, RescaleSlope="", RescaleIntercept=0),
    "RescaleIntercept empty": lambda: dicom(DEEP*16, RescaleSlope=1, RescaleIntercept=""),
    "both empty beside a window": lambda: dicom(DEEP*16, RescaleSlope="", RescaleIntercept="", WindowCenter=2040, WindowWidth=4080),
    **{f"WindowWidth {width!r}": lambda width=width: dicom(DEEP*16, WindowCenter=2048, WindowWidth=width) for width in (0, .5, 1, -4096, "")},
    "WindowCenter missing": lambda: dicom(DEEP*16, WindowWidth=4096),
    "WindowWidth missing": lambda: dicom(DEEP*16, WindowCenter=2048),
    "the first window impossible": lambda: dicom(DEEP*16, WindowCenter=[2040, 2040], WindowWidth=[0, 4080]),
    "a window beside all values": lambda: dicom(DEEP*16, WindowCenter=-3000, WindowWidth=400),
    **{f"VOILUTFunction {name!r}": lambda name=name: dicom(DEEP*16, WindowCenter=2040, WindowWidth=4080, VOILUTFunction=name) for name in ("", "FOO", "linear", "SIGMOID")},
    "SIGMOID 0 wide": lambda: dicom(DEEP*16, WindowCenter=2040, WindowWidth=0, VOILUTFunction="SIGMOID"),
    "PixelPaddingValue empty": lambda: dicom(DEEP*16, PixelPaddingValue=None),
    "PixelPaddingRangeLimit without a value": lambda: dicom(DEEP*16, PixelPaddingRangeLimit=9),
    "MONOCHROME2 in lower case": lambda: dicom(DEEP*16, "monochrome2", WindowCenter=2040, WindowWidth=4080),
    "MONOCHROME1 in lower case": lambda: dicom(4095 - DEEP*16, "monochrome1"),
    "no PhotometricInterpretation": lambda: dicom(DEEP*16, None, WindowCenter=2040, WindowWidth=4080),
    "no SamplesPerPixel": lambda: dicom(DEEP*16, SamplesPerPixel=None),
    "no PixelRepresentation": lambda: dicom(DEEP*16, PixelRepresentation=None),
    "no BitsStored": lambda: dicom(DEEP*16, BitsStored=None),
    "three equal channels": lambda: dicom(DEEP, "RGB", SamplesPerPixel=3, **small(colours, PlanarConfiguration=0)),
    "three equal channels, one after the other": lambda: dicom(DEEP, "RGB", SamplesPerPixel=3, **small(colours.transpose(2, 0, 1), PlanarConfiguration=1)),
    "three equal channels, no PlanarConfiguration": lambda: dicom(DEEP, "RGB", SamplesPerPixel=3, **small(colours)),
    "brightness and two colours": lambda: dicom(DEEP, "YBR_FULL", SamplesPerPixel=3, **small(np.stack([CHEST, CHEST*0 + 128, CHEST*0 + 128], -1), PlanarConfiguration=0)),
}

@pytest.mark.parametrize("write", FIELDS.values(), ids=FIELDS)
@pytest.mark.filterwarnings("ignore")
def test_what_is_empty_or_impossible_is_not_there(write):
    found, note = read(write())
    assert is_chest(found, border(.2) | marker) and note == ""


@pytest.mark.parametrize("value, vr, stored, signed", [(-2000, "SS", 63_536, 0), (63_536, "US", -2000, 1), (-2000, "SS", -2000, 1)])
def test_padding_is_the_same_bits(value, vr, stored, signed):
    found, _ = read(padding(with_odd(DEEP*16 + 1, border(.2), stored), vr, value, signed=signed))
    assert found[border(.2)].max() == 0 and is_chest(found, border(.2))


def test_a_modality_table_of_12_bits():
    item = table(4096, 12, curve[::-1].astype("<u2").tobytes())["VOILUTSequence"]
    assert is_chest(read(dicom(4095 - DEEP*16, ModalityLUTSequence=item))[0])


# DICOM: what is missing at the head of the file

def parts(whole):
    "The fields about the file, and those about the picture."
    end = 144 + int.from_bytes(whole[140:144], "little")
    return whole[132:end], whole[end:]


def bare(implicit, little, head=b""):
    "Only the picture's fields, in this form."
    found = pydicom.dcmread(io.BytesIO(dicom(DEEP*16)))
    found.PixelData = (DEEP*16).round().astype("<u2" if little else ">u2").tobytes()
    fields = pydicom.Dataset(found)
    fields.save_as(out := io.BytesIO(), implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return head + out.getvalue()


mark = bytes(128) + b"DICM"
version = b"\2\0\1\0OB\0\0\2\0\0\0\0\1" # the only field about the file
HEADS = {
    "no mark": lambda: b"".join(parts(dicom(DEEP*16))),
    "no mark, nothing about the file": lambda: parts(dicom(DEEP*16))[1],
    "no mark, nothing about the file, implicit": lambda: bare(True, True),
    "no mark, nothing about the file, big endian": lambda: bare(False, False),
    "nothing about the file": lambda: bare(False, True, mark),
    "nothing about the file, implicit": lambda: bare(True, True, mark),
    "no transfer syntax": lambda: bare(False, True, mark + version),
    "no transfer syntax, implicit": lambda: bare(True, True, mark + version),
    "no transfer syntax, big endian": lambda: bare(False, False, mark + version),
}

@pytest.mark.parametrize("write", HEADS.values(), ids=HEADS)
def test_a_head_that_misses_something(write):
    found, note = read(write())
    assert is_chest(found) and note == ""


# DICOM: compressions, and what cannot be read

RAMP = np.tile(np.arange(16)*17, (16, 1))
COMPRESSED = { # a ramp of 16 × 16 pixels from 0 to 3840
    "1.2.840.10008.1.2.4.57": "/9j/xAAWAAEBAQAAAAAAAAAAAAAAAAAACRD/wwALEAAQABABABEA/9oACAEAAAYAANQCgFAKAUAoBQCgFAKAUAoBQCgFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP/Z",
    "1.2.840.10008.1.2.4.80": "/9j/6AAgU1BJRkYAAgAAAQAAABAAAAAQChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQABAAEAEBEQD/+AANAf//ABIAQwEUAED/2gAIAQEAAAAAr/3/X/v7/f8f3/X8/w/f9v1/T88AIAQBAEAgEAgEBAQEBAQEBACAICBAgQIECBAgQIECBAEAQIECCCCCCCCCCCCAIBBBBBBBBBBBBBBBAIBBBBBBBBCEIQhCAQCEIQhCEIQhCEIBAIQhCEIQhCEREAgIiIiIiIiIiAgIiIiIiIiIiAgIkkkkkkkBASSSSSSSQEBJJKqqoCAqqqqqAgKqqvwEB/94AP/Z",
    "1.2.840.10008.1.2.4.201": "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAE8AAf+TwAAm2/YFB3QAAMAAEwBG8gOHdADAABOAHvHIAwJ0AMAAFUB++OGHH6pygnUAwAAtAP7+/v7+/v7+58p6enGCeAD/2Q==",
}
COMPRESSED["1.2.840.10008.1.2.4.70"] = COMPRESSED["1.2.840.10008.1.2.4.57"]

def compressed(syntax, content):
    head = pydicom.dcmread(io.BytesIO(dicom(DEEP*16, Rows=16, Columns=16, BitsStored=12, HighBit=11)))
    head.file_meta.TransferSyntaxUID = syntax
    head["PixelData"].VR = "OB"
    head.PixelData = pydicom.encaps.encapsulate([content])
    head.save_as(out := io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize("syntax, content", COMPRESSED.items(), ids=[pydicom.uid.UID(x).name for x in COMPRESSED])
def test_every_compression_has_its_decoder(syntax, content):
    found, note = read(compressed(syntax, base64.b64decode(content)), 16)
    assert (found == RAMP).all() and note == ""


@pytest.mark.parametrize("syntax", COMPRESSED, ids=[pydicom.uid.UID(x).name for x in COMPRESSED])
def test_a_missing_decoder_is_named(syntax, monkeypatch):
    monkeypatch.setattr(pydicom.pixels.get_decoder(syntax), "_available", {})
    message = f"no decoder for {pydicom.uid.UID(syntax).name}: pip install 'radiology-clip-mini[dicom]'"
    assert pictures._try_read(dict(bytes=compressed(syntax, b"\xff\xd8")), 16) == (None, message)


def report():
    head = pydicom.dcmread(io.BytesIO(dicom(DEEP)))
    head.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    del head.PixelData
    head.save_as(out := io.BytesIO())
    return out.getvalue()


REFUSED = {
    "a compression cut off": (lambda: compressed("1.2.840.10008.1.2.4.70", b"\xff\xd8\xff\xee"), "damaged DICOM (RuntimeError, JPEG Lossless"),
    "too few pixels": (lambda: dicom(DEEP, PixelData=bytes(100)), "damaged DICOM (ValueError, Explicit VR Little Endian)"),
    "a film": (lambda: compressed("1.2.840.10008.1.2.4.100", b"\0"), "pydicom has no decoder for MPEG2"),
    "a report": (report, "Basic Text SR Storage: no picture in it"),
    "nothing": (lambda: mark, "damaged DICOM: no picture in it"),
    "no size": (lambda: dicom(DEEP, Rows=None), "damaged DICOM ("),
    "a palette without colours": (lambda: dicom(DEEP, "PALETTE COLOR"), "damaged DICOM (ValueError"),
    "two pictures": (lambda: dicom(DEEP, NumberOfFrames=2, PixelData=bytes(4*SIZE**2)), "a DICOM of shape (2, 96, 96), not one grey image"),
}

@pytest.mark.parametrize("write, message", REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_read_says_why(write, message):
    found, reason = pictures._try_read(dict(bytes=write()), SIZE)
    assert found is None and reason.startswith(message)


# A folder of pictures of many kinds

def ramp_image(mode):
    "A picture that grows lighter from left to right."
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (60, 1))
    if mode == "I;16": return Image.fromarray(ramp.astype(np.uint16)*257)
    return Image.fromarray(ramp).convert("RGB").convert(mode)


KINDS = {"L": "grey.png", "CMYK": "cmyk.jpg", "RGBA": "alpha.png", "P": "palette.png", "LA": "grey alpha ü.png", "I;16": "deep.png", "1": "bits.png"}

def huge(whole):
    "A PNG whose header claims 20,000 × 20,000 pixels."
    whole = bytearray(whole)
    whole[16:24] = (20_000).to_bytes(4, "big")*2
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    return bytes(whole)


@pytest.fixture
def odd_folder(tmp_path):
    "Seven pictures of seven kinds, six files that are not pictures or hardly, and a table."
    for mode, name in KINDS.items(): ramp_image(mode).save(tmp_path/name)
    whole = (tmp_path/"grey.png").read_bytes()
    broken = {"cut.png": whole[:len(whole)//2], "empty.png": b"", "words.png": b"no picture", "words.dcm": mark + b"no picture", "huge.png": huge(whole)}
    for name, content in broken.items(): (tmp_path/name).write_bytes(content)
    Image.new("L", (1, 1)).save(tmp_path/"one.png")
    names = sorted(p.name for p in tmp_path.iterdir())
    pd.DataFrame(dict(file_name=names, patient_id=names, text="Clear.", view="PA")).to_csv(tmp_path/"metadata.csv", index=False)
    return tmp_path, names


def test_a_folder_of_many_kinds(odd_folder):
    "Colour, transparency, palettes, CMYK and 16 bits are read; what cannot be read is listed, and so are equal pictures."
    folder, names = odd_folder
    data = gather_data(read_folder(folder, {}), DataConfig(image_size=32, cache_dir=str(folder/"cache")), dict.fromkeys(SPLITS, names), {})
    assert set(data.studies["study_id"]) == set(KINDS.values())
    assert data.skipped == {
        "patients alpha.png, grey alpha ü.png, grey.png": "a picture in common; kept in one part of a new split", "cut.png": "unreadable frontal image: OSError",
        "empty.png": "unreadable frontal image: UnidentifiedImageError", "words.png": "unreadable frontal image: UnidentifiedImageError",
        "huge.png": "unreadable frontal image: DecompressionBombError", "one.png": "unreadable frontal image: only 1 × 1 pixels",
        "words.dcm": "unreadable frontal image: damaged DICOM: no picture in it"}
    shown = {name: data.picture(i).astype(int) for i, name in enumerate(data.studies["study_id"])}
    off = {name: int(np.abs(pixels - shown["grey.png"]).max()) for name, pixels in shown.items()}
    assert {name for name, worst in off.items() if worst > 1} == {"palette.png", "bits.png", "deep.png"} and off["palette.png"] < 10
    assert np.abs(shown["deep.png"] - (shown["grey.png"]*255/236).round()).max() <= 2 # 16 bits fill the whole range


def test_a_lost_view(tmp_path):
    "A study is kept for the view that can be read, and its losses are listed; blank pictures are noticed."
    for name, value in (("good", 90), ("side", 50)): Image.new("L", (60, 50), value).save(tmp_path/f"{name}.png")
    (tmp_path/"zero.png").write_bytes(b"")
    (tmp_path/"metadata.csv").write_text("file_name,study_id,patient_id,view,text\ngood.png,1,1,PA,A.\nzero.png,2,2,PA,B.\nzero.png,4,4,PA,D.\nside.png,4,4,L,D.\n")
    skipped = {}
    def read_views(views):
        cfg = DataConfig(image_size=32, views=views, cache_dir=str(tmp_path/"cache"))
        return gather_data(read_folder(tmp_path, {}), cfg, dict.fromkeys(SPLITS, ["1", "4"]), skipped)
    found = [(d.studies["study_id"][:], d.view_ids.tolist()) for d in map(read_views, ("any", "both", "lateral"))]
    assert found == [(["1", "4"], [[0], [1]]), (["1", "4"], [[0, -1], [-1, 1]]), (["4"], [[1]])]
    assert skipped == {"4 frontal": "unreadable frontal image: UnidentifiedImageError", "2": "no lateral image", "1": "no lateral image",
                       "1 frontal": "frontal image: nearly one grey", "4 lateral": "lateral image: nearly one grey"}
    assert read_views("both").seen(1) == ["lateral"] and read_views("both").picture(1).max() == 50


def test_the_views_of_open_i(tmp_path):
    "Its DICOM files are named by the XML; which one is lateral is known by its number."
    folder = tmp_path/"NLMCXR_dcm/1"
    folder.mkdir(parents=True)
    for number in (3001, 4001): (folder/f"1_IM-0001-{number}.dcm").write_bytes(dicom(DEEP*16))
    (tmp_path/"1.xml").write_text('<e><uId id="CXR1"/><AbstractText Label="FINDINGS">Clear.</AbstractText>'
                                  '<parentImage id="CXR1_1_IM-0001-3001"/><parentImage id="CXR1_1_IM-0001-4001"/></e>')
    studies = read_studies(DataConfig(source=str(tmp_path)))[0].with_format("arrow")
    assert [Path(studies[view].combine_chunks()[0]["path"].as_py()).name for view in ("frontal", "lateral")] == ["1_IM-0001-4001.dcm", "1_IM-0001-3001.dcm"]


# Files that went wrong once, where they are at hand

@pytest.mark.skipif(not CASES.is_dir(), reason="the collection of odd cases is not beside this checkout")
def test_the_collected_cases():
    chest = read((CASES/"dicom/plain.dcm").read_bytes(), 64)[0]
    for path in sorted((CASES/"dicom").glob("*.dcm")):
        found, reason = pictures._try_read(dict(path=str(path), bytes=None), 64)
        if path.stem.startswith("jpeg"): assert found is None and reason.startswith("damaged DICOM (RuntimeError, JPEG") # their pixels are zeros
        else: assert is_chest(found, (found > 250) | (found == 0), chest.astype(float)), path.name
    for path in (CASES/"marker16").glob("*.png"):
        values = np.asarray(Image.open(path))
        found = read(path.read_bytes(), min(values.shape))[0]
        assert is_chest(found, values > 60_000, values.astype(float)), path.name
