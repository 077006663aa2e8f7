"""The explorer in a real browser: in JupyterLab, and as the page of `rclip_app`. Skipped where there is no browser."""
import http.client, json, os, re, shutil, signal, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pandas as pd
import pytest

from radiology_clip_mini.lab.cli import app_command
from radiology_clip_mini.base.collections import load_studies

psutil = pytest.importorskip("psutil")
pytest.importorskip("voila", reason="no Voilà: pip install 'radiology-clip-mini[app]'")
api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
api.expect.set_options(timeout=60_000) # the kernel may still be busy with the notebook's last cells

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser", "chrome"))), None)
EVIL = "<script>document.title = 'evil'</script> <img src=x onerror=\"document.title = 'evil'\">"
SMALL = ["--config", "demo", "--data.image_size=64", "--train.epochs=1", "--data.test_fraction=.4", "--paths.results_dir=results/demo"]


def train(folder, *argv):
    done = subprocess.run([sys.executable, "-m", "radiology_clip_mini", "train", *SMALL, *argv], cwd=folder, capture_output=True, text=True)
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
    page.set_default_timeout(60_000)
    page.set_default_navigation_timeout(180_000) # a page is there when its kernel has run it, beside the other tests
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
    command = [Path(sys.executable).parent/"rclip_app", "--results_dir=results/demo", "--no_browser", f"--port={port}"]
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


def test_foreign_page(app):
    "A page from another origin gets no connection to the kernel, one from here does."
    with urllib.request.urlopen(f"http://127.0.0.1:{app[1]}/", timeout=90) as response: html = response.read().decode()
    kernel = re.search(r'"kernelId": ?"([0-9a-f-]+)"', html)[1]
    def knock(origin):
        connection = http.client.HTTPConnection("127.0.0.1", app[1], timeout=30)
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="}
        connection.request("GET", f"/api/kernels/{kernel}/channels", headers=upgrade | {"Origin": origin})
        return connection.getresponse().status
    assert [knock(origin) for origin in ("http://evil.example", f"http://127.0.0.1:{app[1]}")] == [403, 101]


@pytest.mark.parametrize("argv, status, message", [(["--ip=0.0.0.0"], 1, "unrecognized arguments: --ip"), ([], 1, "there is no latest model"), (["--split=dev"], 1, "there is no split 'dev'")])
def test_refuses(argv, status, message, tmp_path, monkeypatch, capsys):
    "No option opens it to others; what is missing is said where the command was typed."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rclip_app", *argv])
    with pytest.raises(SystemExit) as e: app_command()
    assert e.value.code == status and message in capsys.readouterr().err


def upload(page, path):
    with page.expect_file_chooser() as chooser: page.get_by_role("button", name="your own").click()
    chooser.value.set_files(path)


def drop(page, path):
    "A file dropped on the page."
    files = page.evaluate_handle("([name, bytes]) => { const d = new DataTransfer(); d.items.add(new File([new Uint8Array(bytes)], name)); return d }",
                                 [path.name, list(path.read_bytes())])
    page.dispatch_event(".rclip .panels", "drop", dict(dataTransfer=files))


