"use strict";

// Tables sort by a click on a head: numbers by their value, what has none last.

for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const numbers = rows.some(row => row.cells[column].dataset.n !== undefined);
      const key = row => numbers ? Number(row.cells[column].dataset.n) : row.cells[column].textContent;
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// Plots: boxes over an axis. A box is {x0, x1, y0, y1, colour, text}; those of one y0 are a row. All plots of a group
// show the same part of the axis.

const BOTTOM = 20, FONT = "12px system-ui, sans-serif", MOST_ZOOM = 1e6;

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name);
}

function time(us, digits = 4) {
  const [scale, unit] = Math.abs(us) >= 1e6 ? [1e6, "s"] : Math.abs(us) >= 1e3 ? [1e3, "ms"] : [1, "µs"];
  return `${Number((us / scale).toPrecision(digits))} ${unit}`;
}

function size(bytes) {
  const [scale, unit] = bytes >= 1e9 ? [1e9, "GB"] : bytes >= 1e6 ? [1e6, "MB"] : bytes >= 1e3 ? [1e3, "kB"] : [1, "B"];
  return `${Number((bytes / scale).toPrecision(3))} ${unit}`;
}

class Plot {
  constructor(group, canvas, content) {
    Object.assign(this, { group, canvas, chosen: null }, content);
    this.fingers = new Map();
    this.listen();
  }

  // pixels of a place on the axis, and back
  at(x) { return this.group.left + (x - this.group.from) / (this.group.to - this.group.from) * this.width; }
  back(pixel) { return this.group.from + (pixel - this.group.left) / this.width * (this.group.to - this.group.from); }
  get width() { return Math.max(1, this.canvas.clientWidth - this.group.left - 1); }

  draw() {
    const { canvas, height } = this, ratio = window.devicePixelRatio || 1, all = canvas.clientWidth;
    canvas.style.height = `${height + BOTTOM}px`;
    canvas.width = Math.round(all * ratio);
    canvas.height = Math.round((height + BOTTOM) * ratio);
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = FONT;
    pen.fillStyle = style("--band");
    pen.fillRect(this.group.left, 0, this.width, height);
    this.drawAxis(pen);
    pen.save();
    pen.beginPath();
    pen.rect(this.group.left, 0, this.width, height);
    pen.clip();
    for (const box of this.boxes) {
      if (box.x1 < this.group.from || box.x0 > this.group.to) continue;
      const left = this.at(box.x0), wide = this.at(box.x1) - left, gap = wide > 8 ? 1 : 0;
      pen.fillStyle = this.group.colours[box.colour];
      pen.fillRect(left, box.y0 * height, Math.max(0.7, wide - gap), (box.y1 - box.y0) * height);
    }
    if (this.chosen) {
      const box = this.chosen, left = this.at(box.x0);
      const [top, bottom] = this.rowOf(box);
      pen.strokeStyle = style("--ink");
      pen.lineWidth = 2;
      pen.strokeRect(left - 1, top * height, Math.max(3, this.at(box.x1) - left + 1), (bottom - top) * height);
    }
    pen.restore();
  }

