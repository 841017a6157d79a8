// Draws the explorer of heatmaps: in a notebook through anywidget, and in a page without a kernel.
//
// A source gives the data: `header`, `record(run, image)` and `predict(run, image, box, flipped)`.
// Python answers in a notebook; a page has the answers inside. explorer_page.py describes them.

const LEAST = 0.06; // least side of a crop, as a fraction of the image's
const STEP = 0.02; // of an arrow key
const SIDE = 240; // pixels of an overlay
const SHARP = 640; // pixels of the longer side of a canvas
const FRAME = 700; // milliseconds of an epoch while the epochs play
const MOST = 4; // most classes that are drawn at once
const LEAST_VISIBLE = 0.1; // with less of its objects, a class is not in the crop
const CLOSE = 0.15; // target and prediction agree
const GREY = [70, 70, 70], WHITE = [255, 255, 255];
// Okabe and Ito's colours, which people with any colour vision can tell apart.
const COLOURS = [[230, 159, 0], [86, 180, 233], [204, 121, 167], [0, 158, 115]];

// --- numbers, as in the library ------------------------------------------------------------------

/** Cells (G * G) of a map (W * W) that a crop shows: `Views.crop_maps`. */
export function cropMap(map, size, box, flipped, grid) {
  const axis = (low, high, mirror) => {
    const first = new Int32Array(grid), share = new Float64Array(grid);
    for (let g = 0; g < grid; g += 1) {
      const centre = (mirror ? grid - g - 0.5 : g + 0.5) / grid;
      const at = Math.min(Math.max((low + centre * (high - low)) * size - 0.5, 0), size - 1);
      first[g] = Math.floor(at);
      share[g] = at - first[g];
    }
    return [first, share];
  };
  const [left, part] = axis(box[0], box[2], flipped), [top, share] = axis(box[1], box[3], false);
  const cells = new Float32Array(grid * grid);
  for (let y = 0; y < grid; y += 1) {
    const upper = top[y] * size, lower = Math.min(top[y] + 1, size - 1) * size;
    for (let x = 0; x < grid; x += 1) {
      const right = Math.min(left[x] + 1, size - 1);
      const low = map[upper + left[x]] + share[y] * (map[lower + left[x]] - map[upper + left[x]]);
      const high = map[upper + right] + share[y] * (map[lower + right] - map[upper + right]);
      cells[y * grid + x] = low + part[x] * (high - low);
    }
  }
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

/** Presence of a class by its cells, null if none has been seen: `Pooling.presence`. */
export function presence(values, mask, [kind, strength]) {
  const logit = (p, eps) => Math.log(Math.max(p, eps) / (1 - Math.min(p, 1 - eps)));
  const sigmoid = (s) => 1 / (1 + Math.exp(-s));
  const clip = (p, eps) => Math.min(Math.max(p, eps), 1 - eps);
  const cells = Array.from(values).filter((_, i) => mask[i]).map((p) => logit(clip(p, 1 / 512), 0));
  if (!cells.length) return null;
  const mean = (list) => list.reduce((sum, s) => sum + s, 0) / list.length;
  const pool = {
    mean: () => mean(cells),
    boost: () => mean(cells.map((s) => (s > 0 ? strength * s : s))),
    lse: () => Math.log(mean(cells.map((s) => Math.exp(strength * s)))) / strength,
    top: () => mean(cells.sort((a, b) => b - a)
      .slice(0, Math.max(1, Math.ceil(Math.fround(strength * cells.length))))),
    attention: () => {
      const shares = cells.map(Math.exp), total = shares.reduce((sum, s) => sum + s, 0);
      return cells.reduce((sum, s, i) => sum + (s * shares[i]) / total, 0);
    },
    probability: () => logit(clip(mean(cells.map(sigmoid)), 1e-6), 0),
  };
  return sigmoid(pool[kind]());
}

/** Share of a region's pixels (S * S, 0 or 1) whose centres a crop shows: `visible_fraction`. */
export function visibleShare(region, side, [x0, y0, x1, y1]) {
  let all = 0, shown = 0;
  region.forEach((inside, i) => {
    if (!inside) return;
    const x = ((i % side) + 0.5) / side, y = (Math.floor(i / side) + 0.5) / side;
    all += 1;
    shown += x >= x0 && x <= x1 && y >= y0 && y <= y1;
  });
  return all ? shown / all : null;
}

/** Number of the box that has the most in common with `box` (intersection over union). */
export function nearestBox(boxes, box) {
  const area = ([x0, y0, x1, y1]) => Math.max(0, x1 - x0) * Math.max(0, y1 - y0);
  const overlap = boxes.map((other) => {
    const both = area([Math.max(box[0], other[0]), Math.max(box[1], other[1]),
      Math.min(box[2], other[2]), Math.min(box[3], other[3])]);
    return both / (area(box) + area(other) - both);
  });
  return overlap.indexOf(Math.max(...overlap));
}

// --- words ---------------------------------------------------------------------------------------

/**
 * What the explorer shows, in a sentence, and why target and prediction differ, in others.
 *
 * `shown` has: box, flipped, epoch (a number), isLast, averaged (a run with heatmaps), seen (share
 * of the crop's cells that had been seen), usual (mean target of all classes), remark (on the
 * prediction, or ""), label (a class, or null) and classes (those that are drawn). A class has:
 * name, target and final (presence by its heatmap, now and after the last epoch, or null),
 * prediction (or null), visible (share, null if not known).
 */
export function describe(shown) {
  const { averaged, classes, epoch, label, seen } = shown;
  const [x0, y0, x1, y1] = shown.box.map((v) => v.toFixed(2));
  const facts = classes.length === 1 ? describeOne(classes[0], averaged)
    : `${averaged ? "target" : "map of the whole image"} / prediction of the finished network: `
      + (classes.map((c) => `${c.name} ${decimal(c.target)} / ${decimal(c.prediction)}`).join(", ")
        || "no class is drawn");
  const says = [`Crop x ${x0} to ${x1}, y ${y0} to ${y1}${shown.flipped ? ", flipped" : ""}.`,
    `After epoch ${epoch}, ${facts}.`, shown.remark];
  const why = [lostLabel(label, averaged)];
  if (!averaged) {
    why.push("This method keeps no heatmaps: its own maps of the whole image are drawn, and the "
      + "label alone teaches it.");
  } else if (seen === 0) {
    why.push(`No crop had shown these cells after epoch ${epoch}: there is no target yet.`);
  } else {
    const known = classes.filter((c) => c.prediction !== null);
    const equal = known.filter((c) => Math.abs(c.target - c.prediction) <= CLOSE);
    if (equal.length) {
      why.push(`Target and prediction agree on ${equal.map((c) => c.name).join(", ")}.`);
    }
    why.push(...known.filter((c) => !equal.includes(c)).map((c) => reason(c, shown)));
    if (seen < 0.995) why.push(`Only ${Math.round(100 * seen)} % of these cells had been seen.`);
  }
  return [says, why].map((parts) => parts.filter(Boolean).join(" "));
}

function decimal(p) {
  return p === null ? "–" : p.toFixed(2);
}

function describeOne({ name, target, prediction, visible }, averaged) {
  const asked = target === null ? "there is no target yet"
    : `${averaged ? "the target is" : "the map of the whole image gives"} ${decimal(target)}`;
  const parts = [`for ${name} ${asked}`];
  if (prediction !== null) parts.push(`the finished network predicts ${decimal(prediction)}`);
  if (visible !== null) parts.push(`${Math.round(100 * visible)} % of it is in the crop`);
  return parts.join(", ");
}

function lostLabel(label, averaged) {
  if (!label) return "";
  const { name, target, visible } = label, known = visible !== null;
  const lost = known ? visible < LEAST_VISIBLE : averaged && target !== null && target < 0.3;
  if (!lost) return "";
  const where = !known ? "is hardly in this crop, says its heatmap"
    : visible ? "is almost outside this crop" : "is outside this crop";
  let asked = "";
  if (averaged && target !== null) {
    asked = target < 0.5 ? `; SCL asks for ${decimal(target)} instead`
      : `, and so does its heatmap, with ${decimal(target)}`;
  }
  return `The label, ${name}, ${where}: AN still teaches “${name}” here${asked}.`;
}

/** Why target and prediction of a class differ. */
function reason({ name, target, prediction, visible, final }, { isLast, usual }) {
  const known = visible !== null, there = known && visible >= LEAST_VISIBLE;
  let why;
  if (target > prediction) {
    if (usual > 0.2 && Math.abs(target - usual) <= CLOSE) {
      why = `the heatmaps are averages that still hold the unsure first epochs: they ask for about `
        + `${decimal(usual)} of every class`;
    } else if (!known || there) {
      why = `the heatmap remembers ${name} from other crops; in this crop the network sees less of `
        + "it, and the target pulls it up";
    } else {
      why = `almost nothing of ${name} is in the crop, but the cells of a heatmap are coarse: it `
        + "is bright beyond the borders of objects";
    }
  } else if (!known || there) {
    why = `the network sees ${name} in this crop; the heatmap is an average over earlier crops, `
      + "which showed the network less of it here";
  } else {
    why = `${name} is not in the crop; the network is wrong, and the target pulls it down`;
  }
  const later = !isLast && final !== null && Math.abs(final - prediction) <= CLOSE
    ? ` By the last epoch the target is ${decimal(final)}: they meet.` : "";
  return `They differ on ${name}: ${why}.${later}`;
}

// --- sources -------------------------------------------------------------------------------------

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
    predict: async (run, image, box, flipped) => {
      const answer = await ask({ kind: "predict", run, image, box, flipped });
      return { values: bytes(answer) };
    },
    close: () => model.off("msg:custom", receive),
  };
}