def use(page, tmp_path):
    "What a user does, by keyboard and by mouse."
    box, heat = page.locator(".rclip"), page.locator(".rclip img.heat")
    heading, alert, phrase = box.locator("h4"), box.get_by_role("alert"), box.get_by_label("phrase", exact=True)
    cards = box.get_by_role("button", name=re.compile(r"^\d+: cosine"))
    api.expect(heading).to_contain_text("Radiographs nearest to:") # it opens with an answer
    api.expect(heat).to_have_count(1) # on the frontal view, the only one that this model sees
    n_maps = heat.count()
    chip = box.locator(".chip").first
    name = chip.inner_text().split(" (")[0]
    chip.click()
    api.expect(heading).to_contain_text(f"Radiographs nearest to: {name}")
    phrase.fill("large heart") # asked when typing stops
    api.expect(heading).to_contain_text("Radiographs nearest to: large heart")
    api.expect(cards).to_have_count(6)
    api.expect(box.locator(".report span[title]").first).to_be_visible()
    api.expect(box).not_to_have_class(re.compile("busy"))
    report = box.locator(".report").inner_text()
    cards.nth(0).focus()
    page.keyboard.press("ArrowRight")
    api.expect(cards.nth(1)).to_be_focused()
    api.expect(cards.nth(1)).to_have_attribute("data-open", "")
    api.expect(box.locator(".report")).not_to_have_text(report)
    cards.nth(2).click()
    api.expect(cards.nth(2)).to_have_attribute("data-open", "")
    for method in ("Grad-CAM", "against the mean"): # the answer that is open stays open
        box.get_by_label("map by").select_option(method)
        api.expect(box).not_to_have_class(re.compile("busy"))
        api.expect(cards.nth(2)).to_have_attribute("data-open", "")
    box.get_by_label("heat map").focus()
    page.keyboard.press("ArrowLeft")
    api.expect(heat.first).to_have_css("opacity", "0.6")
    (tmp_path/"broken.png").write_bytes(b"no picture")
    upload(page, tmp_path/"broken.png")
    api.expect(alert).to_contain_text("broken.png is no PNG, JPEG or DICOM that can be read")
    api.expect(heading).to_contain_text("Radiographs nearest to: large heart")
    load_studies("phantom", phantoms=24, image_size=64)[0]["frontal"].save(tmp_path/"own.png")
    upload(page, tmp_path/"own.png")
    api.expect(heading).to_contain_text("Reports nearest to: file own.png")
    api.expect(alert).to_have_count(0)
    box.get_by_label("look for").select_option("radiographs")
    api.expect(heading).to_contain_text("Radiographs nearest to: file own.png")
    box.get_by_label("look for").select_option("reports")
    phrase.press("Enter") # the same words again, after something else was asked
    api.expect(heading).to_contain_text("Radiographs nearest to: large heart")
    (tmp_path/"own.png").rename(tmp_path/"dropped.png")
    drop(page, tmp_path/"dropped.png")
    api.expect(heading).to_contain_text("Reports nearest to: file dropped.png")
    box.get_by_label("asked").select_option("large heart")
    api.expect(heading).to_contain_text("Radiographs nearest to: large heart")
    box.get_by_label("second phrase").fill("small heart")
    api.expect(heading).to_have_count(2)
    api.expect(heat).to_have_count(2*n_maps)
    api.expect(box).not_to_have_class(re.compile("busy"))
    box.get_by_label("second phrase").fill("")
    api.expect(heading).to_have_count(1)
    page.wait_for_function("[...document.querySelectorAll('.rclip img')].every(i => i.naturalWidth > 0)")


def look_closer(page):
    "Zoom by keys and wheel, moving by dragging, window and level by dragging with Shift, and back."
    film, style = page.locator(".rclip .film").first, lambda name: float(page.locator(".rclip .opened").evaluate(f"e => e.style.getPropertyValue('--{name}')"))
    film.focus()
    page.keyboard.press("+")
    assert style("zoom") == pytest.approx(1.3)
    film.hover()
    page.mouse.wheel(0, -100)
    page.wait_for_function("document.querySelector('.rclip .opened').style.getPropertyValue('--zoom') > 1.4")
    x, y = (film.bounding_box()[side] + 60 for side in ("x", "y"))
    for key in (None, "Shift"):
        if key: page.keyboard.down(key)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 30, y + 15)
        page.mouse.up()
        if key: page.keyboard.up(key)
    assert (style("x"), style("y")) == (30, 15) and style("contrast") > 1 > style("bright")
    film.focus()
    page.keyboard.press("0")
    assert [style(name) for name in ("zoom", "x", "y", "bright", "contrast")] == [1, 0, 0, 1, 1]


def save(page):
    "The answer as a picture."
    with page.expect_download() as saved: page.locator(".rclip").get_by_role("button", name="save figure").press("Enter")
    assert saved.value.suggested_filename == "large-heart.png" and Path(saved.value.path()).read_bytes()[:4] == b"\x89PNG"


