"""The law of the house: exported code imports downwards only, lab → course → base, without a circle; and it stays small."""
import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT/"radiology_clip_mini"
COURSE = ("data", "models", "loss", "metrics", "train", "gradcam") # in the order in which they may import
FLOORS = ("base", "course", "lab")
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path
           for path in sorted(PACKAGE.rglob("*.py")) if path.stem not in ("_modidx", "__init__", "__main__")}


def floor(module):
    "0 for base, 1 for the course, 2 for the lab."
    return 1 if module in COURSE else FLOORS.index(module.split(".")[0])


def imports(module, path):
    "The modules of this package that a module imports, at its head or within a function."
    package = ["radiology_clip_mini", *module.split(".")[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            before = package[:len(package) - node.level + 1] if node.level else []
            name = ".".join([*before, *filter(None, [node.module])])
            names = [name, *(f"{name}.{alias.name}" for alias in node.names)]
        else: continue
        found |= {name.removeprefix("radiology_clip_mini.") for name in names}
    return found & set(MODULES)


IMPORTS = {module: imports(module, path) for module, path in MODULES.items()}


def test_every_module_is_on_a_floor():
    for module in MODULES: floor(module)
    assert {module for module in MODULES if "." not in module} == set(COURSE)


def test_imports_point_downwards_only():
    up = [f"{a} → {b}" for a, known in IMPORTS.items() for b in known if floor(b) > floor(a)]
    assert not up, f"exported code imports upwards: {', '.join(up)}"


def test_the_course_imports_in_the_order_of_its_story():
    early = [f"{a} → {b}" for a in COURSE for b in IMPORTS[a] if b in COURSE and COURSE.index(b) > COURSE.index(a)]
    assert not early, f"a lesson imports a later one: {', '.join(early)}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_itself_through_others(module):
    seen, waiting = set(), set(IMPORTS[module])
    while waiting:
        now = waiting.pop()
        assert now != module, f"{module} imports itself through others"
        if now not in seen: waiting |= IMPORTS[now]
        seen.add(now)


def test_the_law_is_noticed(tmp_path):
    path = tmp_path/"module.py"
    path.write_text("from .lab.runs import train\nfrom radiology_clip_mini.lab import ask\ndef late(): from .loss import clip_loss\n")
    assert imports("data", path) == {"lab.runs", "lab.ask", "loss"}
    path.write_text("from ..models import CLIPMini\nfrom .report import Picture\n")
    assert imports("lab.runs", path) == {"models", "lab.report"}


def lines(path):
    "Lines of code, docstrings and imports, without empty ones and nbdev's marks."
    text = path.read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("# %%")]


def test_the_house_is_small():
    size = {module: len(lines(path)) for module, path in MODULES.items()}
    assert len(size) <= 23 # 21, and sections of reports, and answers about a film
    assert {module: n for module, n in size.items() if n > 450} == {}
    long = [f"{module}: {line}" for module, path in MODULES.items() for line in lines(path)
            if len(line) > 120 and not line.startswith(("from", "__all__", '"""'))]
    assert not long, long


NOTEBOOKS = sorted(path for path in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def test_there_are_few_notebooks(): assert len(NOTEBOOKS) <= 37 # 35, and sections of reports, and answers about a film


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]).splitlines() for cell in cells if cell["cell_type"] == "code"]
    code = [[line for line in cell if line.strip() and not line.startswith("#|")] for cell in code]
    assert not [cell for cell in code if len(cell) > 30]


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if path.stem[:2].isdigit()])
def test_a_lesson_can_be_read_on_a_slow_line(name):
    assert (ROOT/f"nbs/{name}.ipynb").stat().st_size <= 600_000