  drawAxis(pen) {
    const { height, group, group: { left } } = this, across = Math.max(2, Math.floor(this.width / 90));
    pen.fillStyle = style("--soft");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const [y, text] of this.marks) pen.fillText(text, left - 6, Math.min(height - 6, Math.max(6, y * height)), left - 6);
    pen.textBaseline = "top";
    pen.textAlign = "center";
    const rough = (group.to - group.from) / across, power = 10 ** Math.floor(Math.log10(rough));
    const step = Math.max(this.least, power * [1, 2, 5, 10].find(each => each * power >= rough));
    for (let x = Math.ceil(group.from / step) * step; x <= group.to; x += step) {
      const place = this.at(x);
      pen.fillRect(Math.round(place), height, 1, 4);
      if (place > left + 10 && place < left + this.width - 20) pen.fillText(this.named(x, step), place, height + 6);
    }
  }

  // the whole height that a box is chosen in: its row, or all of a bar
  rowOf(box) { return this.stacked ? [0, 1] : [box.y0, box.y1]; }

  find(x, y, pixels) {
    const reach = pixels / this.width * (this.group.to - this.group.from);
    let best = null, least = Infinity;
    for (const box of this.boxes) {
      const [top, bottom] = this.rowOf(box);
      if (y < top || y > bottom || box.x1 < x - reach || box.x0 > x + reach) continue;
      const off = Math.max(box.x0 - x, x - box.x1, 0) + 1e-9 * (box.x1 - box.x0);
      if (off < least) [best, least] = [box, off];
    }
    return best;
  }

  choose(box) {
    if (!box) return;
    for (const plot of this.group.plots) if (plot.chosen && plot !== this) { plot.chosen = null; plot.draw(); }
    this.chosen = box;
    this.group.output.textContent = box.text;
    this.draw();
  }

  // the box beside the chosen one in its row, or one near it in another row
  step(sideways, down) {
    if (!this.chosen) return this.choose(this.boxes.find(box => box.x1 >= this.group.from) || this.boxes[0]);
    const rows = [...new Set(this.boxes.map(box => box.y0))].sort((a, b) => a - b);
    if (this.stacked) {
      const bars = this.boxes.filter(box => box.first), index = bars.findIndex(box => box.x0 === this.chosen.x0);
      this.choose(bars[index + sideways]);
    } else if (down) {
      const row = rows[rows.indexOf(this.chosen.y0) + down], x = this.chosen.x0;
      const near = this.boxes.filter(box => box.y0 === row);
      this.choose(near.reduce((a, b) => !a || Math.abs(b.x0 - x) < Math.abs(a.x0 - x) ? b : a, null));
    } else {
      const mine = this.boxes.filter(box => box.y0 === this.chosen.y0).sort((a, b) => a.x0 - b.x0);
      this.choose(mine[mine.indexOf(this.chosen) + sideways]);
    }
    const { from, to } = this.group, box = this.chosen;
    if (box.x1 < from || box.x0 > to) this.group.show(box.x0 - (to - from) / 2, box.x0 + (to - from) / 2);
  }

  listen() {
    const { canvas, group } = this;
    const place = event => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, (event.clientY - box.top) / this.height];
    };
    const under = event => {
      const [x, y] = place(event);
      return this.find(this.back(x), y, event.pointerType === "touch" ? 14 : 4);
    };
    canvas.addEventListener("pointerdown", event => {
      this.fingers.set(event.pointerId, place(event)[0]);
      canvas.setPointerCapture(event.pointerId);
      this.choose(under(event));
    });
    canvas.addEventListener("pointermove", event => {
      const [x] = place(event), before = this.fingers.get(event.pointerId);
      if (before === undefined) return this.choose(under(event));
      const other = [...this.fingers].find(([id]) => id !== event.pointerId);
      this.fingers.set(event.pointerId, x);
      if (!other) {
        const moved = this.back(before) - this.back(x);
        group.show(group.from + moved, group.to + moved);
      } else if (Math.abs(x - other[1]) > 10 && Math.abs(before - other[1]) > 10) {
        group.zoom(Math.abs(before - other[1]) / Math.abs(x - other[1]), this.back((x + other[1]) / 2));
      }
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, event => this.fingers.delete(event.pointerId));
    }
    canvas.addEventListener("dblclick", event => group.zoom(0.5, this.back(place(event)[0])));
    canvas.addEventListener("wheel", event => {
      if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls
      event.preventDefault();
      group.zoom(1.002 ** event.deltaY, this.back(place(event)[0]));
    }, { passive: false });
    canvas.addEventListener("keydown", event => {
      const keys = {
        ArrowLeft: () => this.step(-1, 0), ArrowRight: () => this.step(1, 0),
        ArrowUp: () => this.step(0, -1), ArrowDown: () => this.step(0, 1),
        "+": () => group.act("in"), "=": () => group.act("in"), "-": () => group.act("out"), 0: () => group.act("all"),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
  }
}

class Group {
  constructor(element, contents) {
    this.output = element.querySelector("output");
    this.colours = [...element.querySelectorAll(".legend i")].map(key => getComputedStyle(key).backgroundColor);
    const canvases = [...element.querySelectorAll("canvas")];
    this.plots = contents.map((content, index) => new Plot(this, canvases[index], content));
    this.end = Math.max(...contents.map(content => content.end));
    const pen = canvases[0].getContext("2d"); // the marks of all plots stand left of one line
    pen.font = FONT;
    this.left = Math.max(...contents.flatMap(({ marks }) => marks.map(([, text]) => pen.measureText(text).width)));
    this.left = Math.min(110, this.left + 10);
    [this.from, this.to] = [0, this.end];
    for (const button of element.querySelectorAll("[data-do]")) {
      button.addEventListener("click", () => this.act(button.dataset.do));
    }
    new ResizeObserver(() => this.draw()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  draw() { for (const plot of this.plots) plot.draw(); }

  show(from, to) {
    const wide = Math.min(this.end, Math.max(this.end / MOST_ZOOM, to - from));
    this.from = Math.min(Math.max(0, from), this.end - wide);
    this.to = this.from + wide;
    this.draw();
  }

  // keeps the place `about` where it is
  zoom(factor, about) { this.show(about - (about - this.from) * factor, about + (this.to - about) * factor); }

  act(what) {
    const chosen = this.plots.map(plot => plot.chosen).find(box => box && box.x1 > this.from && box.x0 < this.to);
    const about = chosen ? (chosen.x0 + chosen.x1) / 2 : (this.from + this.to) / 2;
    if (what === "all") this.show(0, this.end);
    else this.zoom(what === "in" ? 0.5 : 2, about);
  }
}

// What the plots are of: one token's requests, and the latency of each token.

function requests(data) {
  return data.spans.map((spans, index) => {
    const rows = data.rows[index], high = 1 / rows.length;
    const boxes = spans.map(([row, layer, step, asked, start, end, bytes]) => {
      const name = data.steps[step], of = name === "lm_head" ? name : `${name} of layer ${layer}`;
      const waited = start > asked ? `, asked for ${time(start - asked)} before` : "";
      const text = `${rows[row]}: ${of}, ${time(end - start)} from ${time(start)} to ${time(end)}${waited}`;
      return {
        x0: start, x1: end, y0: (row + 0.1) * high, y1: (row + 0.9) * high, colour: step,
        text: bytes ? `${text}, ${size(bytes)}` : text,
      };
    });
    return {
      boxes, height: 26 * rows.length, marks: rows.map((row, place) => [(place + 0.5) * high, row]), least: 0,
      end: boxes.reduce((most, box) => Math.max(most, box.x1), 0), named: (x, step) => time(x, 2 + Math.max(0, Math.ceil(Math.log10(x / step)))), stacked: false,
    };
  });
}

function latencies(data) {
  const most = Math.max(...data.bars.flat().map(bar => bar.reduce((a, b) => a + b, 0)));
  return data.bars.map(bars => {
    const boxes = bars.flatMap((bar, index) => {
      const token = index * data.step, all = bar.reduce((a, b) => a + b, 0);
      const whole = data.step > 1 ? `tokens ${token} to ${token + data.step - 1}` : `token ${token}`;
      const text = `${whole}: ${time(all)} = ${bar.map((part, place) => `${time(part)} ${data.parts[place]}`).join(" + ")}`;
      let above = 1;
      return bar.map((part, place) => {
        const y1 = above;
        above -= part / most / 1.05;
        return { x0: token, x1: token + data.step, y0: above, y1, colour: place, text, first: place === 0 };
      });
    });
    return {
      boxes, height: 140, marks: [[1 - 1 / 1.05, time(most)], [1, "0"]], least: 1, end: bars.length * data.step,
      named: String, stacked: true,
    };
  });
}

const data = JSON.parse(document.getElementById("data").textContent);
const content = { token: requests, latency: latencies };
for (const element of document.querySelectorAll(".plots")) {
  const kind = element.dataset.kind;
  new Group(element, content[kind](data[kind]));
}
