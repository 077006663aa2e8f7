"""The explorer in a real browser: in JupyterLab, and as the page of `rclip_app`. Skipped where there is no browser."""
import http.client, json, os, re, shutil, signal, socket, subprocess, sys, time
from pathlib import Path

import pandas as pd
import pytest

from radiology_clip_mini.explorer import main
from radiology_clip_mini.data import load_studies

psutil = pytest.importorskip("psutil")
pytest.importorskip("voila", reason="no Voilà: pip install 'radiology-clip-mini[app]'")
api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
api.expect.set_options(timeout=60_000) # the kernel may still be busy with the notebook's last cells

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
EVIL = "<script>document.title = 'evil'</script> <img src=x onerror=\"document.title = 'evil'\">"
SMALL = ["--config", "demo", "--data.image_size=64", "--train.epochs=1", "--data.test_fraction=.4", "--paths.results_dir=results/demo"]


def train(folder, *argv):
    done = subprocess.run([sys.executable, "-m", "radiology_clip_mini.train", *SMALL, *argv], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def wait_for(port, process):
    for _ in range(900):
        if process.poll() is not None: raise AssertionError(f"the server ended with {process.returncode}")
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0: return
        time.sleep(.1)
    raise AssertionError("the server did not start in 90 seconds")


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


@pytest.fixture(scope="module")
def browser():
    if not BROWSER: pytest.skip("no chromium or google-chrome on the PATH")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, tmp_path):
    "An empty page, photographed when the test is done."
    page = browser.new_page(viewport=dict(width=1280, height=1000))
    page.set_default_timeout(30_000)
    yield page
    page.screenshot(path=tmp_path/"page.png", full_page=True)
    page.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    "rclip_app over reports that hold HTML, beside a configuration file that would open it to the world: process and port."
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    (folder/"own").mkdir()
    studies, rows = load_studies("phantom", phantoms=60, image_size=96), []
    for i, s in enumerate(studies):
        for view in ("frontal", "lateral"):
            s[view].save(folder/f"own/{i}-{view}.png")
            rows.append(dict(file_name=f"{i}-{view}.png", patient_id=i, study_id=f"<b>{i}</b>", view=view, text=f"{s['text']} {EVIL}", labels=";".join(s["labels"])))
    pd.DataFrame(rows).to_csv(folder/"own/metadata.csv", index=False)
    train(folder, "--data.source=own")
    (folder/"voila.json").write_text(json.dumps(dict(Voila=dict(ip="0.0.0.0", tornado_settings=dict(allow_remote_access=True)))))
    command = [sys.executable, "-m", "radiology_clip_mini.explorer", "--results_dir=results/demo", "--no_browser", f"--port={port}"]
    def hear_ctrl_c(): signal.signal(signal.SIGINT, signal.SIG_DFL) # which a process in the background does not
    with open(folder/"log", "w") as log: process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, preexec_fn=hear_ctrl_c if sys.platform != "win32" else None)
    wait_for(port, process)
    yield process, port
    process.kill()


