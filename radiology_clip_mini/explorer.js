// The page of the explorer: it draws what Python says, and tells Python what the user does.
// All text of reports is put in as text, never as HTML.
const make = (tag, attributes = {}, ...inside) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value);
  node.append(...inside);
  return node;
};
const choice = (label, options, onchange) =>
  make("label", {}, label, make("select", { "aria-label": label, onchange },
    ...options.map(([text, value]) => make("option", { value }, text))));
const field = (label, attributes) => make("label", {}, label, make("input", { "aria-label": label, ...attributes }));

function boxesOf(picture) { // What was drawn where, as frames in a drawing of the picture's size
  const [w, h] = picture.size, frame = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  frame.setAttribute("viewBox", `0 0 ${w} ${h}`);
  for (const [label, x0, y0, x1, y1] of picture.boxes) {
    const box = frame.appendChild(document.createElementNS(frame.namespaceURI, "rect"));
    Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 }).forEach(([name, v]) => box.setAttribute(name, v));
    box.appendChild(document.createElementNS(frame.namespaceURI, "title")).textContent = label;
  }
  return frame;
}
const film = (picture, map) => make("figure", {},
  make("div", { class: "film", tabindex: 0, "aria-label": `${picture.title}; plus, minus and 0 zoom` },
    make("div", { class: "sheet" }, make("img", { src: picture.src, alt: picture.title, draggable: "false" }),
      map ? make("img", { class: "heat", src: map, alt: "", draggable: "false" }) : "", boxesOf(picture)),
    picture.right ? make("b", { "aria-label": "patient's right" }, "R") : ""),
  make("figcaption", {}, picture.title));

function card(item, n, panel, open) {
  const name = `${n + 1}: cosine ${item.score.toFixed(2)}${item.own ? ", its own" : ""}`;
  const inside = item.src ? make("img", { src: item.src, alt: "" }) : make("span", { class: "text" }, item.text);
  return make("button", { class: item.own ? "card own" : "card", "aria-label": name, "data-id": item.id,
    title: `open study ${item.id}`, onclick: () => open(panel, n) }, inside, make("small", {}, `${name} · ${item.id}`));
}

