"""What inputs of many forms give, to the letter and the pixel, as it was stored; see goldens.py, which also compares a run of the demo."""
import json

import pytest

pytest.importorskip("pydicom")
import goldens


@pytest.fixture(scope="module")
def found(): return goldens.read_all()


@pytest.mark.parametrize("name", goldens.INPUTS)
def test_each_input_gives_the_stored_table(found, name):
    stored = json.loads((goldens.HERE/"readers.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(found[name])) == stored[name]