def test_only_this_computer(app):
    "It listens to 127.0.0.1, whatever a configuration file says, and refuses a foreign name."
    process, port = app
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert {c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"} == {"127.0.0.1"}
    foreign = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    foreign.request("GET", "/", headers={"Host": "evil.example"})
    assert foreign.getresponse().status == 403


@pytest.mark.parametrize("argv, status, message", [(["--ip=0.0.0.0"], 1, "unrecognized arguments: --ip"), ([], 1, "there is no latest model"), (["--split=dev"], 1, "there is no split 'dev'")])
def test_refuses(argv, status, message, tmp_path, monkeypatch, capsys):
    "No option opens it to others; what is missing is said where the command was typed."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rclip_app", *argv])
    with pytest.raises(SystemExit) as e: main()
    assert e.value.code == status and message in capsys.readouterr().err


def upload(page, path):
    with page.expect_file_chooser() as chooser: page.get_by_role("button", name="your own").click()
    chooser.value.set_files(path)


def use(page, tmp_path):
    "What a user does, by keyboard where that is possible."
    box, heat = page.locator(".rclip"), page.locator(".rclip img.heat")
    heading, alert = box.get_by_text("nearest to:"), box.get_by_role("alert")
    cards = box.get_by_role("button", name=re.compile(r"^\d+: cosine"))
    box.get_by_label("phrase").fill("large heart")
    page.keyboard.press("Enter")
    api.expect(heat).to_have_count(2)
    api.expect(heading).to_have_text("Radiographs nearest to: large heart")
    api.expect(cards).to_have_count(4)
    api.expect(box.locator("span[title^='+'], span[title^='-']").first).to_be_visible()
    first = box.locator("small").locator("..").inner_text()
    cards.nth(1).focus()
    page.keyboard.press("Enter")
    api.expect(box.locator("small").locator("..")).not_to_have_text(first)
    box.locator(".noUi-handle").nth(1).focus()
    page.keyboard.press("ArrowLeft")
    api.expect(heat.first).to_have_css("opacity", "0.6")
    (tmp_path/"broken.png").write_bytes(b"no picture")
    upload(page, tmp_path/"broken.png")
    api.expect(alert).to_contain_text("broken.png is no PNG, JPEG or DICOM that can be read")
    api.expect(heading).to_have_text("Radiographs nearest to: large heart")
    load_studies("phantom", phantoms=24, image_size=64)[0]["frontal"].save(tmp_path/"own.png")
    upload(page, tmp_path/"own.png")
    api.expect(heading).to_have_text("Reports nearest to: file own.png")
    api.expect(alert).to_have_count(0)
    box.get_by_label("asked").select_option("large heart")
    api.expect(heading).to_have_text("Radiographs nearest to: large heart")
    page.wait_for_function("[...document.querySelectorAll('.rclip img')].every(i => i.naturalWidth > 0)")


def save(page):
    "The answer as a picture: by keyboard, since pictures that still arrive move the button."
    box = page.locator(".rclip")
    with page.expect_download() as saved:
        box.get_by_role("button", name="save figure").press("Enter")
        box.get_by_role("link", name="large-heart.png").press("Enter")
    assert Path(saved.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_page(app, page, tmp_path):
    "As a page of its own: usable, also on a telephone, and what reports hold stays text."
    page.goto(f"http://127.0.0.1:{app[1]}/")
    page.get_by_label("phrase").wait_for(timeout=90_000)
    use(page, tmp_path)
    save(page)
    assert page.locator(".rclip").get_by_text("<script>document.title").count() and page.locator(".rclip script, .rclip img[src=x]").count() == 0
    assert page.title() != "evil"
    names = []
    page.get_by_label("phrase").focus()
    for _ in range(20):
        names.append(page.evaluate("(e => e.tagName + ' ' + (e.innerText || e.title || e.ariaLabel || e.placeholder))(document.activeElement)"))
        page.keyboard.press("Tab")
    assert all(any(word in name for name in names) for word in ("large heart", "(nothing)", "id of a study", "any", "your own", "1: cosine", "4: cosine", "save figure")), names
    page.set_viewport_size(dict(width=390, height=844))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no Ctrl-C to one process")
def test_ctrl_c_ends_it(app):
    process, port = app
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with the last section of 05_gradcam, and a small run where it looks for one: the port."
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    (folder/"nbs").mkdir()
    notebook = json.loads((Path(__file__).parents[1]/"05_gradcam.ipynb").read_text(encoding="utf-8"))
    imports = [cell for cell in notebook["cells"] if re.match(r"(#\| export\n)?(import|from) ", "".join(cell["source"]))]
    last = next(i for i, cell in enumerate(notebook["cells"]) if "## The demo, seen" in "".join(cell["source"]))
    own = dict(cell_type="code", id="own", metadata={}, execution_count=None, outputs=[],
               source="from radiology_clip_mini.gradcam import *\nfrom radiology_clip_mini.gradcam import _pick_study")
    notebook["cells"] = [*imports[:2], own] + [cell for cell in notebook["cells"][last:] if "nbdev_export" not in "".join(cell["source"])]
    (folder/"nbs/05_gradcam.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    train(folder, "--data.phantoms=120", "--data.views=any")
    settings = folder/"settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}') # else what is out of sight is not on the page
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}"]
    with open(folder/"log", "w") as log: process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=os.environ | dict(JUPYTERLAB_SETTINGS_DIR=str(folder/"settings")))
    wait_for(port, process)
    yield port
    process.terminate()
    process.wait(timeout=30)


def test_lab(lab, page, tmp_path):
    "JupyterLab opens 05_gradcam, runs its last section, and its explorer answers."
    page.goto(f"http://127.0.0.1:{lab}/lab/tree/nbs/05_gradcam.ipynb?reset")
    page.locator(".jp-RenderedMarkdown h2").first.wait_for(timeout=60_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached", timeout=90_000) # cells sent before are lost
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    try: page.get_by_label("phrase").wait_for(timeout=240_000)
    except api.TimeoutError as e: raise AssertionError(f"no explorer came; the page says: {page.inner_text('body')[:2000]}") from e
    use(page, tmp_path)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").get_by_text("Traceback").count() == 0
