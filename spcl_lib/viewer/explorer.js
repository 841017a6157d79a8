// Draws the explorer of heatmaps: in a notebook through anywidget, and in a page without a kernel.
//
// A source gives the data: `header`, `record(run, image)` and `predict(run, image, box, flipped)`.
// Python answers in a notebook; a page has the answers inside. explorer_page.py describes them.

const LEAST = 0.06; // least side of a crop, as a fraction of the image's
const STEP = 0.02; // of an arrow key
const SIDE = 240; // pixels of a heatmap
const SHARP = 640; // pixels of the longer side of a canvas
const WHOLE = [0, 0, 1, 1];

// --- numbers, as in the library ------------------------------------------------------------------

/** Cells (G * G) of a map (W * W) that a crop shows, by bilinear interpolation. */
export function cropMap(map, size, box, flipped, grid) {
  const axis = (low, high, mirror) => Array.from({ length: grid }, (_, g) => {
    const centre = (mirror ? grid - g - 0.5 : g + 0.5) / grid;
    const at = Math.min(Math.max((low + centre * (high - low)) * size - 0.5, 0), size - 1);
    const first = Math.floor(at);
    return [first, Math.min(first + 1, size - 1), at - first];
  });
  const columns = axis(box[0], box[2], flipped), cells = new Float32Array(grid * grid);
  axis(box[1], box[3], false).forEach(([top, bottom, down], y) => {
    columns.forEach(([left, right, along], x) => {
      const row = (r) => (1 - along) * map[r * size + left] + along * map[r * size + right];
      cells[y * grid + x] = (1 - down) * row(top) + down * row(bottom);
    });
  });
  return cells;
}

/** Heatmap (0..255) and seen cells (0, 1) through a crop: `HeatmapBank.read`. */
export function readHeatmap(heat, seen, size, box, flipped, grid) {
  const weight = cropMap(seen, size, box, flipped, grid);
  const mask = Uint8Array.from(weight, (w) => w >= 0.5 - 1e-6);
  const values = cropMap(heat, size, box, flipped, grid)
    .map((v, i) => (mask[i] ? Math.min(1, v / (255 * weight[i])) : 0));
  return { values, mask };
}

/** Share of a region's pixels (S * S, 0 or 1) whose centres a crop shows: `visible_fraction`. */
export function visibleShare(region, side, [x0, y0, x1, y1]) {
  let all = 0, shown = 0;
  region.forEach((inside, i) => {
    const x = ((i % side) + 0.5) / side, y = (Math.floor(i / side) + 0.5) / side;
    all += inside;
    shown += inside && x >= x0 && x <= x1 && y >= y0 && y <= y1;
  });
  return shown / all;
}

/** Number of the box whose corners are nearest to those of `box`. */
export function nearestBox(boxes, box) {
  const far = boxes.map((other) => other.reduce((sum, v, i) => sum + Math.abs(v - box[i]), 0));
  return far.indexOf(Math.min(...far));
}

/** Answers from a kernel. */
function liveSource(model) {
  const waiting = new Map(), own = Math.random().toString(36).slice(2);
  let count = 0;
  const receive = ({ id, answer }) => {
    waiting.get(id)?.(answer);
    waiting.delete(id);
  };
  model.on("msg:custom", receive);
  const ask = (question) => new Promise((resolve) => {
    const id = `${own}-${(count += 1)}`;
    waiting.set(id, resolve);
    model.send({ id, ...question });
  });
  return {
    header: () => ask({ kind: "header" }),
    record: (run, image) => ask({ kind: "record", run, image }),
    predict: async (run, image, box, flipped) => (
      { values: bytes(await ask({ kind: "predict", run, image, box, flipped })) }),
    close: () => model.off("msg:custom", receive),
  };
}

/** Answers that are inside a page: of a crop it knows the prediction for the nearest of some. */
function storedSource(page) {
  return {
    header: async () => page.header,
    record: async (run, image) => page.records[run][image],
    predict: async (run, image, box) => {
      const { classes, predictions } = page.records[run][image];
      const number = nearestBox(page.boxes, box), values = {};
      const stored = bytes(predictions).subarray(number * classes.length);
      classes.forEach((c, i) => { values[c] = stored[i]; });
      return { values, box: page.boxes[number] };
    },
    close: () => {},
  };
}

function bytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

function bits(text, count) {
  const packed = bytes(text);
  return Uint8Array.from({ length: count }, (_, i) => (packed[i >> 3] >> (7 - (i & 7))) & 1);
}

