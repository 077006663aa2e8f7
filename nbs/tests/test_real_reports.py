"Ceilings and constant answers on the real texts of IU X-Ray, where a copy of the reports is at hand; see 04_metrics."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array, eye_array

from radiology_clip_mini.base.findings import mesh_labels
from radiology_clip_mini.base.sources import pick_text
from radiology_clip_mini.base.splits import text_ids
from radiology_clip_mini.metrics import always_normal, finding_relevance, perfect_reader, rows_of, score_blocks, summarise

REPORTS = Path(__file__).parents[3]/"shared/data/iu_xray/indiana_reports.csv"
pytestmark = pytest.mark.skipif(not REPORTS.exists(), reason="no copy of the IU X-Ray reports here")


def scored(similarity, relevance):
    n = relevance.shape[0]
    return score_blocks(similarity, dict(own=rows_of(relevance)), n, n)["own"]


@pytest.fixture(scope="module")
def galleries():
    "Forty galleries of 383 studies, a tenth of those with text."
    table = pd.read_csv(REPORTS, dtype=str, keep_default_na=False)
    table = table.assign(text=[pick_text(r) for r in table.to_dict("records")], labels=table["MeSH"].map(mesh_labels))
    table = table.query("text != ''").reset_index(drop=True)
    table["text_id"] = text_ids(table["text"].tolist()).numpy()
    return [table.sample(383, random_state=k) for k in range(40)]


@pytest.mark.parametrize("by_letter, expected", [(True, [.895, .991, 1.]), (False, [.889, .991, 1.])])
def test_ceiling_of_a_perfect_reader(galleries, by_letter, expected):
    "It finds the own report first in nine of ten cases: a strict R@1 above that cannot be right."
    found = []
    for g in galleries:
        ids = pd.factorize(g["text"])[0] if by_letter else g["text_id"]
        found.append(summarise(scored(perfect_reader(ids, ids), eye_array(len(g), format="csr"))))
    assert np.allclose(pd.DataFrame(found)[["R@1", "R@5", "R@10"]].mean(), expected, rtol=0, atol=.004)


def test_always_normal(galleries):
    "It is right for a third of all queries if any shared label counts, and worth nothing by graded findings."
    g = galleries[0]
    answer, normal = always_normal(g["labels"]), g["labels"].map(len).to_numpy() == 0
    shared = [[bool(set(a) & set(b)) or a == b for b in g["labels"]] for a in g["labels"]]
    assert scored(answer, csr_array(np.array(shared, dtype=float)))["R@1"].mean() == pytest.approx(normal.mean(), abs=1e-9)
    graded = scored(answer, finding_relevance(g, g))["nDCG@10"]
    assert graded.mean() < .02 and graded[~normal].mean() < .02