function keys(event) { // Arrow keys go through the answers of a question, and open them
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const cards = [...event.currentTarget.querySelectorAll(".card")], now = cards.indexOf(document.activeElement);
  const next = step && now >= 0 && cards[now + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
  next.click();
}

function viewer(root) { // Zoom by wheel or keys, move by dragging; window and level by dragging with Shift
  const view = { zoom: 1, x: 0, y: 0, bright: 1, contrast: 1 };
  const show = () => Object.entries(view).forEach(([name, v]) => root.style.setProperty(`--${name}`, v));
  const change = (values) => { Object.assign(view, values); show(); };
  const reset = () => change({ zoom: 1, x: 0, y: 0, bright: 1, contrast: 1 });
  const zoom = (factor) => change({ zoom: Math.min(8, Math.max(1, view.zoom * factor)) });
  const onFilm = (event) => event.target.closest(".film");
  root.addEventListener("wheel", (event) => {
    if (!onFilm(event)) return;
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }, { passive: false });
  root.addEventListener("pointermove", (event) => {
    if (!onFilm(event) || !event.buttons) return;
    const [dx, dy] = [event.movementX, event.movementY];
    if (event.shiftKey) change({ contrast: Math.max(.2, view.contrast + dx / 150), bright: Math.max(.2, view.bright - dy / 150) });
    else change({ x: view.x + dx, y: view.y + dy });
  });
  root.addEventListener("dblclick", (event) => { if (onFilm(event)) reset(); });
  root.addEventListener("keydown", (event) => {
    const act = onFilm(event) && { "+": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: reset }[event.key];
    if (act) { event.preventDefault(); act(); }
  });
  reset();
}

function render({ model, el }) {
  const setup = model.get("setup");
  const root = make("div", { class: "rclip", style: "--heat: .65",
    onfocusin: (event) => event.target.setAttribute("data-lm-suppress-shortcuts", "") }); // keys are ours, not JupyterLab's
  const named = (text, n) => n ? `${text} (${n.toLocaleString()})` : text; // a finding and how many studies have it
  const findings = [["all studies", ""], ...setup.findings.map(([name, n]) => [named(name, n), name])];
  const methods = Object.entries(setup.methods).map(([method, name]) => [name, method]);
  const form = { k: setup.k, finding: "", method: methods[0][1], find: "" };
  const say = (what, buffers) => { root.classList.add("busy"); model.send({ ...form, ...what }, undefined, buffers); };
  const link = (question) => { if (setup.linked) history.replaceState(null, "", `#${new URLSearchParams(question)}`); };
  const ask = (question) => { link(question); say(question); };
  let place = { panel: 0, n: 0 }; // of the answer that is open
  const open = (panel, n) => { place = { panel, n }; say({ do: "open", ...place }); };

  let timer; // a phrase is asked when typing stops, or at once with Enter
  const words = () => ({ do: "phrase", phrase: phrase.value, minus: minus.value, second: second.value });
  const typed = {
    oninput: () => { clearTimeout(timer); timer = setTimeout(() => phrase.value.trim() && ask(words()), 450); },
    onkeydown: (event) => { if (event.key === "Enter") { clearTimeout(timer); ask(words()); } } };
  const texts = [["phrase", "e.g. large heart"], ["minus", "(nothing)"], ["second phrase", "to compare with"]]
    .map(([label, placeholder]) => field(label, { type: "search", placeholder, ...typed }));
  const [phrase, minus, second] = texts.map((label) => label.lastChild);
  const setPhrase = (text = "", less = "", other = "") => { [phrase.value, minus.value, second.value] = [text, less, other]; };
  const chips = setup.examples.map(([text, n]) => make("button", { class: "chip",
    onclick: () => { setPhrase(text); ask(words()); } }, named(text, n)));

  const askStudy = (event) => event.target.value && ask({ do: "study", study: event.target.value });
  const ids = make("datalist", { id: `ids-${model.model_id ?? "rclip"}` }, ...setup.ids.map((value) => make("option", { value })));
  const study = field("radiograph", { list: ids.id, placeholder: "id of a study", onchange: askStudy });
  const any = make("button", { title: "a radiograph at random", onclick: () => say({ do: "any" }) }, "any");
  const send = async (file) => file && say({ do: "file", name: file.name }, [await file.arrayBuffer()]);
  const picker = make("input", { type: "file", accept: ".png,.jpg,.jpeg,.dcm", hidden: "",
    onchange: async () => { await send(picker.files[0]); picker.value = ""; } });
  const own = make("button", { title: "PNG, JPEG or DICOM; or drop a file anywhere", onclick: () => picker.click() }, "your own");
  const setting = (name, label, options, then = () => say({ do: "again" })) =>
    choice(label, options, (event) => { form[name] = event.target.value; then(); });
  const k = field("results", { type: "range", min: 1, max: setup.most, value: setup.k,
    onchange: (event) => { form.k = +event.target.value; say({ do: "again" }); } });
  const asked = choice("asked", [], (event) => say({ do: "old", name: event.target.value }));
  const heat = field("heat map", { type: "range", min: 0, max: 1, step: .05, value: .65,
    oninput: (event) => root.style.setProperty("--heat", event.target.value) });
  const save = make("button", { onclick: () => say({ do: "save" }) }, "save figure");
  const line = (...inside) => make("div", { class: "line" }, ...inside);
  const message = make("div", { class: "error", role: "alert", hidden: "" });
  const gone = make("div", { class: "error", role: "status", hidden: "" },
    "The program behind this page has ended. Start it again with rclip_app, then reload.");
  const panels = make("div", { class: "panels" });
  const films = make("div", { class: "films" }), report = make("div", { class: "report" });
  const opened = make("div", { class: "opened", hidden: "" }, films, report);

  root.append(line(...texts), line(...chips), line(study, ids, any, own, picker, k, setting("finding", "among", findings),
    setting("find", "look for", [["reports", ""], ["radiographs", "image_emb"]]), asked), gone, message, panels, opened,
    line(heat, setting("method", "map by", methods, () => open(place.panel, place.n)), save));
  root.addEventListener("dragover", (event) => event.preventDefault());
  root.addEventListener("drop", (event) => { event.preventDefault(); send(event.dataTransfer.files[0]); });
  viewer(opened);

  const mark = () => {
    const { id } = model.get("opened");
    opened.hidden = !id;
    root.querySelectorAll(".card").forEach((c) => c.toggleAttribute("data-open", c.dataset.id === id));
  };
  const show = { // what is drawn when a value of Python changes
    message: (text) => { message.textContent = text; message.hidden = !text; },
    answers: (found) => {
      place = { panel: 0, n: 0 };
      panels.replaceChildren(...found.map((panel, p) => make("section", { onkeydown: keys },
        make("h4", {}, panel.title, " ", make("small", {}, panel.note)),
        make("div", { class: "grid" }, ...panel.cards.map((item, n) => card(item, n, p, open))))));
      mark();
    },
    asked: (names) => asked.lastChild.replaceChildren(...names.map((value) => make("option", { value }, value))),
    opened: mark,
    maps: (maps) => films.replaceChildren(...(model.get("opened").pictures ?? []).map((picture, n) => film(picture, maps[n]))),
    words: (pieces) => {
      const most = Math.max(...pieces.map(([, worth]) => Math.abs(worth)), 1e-9);
      const colour = (worth) => `rgba(${worth > 0 ? "230,140,0" : "40,120,220"},${.5 * Math.abs(worth) / most})`;
      const marked = pieces.flatMap(([word, worth]) => [make("span", { title: worth ? worth.toFixed(3) : null,
        style: `background:${colour(worth)};text-decoration:${worth > .25 * most ? "underline" : "none"}` }, word), " "]);
      report.replaceChildren(make("b", {}, model.get("opened").title ?? ""), make("p", {}, ...marked),
        make("small", {}, "Orange, underlined: drew the report nearer to the question. Blue: held it off."));
    },
  };
  for (const [name, draw] of Object.entries(show)) {
    model.on(`change:${name}`, () => draw(model.get(name)));
    draw(model.get(name));
  }
  model.on("msg:custom", (said, buffers) => {
    if (said.done) root.classList.remove("busy");
    if (!said.save) return;
    const name = said.save.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60); // of the question
    make("a", { download: `${name}.png`, href: URL.createObjectURL(new Blob(buffers, { type: "image/png" })) }).click();
  });
  if (setup.linked) { // a page of its own: its address holds the question, and it notices when the program ends
    const question = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
    if (question.do) { setPhrase(question.phrase, question.minus, question.second); say(question); }
    const check = () => fetch(setup.linked, { method: "HEAD", cache: "no-store" }).then(() => (gone.hidden = true), () => (gone.hidden = false));
    const clock = setInterval(check, 5000);
    el.append(root);
    return () => clearInterval(clock);
  }
  el.append(root);
}
export default { render };