/** Answers that are inside a page: of a crop it knows the prediction for the nearest of some. */
function storedSource(page) {
  return {
    header: async () => page.header,
    record: async (run, image) => page.records[run][image],
    predict: async (run, image, box, flipped) => {
      const record = page.records[run][image], number = nearestBox(page.boxes, box);
      const count = record.classes.length;
      const values = new Float32Array(page.header.classes.length);
      const stored = bytes(record.predictions).subarray(number * count, (number + 1) * count);
      record.classes.forEach((c, i) => { values[c] = stored[i]; });
      const nearest = page.boxes[number];
      const exact = !flipped && box.every((v, i) => Math.abs(v - nearest[i]) < 1e-3);
      return { values, box: exact ? null : nearest, among: page.boxes.length };
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

// --- pictures ------------------------------------------------------------------------------------

/** Opacity of a probability: the image stays as it is at 0, and can still be seen at 1. */
const opacity = (v) => 0.6 * v ** 0.7;

/** Heatmaps (SIDE * SIDE each) as a picture; a line surrounds what is above 0.5. */
function paintHeat(layers, palette) {
  const own = document.createElement("canvas");
  own.width = own.height = SIDE;
  const pen = own.getContext("2d"), picture = pen.createImageData(SIDE, SIDE), { data } = picture;
  const over = (p, colour, k, alpha) => {
    const i = 4 * p, under = (data[i + 3] / 255) * (1 - alpha), all = alpha + under;
    if (all === 0) return;
    for (let n = 0; n < 3; n += 1) {
      data[i + n] = (colour[k + n] * alpha + data[i + n] * under) / all;
    }
    data[i + 3] = 255 * all;
  };
  const strength = Float32Array.from({ length: 256 }, (_, i) => opacity(i / 255));
  for (const { values, mask, colour } of layers) {
    const low = (p, there) => there && mask[p] && values[p] < 0.5;
    for (let y = 0, p = 0; y < SIDE; y += 1) {
      for (let x = 0; x < SIDE; x += 1, p += 1) {
        const level = Math.round(255 * values[p]);
        if (!mask[p]) {
          if ((x + y) % 8 < 2) over(p, GREY, 0, 0.5);
        } else if (values[p] >= 0.5 && (low(p + 1, x + 1 < SIDE) || low(p - 1, x > 0)
            || low(p + SIDE, y + 1 < SIDE) || low(p - SIDE, y > 0))) {
          over(p, colour ?? WHITE, 0, 1);
        } else over(p, colour ?? palette, colour ? 0 : 3 * level, strength[level]);
      }
    }
  }
  pen.putImageData(picture, 0, 0);
  return own;
}

/** Writes the name of a class where its heatmap is highest. */
function drawName(canvas, { values, colour, name }) {
  const peak = values.reduce((best, v, i) => (v > values[best] ? i : best), 0);
  if (values[peak] < 0.2) return;
  const pen = canvas.getContext("2d"), size = Math.round(canvas.width / 26);
  pen.font = `600 ${size}px system-ui, sans-serif`;
  const width = pen.measureText(name).width + size, { width: W, height: H } = canvas;
  const x = Math.min(Math.max(((peak % SIDE) / SIDE) * W - width / 2, 0), W - width);
  const y = Math.min(Math.max((Math.floor(peak / SIDE) / SIDE) * H - size, 0), H - 1.6 * size);
  pen.fillStyle = "rgba(255, 255, 255, 0.88)";
  pen.fillRect(x, y, width, 1.6 * size);
  pen.fillStyle = `rgb(${colour ?? [34, 34, 34]})`;
  pen.fillRect(x, y, 0.25 * size, 1.6 * size);
  pen.fillStyle = "#222";
  pen.fillText(name, x + size / 2, y + 1.15 * size);
}

/** Draws the border of a region (S * S) over a canvas that shows the box of the image. */
function drawBorder(canvas, region, side, [x0, y0, x1, y1]) {
  const pen = canvas.getContext("2d"), lines = new Path2D();
  const X = (x) => ((x / side - x0) / (x1 - x0)) * canvas.width;
  const Y = (y) => ((y / side - y0) / (y1 - y0)) * canvas.height;
  const at = (x, y) => x >= 0 && y >= 0 && x < side && y < side && region[y * side + x];
  for (let y = 0; y <= side; y += 1) {
    for (let x = 0; x <= side; x += 1) {
      const here = at(x, y) ? 1 : 0;
      const line = (x1, y1) => { lines.moveTo(X(x), Y(y)); lines.lineTo(X(x1), Y(y1)); };
      if (here !== (at(x - 1, y) ? 1 : 0)) line(x, y + 1);
      if (here !== (at(x, y - 1) ? 1 : 0)) line(x + 1, y);
    }
  }
  for (const [width, style] of [[5, "rgba(255,255,255,.8)"], [2, "#000"]]) {
    pen.lineWidth = width;
    pen.strokeStyle = style;
    pen.stroke(lines);
  }
}

// --- the explorer --------------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const { class: name, ...rest } = properties, element = document.createElement(tag);
  if (name) element.className = name;
  for (const [key, value] of Object.entries(rest)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Builds the explorer in an element; gives a function that ends it. */
export async function start(root, source) {
  root.classList.add("spcl-explorer");
  // JupyterLab would take the arrow keys for itself: version 4 after the event, older ones before.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  root.dataset.lmSuppressShortcuts = "true";
  root.replaceChildren("waiting for the kernel …");
  const header = await source.header();
  const palette = bytes(header.palette), whole = [0, 0, 1, 1];
  const state = { run: 0, place: 0, order: [], epoch: 0, box: whole, flipped: false, all: false };
  let record, picture, chosen = [], prediction = null, asked = 0, busy = false, timer = null;
  let frame = 0, kept = {};
  const ui = build();
  root.replaceChildren(ui.all);
  let wanted = 0, shown = 0; // number of the image that was asked for, and that is shown

  function build() {
    const option = (text, value) => make("option", { value }, text);
    const select = (label, name, options, change) => {
      const list = make("select", { class: `spcl-${name}`, onchange: change },
        ...options.map((text, i) => option(text, i)));
      return [make("label", {}, `${label} `, list), list];
    };
    const button = (text, title, click, name = "") => make(
      "button", { type: "button", title, onclick: click, class: name }, text);
    const [runLabel, run] = select("run", "run", header.runs.map((r) => r.name), changeRun);
    const orders = ["most corrected first", "in order", ...header.classes.map((c) => `with ${c}`)];
    const [orderLabel, order] = select("images", "order", orders, changeOrder);
    const number = make("input", { type: "number", class: "spcl-image", min: 1, value: 1,
      onchange: () => go(number.value - 1) });
    const count = make("span");
    const play = button("▶ play", "go through the epochs", togglePlay, "spcl-play");
    const epoch = make("input", { type: "range", class: "spcl-epoch", min: 0,
      oninput: () => { stop(); state.epoch = Number(epoch.value); draw(); } });
    const epochText = make("output", { class: "spcl-epoch-text" });
    const handles = ["nw", "ne", "sw", "se"].map(
      (corner) => make("span", { class: `spcl-${corner}` }));
    const crop = make("div", { class: "spcl-crop", tabIndex: 0, role: "application",
      "aria-roledescription": "crop" }, ...handles);
    const image = make("canvas", { role: "img" }), target = make("canvas", { role: "img" });
    const stage = make("div", { class: "spcl-stage" }, image, crop);
    const lose = button("lose the label", "", () => setView(record.lost, false), "spcl-lose");
    const flip = make("input", { type: "checkbox", class: "spcl-flip",
      onchange: () => setView(state.box, flip.checked) });
    const heat = make("input", { type: "checkbox", checked: true, onchange: draw });
    const border = make("input", { type: "checkbox", checked: true, onchange: draw });
    const borderLabel = make("label", {}, border, "true borders");
    const scale = make("div", { class: "spcl-scale" });
    const imageTitle = make("figcaption"), cropTitle = make("figcaption");
    const says = make("p", { class: "spcl-says", "aria-live": "polite" });
    const why = make("p", { class: "spcl-why" });
    const body = make("tbody"), table = make("table", {}, make("thead", {}, make("tr", {},
      make("th", { scope: "col" }, "class"), make("th", { scope: "col" }, "in crop"),
      make("th", { scope: "col" }, make("span", { class: "spcl-target" }, "target"), " and ",
        make("span", { class: "spcl-prediction" }, "prediction"), " in the crop"))), body);
    const more = button("", "", () => {
      state.all = !state.all;
      fillTable();
      draw();
    }, "spcl-more");
    const everything = make("div", { class: "spcl-body" },
      make("div", { class: "spcl-row" }, runLabel, orderLabel, make("span", { class: "spcl-nav" },
        button("‹", "the image before", () => go(state.place - 1), "spcl-before"),
        make("label", {}, "image ", number), count,
        button("›", "the next image", () => go(state.place + 1), "spcl-next"))),
      make("div", { class: "spcl-row" }, play,
        make("label", { class: "spcl-wide" }, "epoch ", epoch), epochText),
      make("div", { class: "spcl-panels" },
        make("figure", {}, imageTitle, make("div", { class: "spcl-frame" }, stage)),
        make("figure", {}, cropTitle, make("div", { class: "spcl-frame" }, target)),
        make("div", { class: "spcl-words" },
          make("div", { class: "spcl-row" }, scale),
          make("div", { class: "spcl-row" },
            button("random crop", "a tenth to half of the image", randomView, "spcl-random"),
            button("whole image", "no crop, no flip", () => setView(whole, false), "spcl-whole"),
            lose, make("label", {}, flip, "flip"), make("label", {}, heat, "heatmaps"),
            borderLabel),
          says, why,
          make("p", { class: "spcl-help" }, "Drag the crop on the picture, or its corners; with "
            + "the keyboard: arrow keys move it, shift and arrow keys resize it. Tick classes in "
            + `the table to draw them, up to ${MOST} at once.`)),
        make("div", { class: "spcl-table" }, table, more)));
    listen(crop, stage, handles);
    return { all: everything, run, order, number, count, play, epoch, epochText, crop, image,
      target, stage, lose, flip, heat, border, borderLabel, scale, imageTitle, cropTitle, says, why,
      body, more };
  }

  // --- choices

  const runNow = () => header.runs[state.run];
  const imageNow = () => state.order[state.place];
  const size = () => record.size ** 2;
  const seenOf = (epoch) => record.seen.subarray(epoch * size(), (epoch + 1) * size());
  const heatOf = (c, epoch) => {
    const first = (epoch * record.classes.length + record.classes.indexOf(c)) * size();
    return record.heat.subarray(first, first + size());
  };

  function changeRun() {
    const image = imageNow(), atLast = state.epoch === runNow().epochs.length - 1;
    state.run = Number(ui.run.value);
    const last = runNow().epochs.length - 1;
    state.epoch = atLast ? last : Math.min(state.epoch, last);
    setOrder();
    go(Math.max(0, state.order.indexOf(image)), true);
  }

  function setOrder() {
    const choice = Number(ui.order.value), order = runNow().order;
    if (choice === 1) state.order = [...order].sort((a, b) => a - b);
    else {
      const found = order.filter((i) => header.images[i].labels.includes(choice - 2));
      state.order = choice > 1 && found.length ? found : order;
    }
    ui.number.max = state.order.length;
    ui.count.textContent = ` of ${state.order.length} `;
  }

  function changeOrder() {
    setOrder();
    go(0);
  }

  async function go(place, keep = false) {
    const own = (wanted += 1);
    state.place = Math.min(Math.max(place || 0, 0), state.order.length - 1);
    ui.number.value = state.place + 1;
    ui.body.classList.add("spcl-waiting");
    const found = await source.record(state.run, imageNow());
    const loaded = new Image();
    loaded.src = found.picture;
    await loaded.decode();
    if (own !== wanted) return; // a person has gone on to another image
    shown = own;
    const epochs = runNow().epochs.length, area = found.size ** 2;
    record = { ...found, heat: bytes(found.heat), seen: bits(found.seen, epochs * area),
      regions: found.regions && Object.fromEntries(Object.entries(found.regions)
        .map(([c, text]) => [c, bits(text, found.side ** 2)])) };
    picture = loaded;
    if (!keep) chosen = [record.start];
    chosen = chosen.filter((c) => record.classes.includes(c));
    ui.epoch.max = epochs - 1;
    ui.epoch.disabled = ui.play.disabled = epochs < 2;
    ui.lose.disabled = !record.lost;
    ui.lose.title = record.lost ? "a crop without the label that shows another class"
      : "no crop without the label was found in this image";
    ui.borderLabel.hidden = !record.regions;
    const factor = SHARP / Math.max(picture.width, picture.height);
    ui.image.width = Math.round(picture.width * factor);
    ui.image.height = Math.round(picture.height * factor);
    kept = {};
    const ratio = picture.width / picture.height;
    ui.stage.style.aspectRatio = ratio;
    ui.stage.style.width = `${100 * Math.min(1, ratio)}%`;
    fillTable();
    prediction = null;
    if (!keep && state.start) {
      state.start = false;
      if (record.lost) Object.assign(state, { box: record.lost, flipped: false });
    }
    setView(state.box, state.flipped);
  }

  // --- the crop

  function setView(box, flipped) {
    const [x0, y0, x1, y1] = box.map((v) => Math.round(Math.min(Math.max(v, 0), 1) * 1e4) / 1e4);
    state.box = [x0, y0, x1, y1];
    state.flipped = flipped;
    ui.flip.checked = flipped;
    draw();
    askPrediction();
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

  function listen(crop, stage, handles) {
    crop.addEventListener("pointerdown", (event) => {
      const first = [event.clientX, event.clientY], box = state.box;
      const corner = handles.includes(event.target) ? event.target.className.slice(5) : null;
      crop.setPointerCapture(event.pointerId);
      const move = (now) => {
        const { width, height } = stage.getBoundingClientRect();
        const dx = (now.clientX - first[0]) / width, dy = (now.clientY - first[1]) / height;
        setView(corner ? resized(box, corner, dx, dy) : moved(box, dx, dy), state.flipped);
      };
      const end = () => {
        crop.removeEventListener("pointermove", move);
        for (const name of ["pointerup", "pointercancel"]) crop.removeEventListener(name, end);
      };
      crop.addEventListener("pointermove", move);
      for (const name of ["pointerup", "pointercancel"]) crop.addEventListener(name, end);
      crop.focus({ preventScroll: true });
      event.preventDefault();
    });
    crop.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const step = steps[event.key]?.map((v) => v * STEP);
      if (!step) return;
      event.preventDefault();
      const change = event.shiftKey ? resized(state.box, "se", ...step) : moved(state.box, ...step);
      setView(change, state.flipped);
    });
  }

  function randomView() {
    const area = 0.1 + 0.4 * Math.random(), ratio = (3 / 4) ** (2 * Math.random() - 1);
    const w = Math.sqrt(area * ratio), h = Math.sqrt(area / ratio);
    const x = Math.random() * (1 - w), y = Math.random() * (1 - h);
    setView([x, y, x + w, y + h], Math.random() < 0.5);
  }

  /** One question at a time; the next is of the crop that is shown then. */
  async function askPrediction() {
    asked += 1;
    ui.body.classList.add("spcl-waiting");
    if (busy) return;
    busy = true;
    for (let own = -1; own !== asked;) {
      own = asked;
      const { run } = state, image = imageNow();
      const answer = await source.predict(run, image, state.box, state.flipped);
      if (run === state.run && image === imageNow()) prediction = answer;
    }
    busy = false;
    if (shown === wanted) ui.body.classList.remove("spcl-waiting");
    draw();
  }

  // --- the epochs

  function stop() {
    clearInterval(timer);
    timer = null;
    ui.play.textContent = "▶ play";
  }

  function togglePlay() {
    if (timer !== null) return stop();
    const last = runNow().epochs.length - 1;
    if (state.epoch >= last) state.epoch = 0;
    ui.play.textContent = "❚❚ stop";
    draw();
    timer = setInterval(() => {
      if (!root.isConnected || state.epoch >= last) return stop();
      state.epoch += 1;
      draw();
      if (state.epoch >= last) stop();
    }, FRAME);
  }

  // --- drawing

  function fillTable() {
    const few = 12, rows = record.classes.slice(0, state.all ? undefined : few);
    const left = record.classes.length - few;
    ui.more.hidden = left <= 0;
    ui.more.textContent = state.all ? "fewer classes" : `${left} more classes`;
    ui.body.replaceChildren(...[...rows].sort((a, b) => a - b).map((c) => {
      const box = make("input", { type: "checkbox", checked: chosen.includes(c), value: c,
        "aria-label": `draw ${header.classes[c]}`, onchange: () => choose(c, box.checked) });
      const known = runNow().observed[imageNow()].includes(c) ? "label"
        : header.images[imageNow()].labels.includes(c) ? "not labelled" : "";
      const bar = (kind) => make(
        "div", { class: `spcl-bar spcl-${kind}-bar` }, make("i"), make("b"));
      const row = make("tr", { class: known ? "spcl-known" : "" },
        make("th", { scope: "row" }, make("label", {}, box, make("span", { class: "spcl-swatch" }),
          make("span", { class: "spcl-name" }, header.classes[c])), make("small", {}, known)),
        make("td", { class: "spcl-visible" }), make("td", {}, bar("target"), bar("prediction")));
      row.dataset.class = c;
      return row;
    }));
  }

  function choose(c, yes) {
    chosen = chosen.filter((other) => other !== c);
    if (yes) chosen = [...chosen, c].slice(-MOST);
    for (const box of ui.body.querySelectorAll("input")) {
      box.checked = chosen.includes(Number(box.value));
    }
    draw();
  }

  const colourOf = (c) => (chosen.length > 1 ? COLOURS[chosen.indexOf(c)] : null);

  /** The numbers of a class in the crop. */
  function measure(c) {
    const { grid, pooling, epochs } = runNow();
    const read = (e) => {
      const { values, mask } = readHeatmap(
        heatOf(c, e), seenOf(e), record.size, state.box, state.flipped, grid);
      return [presence(values, mask, pooling), mask.reduce((sum, m) => sum + m, 0) / mask.length];
    };
    const [target, seen] = read(state.epoch), region = record.regions?.[c];
    return { name: header.classes[c], target, seen, final: read(epochs.length - 1)[0],
      prediction: prediction ? prediction.values[c] / 255 : null,
      visible: record.regions ? (region ? visibleShare(region, record.side, state.box) : 0) : null,
      present: Boolean(region) };
  }

  /** Draws once before the next frame, however often it is called. */
  function draw() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (record) drawNow();
    });
  }

  function drawNow() {
    const { epochs, averaged, observed } = runNow(), epoch = epochs[state.epoch];
    ui.epoch.value = state.epoch;
    ui.epochText.textContent = `after epoch ${epoch} of ${epochs[epochs.length - 1]}`;
    const numbers = new Map(record.classes.map((c) => [c, measure(c)]));
    drawImage(averaged, epoch);
    drawCrop(averaged);
    drawScale();
    for (const row of ui.body.children) fillRow(row, numbers.get(Number(row.dataset.class)));
    const label = record.classes.find((c) => observed[imageNow()].includes(c));
    const remark = prediction?.box ? "The prediction is for the dashed crop, the nearest of the "
      + `${prediction.among} that this page knows.` : "";
    const all = [...numbers.values()];
    const [says, why] = describe({ box: state.box, flipped: state.flipped, epoch, averaged, remark,
      isLast: state.epoch === epochs.length - 1, seen: all[0].seen,
      usual: all.reduce((sum, c) => sum + (c.target ?? 0), 0) / all.length,
      label: label === undefined ? null : numbers.get(label),
      classes: chosen.map((c) => numbers.get(c)) });
    ui.says.textContent = says;
    ui.why.textContent = why;
    ui.crop.setAttribute("aria-label", says.split(". ")[0]);
  }

  /** The heatmaps of the chosen classes, each as `read` gives it, and a picture of them. */
  function layersOf(read) {
    const layers = chosen.map((c) => (
      { ...read(c), colour: colourOf(c), name: header.classes[c] }));
    return { layers, painted: paintHeat(layers, palette) };
  }

  /** Draws heatmaps, true borders and names of the chosen classes over a canvas. */
  function drawClasses(canvas, { layers, painted }, box, flipped) {
    const pen = canvas.getContext("2d");
    if (ui.heat.checked) pen.drawImage(painted, 0, 0, canvas.width, canvas.height);
    if (flipped) pen.setTransform(-1, 0, 0, 1, canvas.width, 0);
    for (const c of ui.border.checked && record.regions ? chosen : []) {
      if (record.regions[c]) drawBorder(canvas, record.regions[c], record.side, box);
    }
    pen.setTransform(1, 0, 0, 1, 0, 0);
    if (ui.heat.checked && layers.length > 1) layers.forEach((layer) => drawName(canvas, layer));
  }

  function drawImage(averaged, epoch) {
    const { width, height } = ui.image, pen = ui.image.getContext("2d");
    const [x0, y0, x1, y1] = state.box;
    pen.drawImage(picture, 0, 0, width, height);
    const key = [state.run, imageNow(), state.epoch, ...chosen].join();
    if (kept.key !== key) { // the same while a crop is dragged
      kept = { key, ...layersOf((c) => readHeatmap(
        heatOf(c, state.epoch), seenOf(state.epoch), record.size, whole, false, SIDE)) };
    }
    drawClasses(ui.image, kept, whole, false);
    const shade = new Path2D();
    shade.rect(0, 0, width, height);
    shade.rect(x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height);
    pen.fillStyle = "rgba(255, 255, 255, 0.35)";
    pen.fill(shade, "evenodd");
    if (prediction?.box) {
      const [a, b, c, d] = prediction.box;
      pen.setLineDash([9, 7]);
      pen.lineWidth = 3;
      pen.strokeStyle = "#e69f00";
      pen.strokeRect(a * width + 2, b * height + 2, (c - a) * width - 4, (d - b) * height - 4);
      pen.setLineDash([]);
    }
    Object.assign(ui.crop.style, { left: `${100 * x0}%`, top: `${100 * y0}%`,
      width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` });
    const names = chosen.map((c) => header.classes[c]).join(", ");
    ui.imageTitle.textContent = averaged ? `the heatmap after epoch ${epoch}, and the crop`
      : `the network’s map after epoch ${epoch}, and the crop`;
    const { name } = header.images[imageNow()];
    ui.image.setAttribute("aria-label", `${name} with heatmaps of ${names}`);
  }

  function drawCrop(averaged) {
    const [x0, y0, x1, y1] = state.box, { grid } = runNow(), canvas = ui.target;
    const w = (x1 - x0) * picture.width, h = (y1 - y0) * picture.height;
    const factor = SHARP / Math.max(w, h);
    canvas.width = Math.max(1, Math.round(w * factor));
    canvas.height = Math.max(1, Math.round(h * factor));
    const pen = canvas.getContext("2d");
    if (state.flipped) pen.setTransform(-1, 0, 0, 1, canvas.width, 0);
    pen.drawImage(picture, x0 * picture.width, y0 * picture.height, w, h,
      0, 0, canvas.width, canvas.height);
    pen.setTransform(1, 0, 0, 1, 0, 0);
    const layers = layersOf((c) => {
      const { values, mask } = readHeatmap(
        heatOf(c, state.epoch), seenOf(state.epoch), record.size, state.box, state.flipped, grid);
      return readHeatmap(values.map((v) => 255 * v), mask, grid, whole, false, SIDE);
    });
    drawClasses(canvas, layers, state.box, state.flipped);
    ui.cropTitle.textContent = averaged ? "the crop, and the target for it"
      : "the crop, and the map of the whole image read through it";
    canvas.setAttribute("aria-label", "the crop with its target");
  }

  /** The one scale of all epochs, images and runs; over grey, as the pictures lie over an image. */
  function drawScale() {
    const ramp = (c) => {
      const colour = colourOf(c), stops = Array.from({ length: 9 }, (_, i) => {
        const k = 3 * Math.round(i * 31.875), rgb = colour ?? palette.subarray(k, k + 3);
        return `rgba(${Array.from(rgb).join(",")},${opacity(i / 8)})`;
      });
      return make("span", { class: "spcl-ramp" }, make("i", {}, "0"),
        make("span", { style: `background-image: linear-gradient(to right, ${stops.join(",")})` }),
        make("i", {}, "1"), make("b", {}, header.classes[c]));
    };
    ui.scale.replaceChildren("probability:", ...chosen.map(ramp),
      make("span", { class: "spcl-key spcl-line" }, "line: 0.5"),
      make("span", { class: "spcl-key spcl-hatch" }, "not seen yet"),
      ...(record.regions ? [make("span", { class: "spcl-key spcl-true" }, "true border")] : []));
  }

  function fillRow(row, { target, prediction: predicted, visible, present }) {
    const share = row.querySelector(".spcl-visible"), c = Number(row.dataset.class);
    share.textContent = present ? `${Math.round(100 * visible)} %` : "";
    const colour = colourOf(c);
    row.classList.toggle("spcl-chosen", chosen.includes(c));
    row.querySelector(".spcl-swatch").style.background = colour ? `rgb(${colour})` : "";
    for (const [kind, value] of [["target", target], ["prediction", predicted]]) {
      const bar = row.querySelector(`.spcl-${kind}-bar`);
      bar.querySelector("i").style.width = `${100 * (value ?? 0)}%`;
      bar.querySelector("b").textContent = value === null ? "–" : value.toFixed(2);
    }
  }

  state.epoch = header.runs[0].epochs.length - 1;
  state.start = true;
  setOrder();
  await go(0);
  return () => {
    stop();
    source.close();
  };
}

/** Shows what `explorer_page.write_explorer_page` wrote into the page. */
export function startPage(root, page) {
  return start(root, storedSource(page));
}

async function render({ model, el }) {
  return start(el, liveSource(model));
}

export default { render };