def test_page(app, page, tmp_path):
    "As a page of its own: usable, also on a telephone; what reports hold stays text, and nothing is asked of other computers."
    answered = set()
    page.on("response", lambda response: answered.add(response.url.split(":")[0] + ":" + response.url.split("/")[2]))
    page.goto(f"http://127.0.0.1:{app[1]}/")
    page.locator(".rclip .card").first.wait_for(timeout=90_000)
    use(page, tmp_path)
    look_closer(page)
    save(page)
    assert {place for place in answered if place.startswith("http")} == {f"http:127.0.0.1:{app[1]}"}
    assert page.locator(".rclip").get_by_text("<script>document.title").count() and page.locator(".rclip script, .rclip img[src=x]").count() == 0
    assert page.title() != "evil"
    names = []
    page.get_by_label("phrase", exact=True).focus()
    for _ in range(40):
        names.append(page.evaluate("(e => e.tagName + ' ' + (e.ariaLabel || e.innerText || e.title))(document.activeElement)"))
        page.keyboard.press("Tab")
    assert all(any(word in name for name in names) for word in ("phrase", "minus", "radiograph", "any", "your own", "1: cosine", "6: cosine", "heat map", "save figure")), names
    page.set_viewport_size(dict(width=1440, height=1000))
    right = max(box["x"] + box["width"] for box in (card.bounding_box() for card in page.locator(".rclip .card").all()))
    assert right > 1380 # the answers fill the window
    page.set_viewport_size(dict(width=390, height=844))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_link(app, page):
    "The address holds the question, so a link opens it again."
    page.goto(f"http://localhost:{app[1]}/#do=phrase&phrase=nodule&second=effusion")
    headings = page.locator(".rclip h4")
    api.expect(headings).to_have_count(2, timeout=90_000)
    assert [text.strip() for text in headings.all_inner_texts()] == ["Radiographs nearest to: nodule", "Radiographs nearest to: effusion"]
    assert page.get_by_label("second phrase").input_value() == "effusion"
    page.locator(".rclip .chip").first.click()
    api.expect(headings).to_have_count(1)
    assert "phrase=nodule" not in page.url and "do=phrase" in page.url


CONTRAST = """() => { // The least contrast of any text on the page, as WCAG 2 counts it, and how bright the page is
  const numbers = (colour) => { const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const under = (node) => {
    if (!node) return [255, 255, 255];
    const [r, g, b, a] = numbers(getComputedStyle(node).backgroundColor);
    return a === 1 ? [r, g, b] : under(node.parentElement).map((below, i) => a * [r, g, b][i] + (1 - a) * below);
  };
  const bright = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const texts = [...document.querySelectorAll(".rclip *")].filter((node) => node.offsetParent &&
    [...node.childNodes].some((part) => part.nodeType === 3 && part.textContent.trim()));
  const contrasts = texts.map((node) => {
    const pair = [bright(numbers(getComputedStyle(node).color).slice(0, 3)), bright(under(node))];
    return (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
  });
  return [Math.min(...contrasts), bright(under(document.querySelector(".rclip"))), document.documentElement.scrollWidth - innerWidth];
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_light_and_dark(app, page, theme, width):
    "All text can be read in both themes, and no page is wider than its window."
    page.set_viewport_size(dict(width=width, height=1000))
    page.goto(f"http://127.0.0.1:{app[1]}/?theme={theme}")
    api.expect(page.locator(".rclip .heat")).not_to_have_count(0)
    api.expect(page.locator(".rclip .opened span").first).to_be_visible()
    contrast, brightness, too_wide = page.evaluate(CONTRAST)
    assert contrast > 4.5 and too_wide == 0
    assert (brightness > .8) == (theme == "light") and (brightness < .2) == (theme == "dark")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no Ctrl-C to one process")
def test_ctrl_c_ends_it(app, page):
    "Ctrl-C ends all of it, and a page that is still open says so."
    process, port = app
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator(".rclip .card").first.wait_for(timeout=90_000)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert not psutil.wait_procs(family, timeout=10)[1]
    api.expect(page.get_by_text("The program behind this page has ended")).to_be_visible(timeout=30_000)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab with the last section of 05_gradcam, and a small run where it looks for one: the port."
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    (folder/"nbs").mkdir()
    notebook = json.loads((Path(__file__).parents[1]/"05_gradcam.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    imports = [cell for cell, source in zip(notebook["cells"], sources) if re.match(r"(#\| (export|hide)\n)?(import|from) ", source) and "git clone" not in source]
    last = next(i for i, cell in enumerate(notebook["cells"]) if "## The explorer over the demo" in "".join(cell["source"]))
    source = "from radiology_clip_mini.gradcam import *\ndemo = load_run(results_dir='../results/demo')\ndemo_gallery = make_gallery(demo.model, demo.data)"
    own = dict(cell_type="code", id="own", metadata={}, execution_count=None, outputs=[], source=source)
    end = next(i for i, source in enumerate(sources) if "## Limits" in source)
    notebook["cells"] = [*imports[:2], own, *notebook["cells"][last:end]]
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
    for _ in range(4): # on a busy machine the first request may be lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try: page.locator(".rclip .card").first.wait_for(timeout=90_000)
        except api.TimeoutError: continue
        break
    else: raise AssertionError(f"no explorer came; the page says: {page.inner_text('body')[:2000]}")
    use(page, tmp_path)
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").get_by_text("Traceback").count() == 0