/** A heatmap (SIDE * SIDE) as a picture; what has not been seen is hatched. */
function paintHeat({ values, mask }, palette) {
  const own = document.createElement("canvas");
  own.width = own.height = SIDE;
  const pen = own.getContext("2d"), picture = pen.createImageData(SIDE, SIDE);
  values.forEach((value, p) => {
    const k = 3 * Math.round(255 * value), hatch = (p % SIDE + Math.floor(p / SIDE)) % 8 < 2;
    const seen = [palette[k], palette[k + 1], palette[k + 2], 255 * opacity(value)];
    picture.data.set(mask[p] ? seen : [70, 70, 70, hatch ? 128 : 0], 4 * p);
  });
  pen.putImageData(picture, 0, 0);
  return own;
}

/** Opacity of a probability: the image stays as it is at 0, and can still be seen at 1. */
const opacity = (v) => 0.6 * v ** 0.7;

function make(tag, properties = {}, ...children) {
  const { class: name = "", ...rest } = properties, element = document.createElement(tag);
  element.className = name;
  for (const [key, value] of Object.entries(rest)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function place(element, [x0, y0, x1, y1]) {
  const [left, top, width, height] = [x0, y0, x1 - x0, y1 - y0].map((v) => `${100 * v}%`);
  Object.assign(element.style, { left, top, width, height });
}

function moved([x0, y0, x1, y1], dx, dy) {
  const w = x1 - x0, h = y1 - y0;
  const x = Math.min(Math.max(x0 + dx, 0), 1 - w), y = Math.min(Math.max(y0 + dy, 0), 1 - h);
  return [x, y, x + w, y + h];
}

/** The box with a corner elsewhere; it keeps its least size. */
function resized([x0, y0, x1, y1], corner, dx, dy) {
  const west = corner.includes("w"), north = corner.includes("n");
  return [
    west ? Math.max(0, Math.min(x0 + dx, x1 - LEAST)) : x0,
    north ? Math.max(0, Math.min(y0 + dy, y1 - LEAST)) : y0,
    west ? x1 : Math.min(1, Math.max(x1 + dx, x0 + LEAST)),
    north ? y1 : Math.min(1, Math.max(y1 + dy, y0 + LEAST)),
  ];
}

/** Lets mouse, finger and keys change the box that `get` gives and `set` takes. */
function listen(crop, stage, get, set) {
  crop.addEventListener("pointerdown", (event) => {
    const first = [event.clientX, event.clientY], box = get(), { corner } = event.target.dataset;
    const move = (now) => {
      const { width, height } = stage.getBoundingClientRect();
      const by = [(now.clientX - first[0]) / width, (now.clientY - first[1]) / height];
      set(corner ? resized(box, corner, ...by) : moved(box, ...by));
    };
    crop.setPointerCapture(event.pointerId);
    crop.addEventListener("pointermove", move);
    crop.addEventListener(
      "lostpointercapture", () => crop.removeEventListener("pointermove", move), { once: true });
    crop.focus({ preventScroll: true });
    event.preventDefault();
  });
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  crop.addEventListener("keydown", (event) => {
    const by = steps[event.key]?.map((v) => v * STEP);
    if (!by) return;
    event.preventDefault();
    set(event.shiftKey ? resized(get(), "se", ...by) : moved(get(), ...by));
  });
}

/** Builds the explorer in an element; gives a function that ends it. */
export async function start(root, source) {
  root.classList.add("spcl-explorer");
  // JupyterLab would take the arrow keys for itself: version 4 after the event, older ones before.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  root.dataset.lmSuppressShortcuts = "true";
  root.replaceChildren("waiting for the kernel …");
  const header = await source.header(), palette = bytes(header.palette);
  const state = { run: 0, place: 0, epoch: header.runs[0].epochs.length - 1, class: -1,
    box: null, flipped: false };
  let record, picture, prediction = null, busy = false, changed = 0, wanted = 0, frame = 0;
  const ui = build();
  root.replaceChildren(ui.all);

  const runNow = () => header.runs[state.run], imageNow = () => runNow().order[state.place];

  function build() {
    const button = (name, text, title, onclick) => make(
      "button", { class: `spcl-${name}`, type: "button", title, onclick }, text);
    const run = make("select", { class: "spcl-run", onchange: changeRun },
      ...header.runs.map(({ name }, value) => make("option", { value }, name)));
    const count = make("output", { class: "spcl-image" });
    const epochText = make("output", { class: "spcl-epoch-text" });
    const epoch = make("input", { class: "spcl-epoch", type: "range", min: 0, "aria-label": "epoch",
      oninput: () => { state.epoch = Number(epoch.value); draw(); } });
    const crop = make("div", { class: "spcl-crop", tabIndex: 0, role: "application",
      "aria-roledescription": "crop" });
    crop.append(...["nw", "ne", "sw", "se"].map(
      (corner) => make("span", { class: `spcl-${corner}`, "data-corner": corner })));
    const image = make("canvas", { role: "img" }), target = make("canvas", { role: "img" });
    const near = make("div", { class: "spcl-near" }), group = `spcl-${Math.random()}`;
    const stage = make("div", { class: "spcl-stage" }, image, near, crop);
    listen(crop, stage, () => state.box, (box) => setView(box, state.flipped));
    const lose = button("lose", "lose the label", "a crop that does not show the label",
      () => setView(record.lost, false));
    const flip = make("input", { class: "spcl-flip", type: "checkbox",
      onchange: () => setView(state.box, flip.checked) });
    const title = make("figcaption"), cropTitle = make("figcaption"), body = make("tbody");
    const table = make("table", {}, make("thead", {}, make("tr", {},
      make("th", {}, "class"), make("th", {}, "in crop"), make("th", {},
        make("b", { class: "spcl-blue" }, "target"), ", ",
        make("b", { class: "spcl-orange" }, "prediction"), ": highest cell"))), body);
    const all = make("div", {},
      make("div", { class: "spcl-row" }, make("label", {}, "run ", run),
        make("span", {}, button("before", "‹", "the image before", () => go(state.place - 1)),
          count, button("next", "›", "the next image", () => go(state.place + 1))),
        make("label", {}, "epoch"), epoch, epochText),
      make("div", { class: "spcl-row" },
        button("whole", "whole image", "no crop, no flip", () => setView(WHOLE, false)),
        lose, make("label", {}, flip, "flip"),
        make("span", {}, "probability 0 ", make("span", { class: "spcl-scale" }), " 1")),
      make("div", { class: "spcl-panels" },
        make("figure", {}, title, make("div", { class: "spcl-frame" }, stage)),
        make("figure", {}, cropTitle, make("div", { class: "spcl-frame" }, target)),
        make("div", { class: "spcl-table" }, table)),
      make("p", { class: "spcl-help" }, "Drag the crop or its corners. Keys: arrows move it, shift "
        + "and arrows resize it. Dashed: the crop of the prediction. Hatched: not seen yet."));
    return { all, run, count, epoch, epochText, crop, near, image, target, stage, lose, flip,
      title, cropTitle, body, group };
  }

  function changeRun() {
    const image = imageNow();
    state.run = Number(ui.run.value);
    state.epoch = runNow().epochs.length - 1;
    go(runNow().order.indexOf(image), state.class);
  }

  async function go(place, kept = -1) {
    const own = (wanted += 1);
    state.place = Math.min(Math.max(place, 0), runNow().order.length - 1);
    ui.count.textContent = ` image ${state.place + 1} of ${runNow().order.length} `;
    ui.body.classList.add("spcl-waiting");
    const found = await source.record(state.run, imageNow()), loaded = new Image();
    loaded.src = found.picture;
    await loaded.decode();
    if (own !== wanted) return; // a person has gone on to another image
    const epochs = runNow().epochs.length, regions = Object.entries(found.regions ?? {});
    record = { ...found, heat: bytes(found.heat), seen: bits(found.seen, epochs * found.size ** 2),
      regions: Object.fromEntries(regions.map(([c, t]) => [c, bits(t, found.side ** 2)])) };
    [picture, prediction] = [loaded, null];
    state.class = record.classes.includes(kept) ? kept : record.start;
    ui.epoch.max = epochs - 1;
    ui.epoch.disabled = epochs < 2;
    ui.lose.disabled = !record.lost;
    const ratio = picture.width / picture.height;
    ui.image.width = Math.round(SHARP * Math.min(1, ratio));
    ui.image.height = Math.round(SHARP / Math.max(1, ratio));
    Object.assign(ui.stage.style, { aspectRatio: ratio, width: `${100 * Math.min(1, ratio)}%` });
    fillTable();
    setView(state.box ?? record.lost ?? WHOLE, state.flipped);
  }

  function setView(box, flipped) {
    state.box = box.map((v) => Math.round(Math.min(Math.max(v, 0), 1) * 1e4) / 1e4);
    state.flipped = ui.flip.checked = flipped;
    draw();
    askPrediction();
  }

  /** One question at a time; the next is of the crop that is shown then. */
  async function askPrediction() {
    changed += 1;
    ui.body.classList.add("spcl-waiting");
    if (busy) return;
    busy = true;
    for (let own = -1; own !== changed;) {
      own = changed;
      const asked = wanted;
      const answer = await source.predict(state.run, imageNow(), state.box, state.flipped);
      if (asked === wanted) prediction = answer;
    }
    busy = false;
    ui.body.classList.toggle("spcl-waiting", !prediction);
    draw();
  }

  function fillTable() {
    ui.body.replaceChildren(...record.classes.map((c) => {
      const radio = make("input", { type: "radio", name: ui.group, value: c,
        checked: c === state.class, onchange: () => { state.class = c; draw(); } });
      const known = runNow().observed[imageNow()].includes(c) ? "label"
        : header.images[imageNow()].labels.includes(c) ? "not labelled" : "";
      const bar = (kind) => make("div", { class: `spcl-bar spcl-${kind}` }, make("i"), make("b"));
      const row = make("tr", {},
        make("th", {}, make("label", {}, radio, make("span", { class: "spcl-name" },
          header.classes[c])), make("small", {}, known)),
        make("td"), make("td", {}, bar("blue"), bar("orange")));
      row.dataset.class = c;
      return row;
    }));
  }

  /** The heatmap of a class through a box: cells in 0..1, and which of them have been seen. */
  function read(c, box, flipped, grid) {
    const area = record.size ** 2, { epoch } = state;
    const first = (epoch * record.classes.length + record.classes.indexOf(c)) * area;
    return readHeatmap(record.heat.subarray(first, first + area),
      record.seen.subarray(epoch * area, (epoch + 1) * area), record.size, box, flipped, grid);
  }

  /** Draws once before the next frame, however often it is called. */
  function draw() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (record) drawNow();
    });
  }

  function drawNow() {
    const { epochs, averaged } = runNow(), name = header.classes[state.class];
    ui.epoch.value = state.epoch;
    ui.epochText.textContent = `after epoch ${epochs[state.epoch]} of ${epochs.at(-1)}`;
    ui.title.textContent = averaged ? `heatmap of “${name}”` : `the network’s map of “${name}”`;
    ui.cropTitle.textContent = averaged ? "the crop, and its target" : "the map through the crop";
    drawImage();
    drawCrop();
    for (const row of ui.body.children) fillRow(row, Number(row.dataset.class));
  }

  function drawImage() {
    const { width, height } = ui.image, pen = ui.image.getContext("2d");
    pen.drawImage(picture, 0, 0, width, height);
    pen.drawImage(paintHeat(read(state.class, WHOLE, false, SIDE), palette), 0, 0, width, height);
    place(ui.near, prediction?.box ?? state.box);
    place(ui.crop, state.box);
    const [a, b, c, d] = state.box.map((v) => v.toFixed(2));
    ui.crop.setAttribute("aria-label", `crop x ${a} to ${c}, y ${b} to ${d}`);
    ui.image.setAttribute("aria-label", header.images[imageNow()].name);
  }

  function drawCrop() {
    const [x0, y0, x1, y1] = state.box, { grid } = runNow(), canvas = ui.target;
    const w = (x1 - x0) * picture.width, h = (y1 - y0) * picture.height;
    canvas.width = Math.max(1, Math.round((SHARP * w) / Math.max(w, h)));
    canvas.height = Math.max(1, Math.round((SHARP * h) / Math.max(w, h)));
    const pen = canvas.getContext("2d");
    if (state.flipped) pen.setTransform(-1, 0, 0, 1, canvas.width, 0);
    pen.drawImage(picture, x0 * picture.width, y0 * picture.height, w, h,
      0, 0, canvas.width, canvas.height);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    const { values, mask } = read(state.class, state.box, state.flipped, grid);
    const large = readHeatmap(values.map((v) => 255 * v), mask, grid, WHOLE, false, SIDE);
    pen.drawImage(paintHeat(large, palette), 0, 0, canvas.width, canvas.height);
  }

  function fillRow(row, c) {
    const region = record.regions[c];
    const { values, mask } = read(c, state.box, state.flipped, runNow().grid);
    const known = { blue: mask.some(Boolean) ? Math.max(...values) : null,
      orange: prediction ? prediction.values[c] / 255 : null };
    row.classList.toggle("spcl-chosen", c === state.class);
    row.children[1].textContent = region
      ? `${Math.round(100 * visibleShare(region, record.side, state.box))} %` : "";
    for (const [kind, value] of Object.entries(known)) {
      const bar = row.querySelector(`.spcl-${kind}`);
      bar.querySelector("i").style.width = `${100 * (value ?? 0)}%`;
      bar.querySelector("b").textContent = value === null ? "–" : value.toFixed(2);
    }
  }

  await go(0);
  return source.close;
}

/** Shows what `explorer_page.write_explorer_page` wrote into the page. */
export function startPage(root, page) {
  return start(root, storedSource(page));
}

export default { render: ({ model, el }) => start(el, liveSource(model)) };
