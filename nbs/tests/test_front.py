"The front page and its links: short, relative to the repository, and with addresses that settings.ini names."
import importlib, json, re
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INI = ConfigParser(delimiters=["="])
INI.read(ROOT/"settings.ini", encoding="utf-8")
SET = INI["DEFAULT"]
NOTEBOOKS = [p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
README = (ROOT/"README.md").read_text(encoding="utf-8")
COMMANDS = """
pip install -e . && rclip_train --config demo && rclip_eval && rclip_viz
pip install -e '.[dev]' && nbdev_test && pytest -q nbs/tests
"""
PUBLIC = """
base.phantom: make_phantoms
base.settings: Config, DataConfig, ModelConfig, TrainConfig, load_config
data: StudyData, prepare_data, split_patients
models: CLIPMini, embed
loss: clip_loss
train: fit
metrics: retrieval_metrics
gradcam: Explorer, grad_cam, make_gallery, retrieval_grid
lab.runs: load_data, load_run, train
"""


def markdown(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def links(text):
    "The targets of links and pictures, without those in code."
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))


def test_readme_is_short_and_has_both_commands():
    assert len(README.split()) <= 900
    assert len([line for line in README.splitlines() if line.startswith("|")]) <= 25
    assert COMMANDS in README


def test_links_of_the_readme_work_in_any_clone():
    own = [link for link in links(README) if not link.startswith("https://")]
    assert len(own) > 15 and not [link for link in own if not (ROOT/link.split("#")[0]).exists()]
    assert SET["doc_host"] not in README


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_of_the_notebooks_lead_somewhere(notebook):
    "Relative links; those of index.ipynb are the README's, so they begin at the repository."
    start = ROOT if notebook.name == SET["readme_nb"] else notebook.parent
    own = [link.split("#")[0] for link in links(markdown(notebook)) if not re.match("https?:|mailto:", link)]
    assert not [link for link in own if link and not (start/link).exists()]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_addresses_follow_settings(notebook):
    "Badges, clone and pip name the repository of settings.ini and this notebook; nothing links to the site."
    text = notebook.read_text(encoding="utf-8")
    name = "quickstart.ipynb" if notebook.name == SET["readme_nb"] else notebook.relative_to(ROOT/"nbs").as_posix()
    blob = f"{SET['user']}/{SET['repo']}/blob/{SET['branch']}/nbs/{name}"
    assert f"https://colab.research.google.com/github/{blob})" in text
    assert f"https://kaggle.com/kernels/welcome?src=https://github.com/{blob})" in text
    cloned = re.findall(r"(?:git clone [^\\\"]*?|git\+)(https://github.com/[\w.-]+/[\w.-]+)", text)
    assert set(cloned) <= {SET["git_url"]}
    assert SET["doc_host"].replace("%(user)s", SET["user"]) not in markdown(notebook)


@pytest.mark.parametrize("line", PUBLIC.strip().splitlines())
def test_public_names(line):
    "Names that users rely on are where the README's links and lessons say."
    module, names = line.split(": ")
    held = importlib.import_module(f"{SET['lib_path']}.{module}")
    assert not [name for name in names.split(", ") if not hasattr(held, name)]
