// A canvas over the plot of a chart that Plotly laid out. It has Plotly's traces with new data, in the colours, widths and dashes of
// Plotly's own elements, which are hidden meanwhile, and above them the layout's marks and names.

const LINE = 1.3; // sizes of the type from one line of words to the next, as Plotly has it
const PIECE = 32; // points of a line that are stroked at once
const REACH = 16; // px from a point to the furthest that its line or its mark is drawn
const MODES = ["lines", "markers", "lines+markers"];

export class Sheet {
  constructor(chart) {
    this.chart = chart;
    this.opacity = 1; // of the trace that is being drawn
    this.from = 0; // px of the chart: what lies left of it stays as it was drawn before
    this.layout = chart._fullLayout;
    const holder = chart.querySelector(".svg-container");
    this.canvas = holder.querySelector(".moescope-sheet");
    if (this.canvas) return;
    this.canvas = document.createElement("canvas");
    this.canvas.className = "moescope-sheet";
    this.canvas.setAttribute("aria-hidden", "true");
    holder.querySelector(".main-svg").after(this.canvas); // below titles, tools and what is said on hover
  }

  get pen() {
    return (this.kept ??= this.canvas.getContext("2d"));
  }

  // Draws onto a sheet of as many pixels as the screen has there, anew from `from` px on; what lies left of it stays.
  draw(draws, from) {
    const { width, height } = this.layout, dense = devicePixelRatio;
    const [wide, high] = [width, height].map((side) => Math.round(side * dense));
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      Object.assign(this.canvas, { width: wide, height: high });
      from = 0;
    }
    const left = Math.max(0, Math.floor((from - REACH) * (wide / width))); // a whole pixel: no edge is half covered
    this.from = left * (width / wide);
    this.pen.save();
    this.pen.beginPath();
    this.pen.rect(left, 0, wide - left, high);
    this.pen.clip();
    this.pen.clearRect(left, 0, wide - left, high);
    this.pen.setTransform(wide / width, 0, 0, high / height, 0, 0);
    this.pen.lineJoin = "miter";
    this.pen.miterLimit = 2; // Plotly's
    try {
      for (const one of draws) one();
    } finally {
      this.pen.restore();
    }
    this.chart.classList.add("moescope-redrawn");
  }

  // From which px on a trace of other data looks other than before: Infinity if it does not, 0 if that is not known.
  since(before, trace, nth) {
    if (trace.type !== "scatter") return ["x", "y", "z", "marker"].every((part) => same(before[part], trace[part])) ? Infinity : 0;
    const changed = [changedIn(before.x, trace.x), changedIn(before.y, trace.y)];
    const first = Math.min(...changed.map(([from]) => from)), last = Math.min(...changed.map(([, to]) => to));
    if (first === Infinity) return Infinity;
    const x = pixel(this.axis(this.chart._fullData[nth].xaxis));
    // The stretches on either side of a point that moved have moved too.
    const places = [before, trace].flatMap((one) => Array.from(one.x.slice(Math.max(0, first - 1), one.x.length - last + 1), x));
    return Math.min(...places.filter(Number.isFinite));
  }

  // What draws a trace; null if it is of a kind that only Plotly draws, or if Plotly had another number of elements for it.
  trace(trace, nth) {
    const draw = this.drawing(trace, nth);
    return draw && (() => {
      this.opacity = trace.opacity ?? 1;
      draw();
      this.opacity = 1;
    });
  }

  drawing(trace, nth) {
    const full = this.chart._fullData?.[nth], known = this.chart.calcdata?.[nth];
    if (full?.visible !== true || !known || !trace.x || !trace.y || trace.texttemplate || trace.textposition) return null;
    const [across, up] = [full.xaxis, full.yaxis].map((id) => this.axis(id));
    const at = { across, up, x: pixel(across), y: pixel(up), clip: [across._offset, up._offset, across._length, up._length] };
    if (trace.type === "scatter") return this.scatter(trace, full, at);
    if (trace.type === "bar") return this.bars(trace, known, at);
    return trace.type === "heatmap" ? this.heatmap(trace, at) : null;
  }

  axis(id) {
    return this.layout[`${id[0]}axis${id.slice(1)}`];
  }

  scatter(trace, full, { x, y, clip }) {
    const group = this.chart.querySelector(`.trace${full.uid}`);
    if (!group || !MODES.includes(trace.mode) || ![undefined, "none", "toself"].includes(trace.fill) || ![undefined, "linear", "hv"].includes(trace.line?.shape)) return null;
    const line = group.querySelector(".js-line"), filled = group.querySelector(".js-fill"), point = group.querySelector(".point");
    const { color, size, symbol, opacity, line: edge } = trace.marker ?? {};
    if ([color, size, symbol, opacity, edge?.color, edge?.width].some((one) => typeof one === "object")) return null; // a look for each point
    const some = trace.y.some(Number.isFinite);
    if (some && ((trace.mode.includes("lines") && !line) || (trace.mode.includes("markers") && !point) || (trace.fill === "toself" && !filled))) return null;
    return () => {
      if (filled || line) this.within(clip, () => {
        const places = placesOf(trace, x, y);
        if (filled) this.fill(pathOf(places), filled);
        if (line) for (const path of piecesOf(places, line, this.opacity, this.from - REACH)) this.stroke(path, line);
      });
      if (!point) return;
      const mark = new Path2D(point.getAttribute("d"));
      this.within(trace.cliponaxis === false ? null : clip, () => {
        for (let i = 0; i < trace.y.length; i++) {
          const px = x(trace.x[i]), py = y(trace.y[i]);
          if (!Number.isFinite(px) || !Number.isFinite(py)) continue;
          this.pen.translate(px, py);
          this.fill(mark, point);
          this.stroke(mark, point);
          this.pen.translate(-px, -py);
        }
      });
    };
  }

  bars(trace, known, { x, y, clip }) {
    const bars = known[0]?.node3?.node()?.querySelectorAll(".point > path") ?? [], flat = trace.orientation === "h";
    const values = flat ? trace.x : trace.y, base = trace.base ?? 0, colours = trace.marker?.color;
    if (bars.length !== values.length || known.length !== values.length || typeof base !== "number") return null;
    if ([...bars].some((bar) => bar.style.fill.includes("url"))) return null; // hatched
    return () => this.within(clip, () => {
      for (let i = 0; i < values.length; i++) {
        if (!Number.isFinite(values[i])) continue;
        const [a, b] = [known[i].p0, known[i].p1].map(flat ? y : x), [c, d] = [base, base + values[i]].map(flat ? x : y);
        const path = new Path2D();
        if (flat) path.rect(c, a, d - c, b - a);
        else path.rect(a, c, b - a, d - c);
        this.fill(path, bars[i], Array.isArray(colours) ? colours[i] : undefined);
      }
    });
  }

  heatmap(trace, { across: columns, up, clip }) {
    const across = edgesOf(trace.x, columns), down = edgesOf(trace.y, up), colour = colourOf(trace);
    if (trace.zsmooth || trace.opacity || !across || !down || !colour || trace.z.length !== trace.y.length) return null;
    if (across[0] > across.at(-1) || down[0] > down.at(-1)) return null; // in all our figures the first cell is at the top left
    return () => this.within(clip, () => {
      const small = new OffscreenCanvas(across.length - 1, down.length - 1), cells = small.getContext("2d"), picture = cells.createImageData(small.width, small.height);
      for (let row = 0, at = 0; row < small.height; row++) for (let column = 0; column < small.width; column++, at += 4) colour(trace.z[row][column], picture.data, at);
      cells.putImageData(picture, 0, 0);
      this.pen.imageSmoothingEnabled = false;
      const left = Math.min(...across), top = Math.min(...down), wide = Math.round(Math.max(...across) - left), high = Math.round(Math.max(...down) - top);
      // As Plotly does: even cells without gaps as one picture; of others first each row to its height, then each column to its width.
      if (!trace.xgap && !trace.ygap && isEven(trace.x) && isEven(trace.y)) return this.pen.drawImage(small, left, top, wide, high);
      const tall = new OffscreenCanvas(small.width, Math.max(1, high)), rows = tall.getContext("2d");
      rows.imageSmoothingEnabled = false;
      stretches(down, trace.ygap).forEach(([from, long], row) => rows.drawImage(small, 0, row, small.width, 1, 0, from - Math.round(top), small.width, long));
      stretches(across, trace.xgap).forEach(([from, long], column) => this.pen.drawImage(tall, column, 0, 1, tall.height, from, Math.round(top), long, tall.height));
    });
  }

  // What draws a line or a rectangle of the layout; null if it is another shape, or has a dash that only Plotly knows.
  shape(shape) {
    const { xref, yref, line = {} } = shape, dash = dashOf(line), { w, h, l, t } = this.layout._size;
    if (!["line", "rect"].includes(shape.type) || !dash || shape.label) return null;
    const place = (ref, start, size) => (ref === "paper" ? (share) => start + share * size : pixel(this.axis(ref)));
    const x = place(xref, l, w), y = place(yref, t + h, -h);
    const [left, right, top, bottom] = [x(shape.x0), x(shape.x1), y(shape.y0), y(shape.y1)];
    if (![left, right, top, bottom].every(Number.isFinite)) return null;
    const across = xref === "paper" ? [0, this.layout.width] : [this.axis(xref)._offset, this.axis(xref)._length];
    const up = yref === "paper" ? [0, this.layout.height] : [this.axis(yref)._offset, this.axis(yref)._length];
    return () => this.within([across[0], up[0], across[1], up[1]], () => {
      const path = new Path2D();
      if (shape.type === "rect") path.rect(left, top, right - left, bottom - top);
      else {
        path.moveTo(left, top);
        path.lineTo(right, bottom);
      }
      const style = { stroke: line.color, strokeWidth: line.width ?? 2, strokeDasharray: dash, opacity: shape.opacity ?? 1 };
      if (shape.type === "rect") this.fill(path, { style }, shape.fillcolor);
      this.stroke(path, { style });
    });
  }

  // What draws a name or a number beside a line, and at which px it begins (`left`); null if it has what only Plotly draws.
  words(note) {
    const rows = rowsOf(note), { family, size } = { ...this.layout.font, ...note.font }, { l, t, w, h } = this.layout._size;
    if (!rows || note.textangle || note.showarrow) return null;
    const x = note.xref === "paper" ? l + note.x * w : pixel(this.axis(note.xref), true)(note.x);
    const y = note.yref === "paper" ? t + (1 - note.y) * h : pixel(this.axis(note.yref), true)(note.y);
    const xanchor = note.xanchor ?? anchor((x - l) / w, "left", "center", "right"), yanchor = note.yanchor ?? anchor(1 - (y - t) / h, "bottom", "middle", "top");
    const { pen } = this, write = ({ bold }) => { pen.font = `${bold ? "bold " : ""}${size}px ${family}`; };
    const lengths = rows.map((row) => row.reduce((sum, part) => (write(part), sum + pen.measureText(part.text).width), 0));
    write({});
    const { fontBoundingBoxAscent: above, fontBoundingBoxDescent: below } = pen.measureText("x");
    const pad = 1 + (note.borderpad ?? 1); // with the border, which has no colour
    const wide = Math.round(Math.max(...lengths)) + 2 * pad, high = Math.round(above) + Math.round(below) + (rows.length - 1) * LINE * size + 2 * pad;
    const left = Math.round(x + (note.xshift ?? 0) - { left: 0, center: wide / 2, right: wide }[xanchor]);
    const top = Math.round(y - (note.yshift ?? 0) - { top: 0, middle: high / 2, bottom: high }[yanchor]);
    const draw = () => {
      if (note.bgcolor) {
        pen.fillStyle = note.bgcolor;
        pen.fillRect(left + 0.5, top + 0.5, wide - 1, high - 1);
      }
      rows.forEach((row, nth) => {
        let at = left + pad;
        for (const part of row) {
          write(part);
          pen.fillStyle = part.colour ?? note.font?.color ?? this.layout.font.color;
          pen.fillText(part.text, at, top + pad + Math.round(above) + nth * LINE * size);
          at += pen.measureText(part.text).width;
        }
      });
    };
    return Object.assign(draw, { left });
  }

  within(clip, draw) {
    if (!clip) return draw();
    this.pen.save();
    this.pen.beginPath();
    this.pen.rect(...clip);
    this.pen.clip();
    draw();
    this.pen.restore();
  }

  stroke(path, { style }) {
    const width = parseFloat(style.strokeWidth ?? 1);
    if (!width || !style.stroke || style.stroke === "none") return;
    this.pen.globalAlpha = this.opacity * Number(style.strokeOpacity || 1) * Number(style.opacity || 1);
    this.pen.strokeStyle = style.stroke;
    this.pen.lineWidth = width;
    this.pen.setLineDash(style.strokeDasharray && style.strokeDasharray !== "none" ? style.strokeDasharray.split(",").map(parseFloat) : []);
    this.pen.stroke(path);
    this.pen.globalAlpha = 1;
  }

  fill(path, { style }, colour = style.fill) {
    if (!colour || colour === "none" || style.fillOpacity === "0") return;
    this.pen.globalAlpha = this.opacity * Number(style.fillOpacity || 1) * Number(style.opacity || 1);
    this.pen.fillStyle = colour;
    this.pen.fill(path);
    this.pen.globalAlpha = 1;
  }
}

// The place of a value on the chart in px: a straight line, of its logarithm on a log axis. isLog: the value is a logarithm already.
function pixel(axis, isLog = false) {
  const [from, to] = axis.range, scale = (axis.r2p(to) - axis.r2p(from)) / (to - from), start = axis._offset + axis.r2p(from) - scale * from;
  return axis.type === "log" && !isLog ? (value) => start + scale * Math.log10(value) : (value) => start + scale * value;
}

// Where the points of a line are, in px; null is a gap. A stepped line (hv) stays at a value until the next.
function placesOf({ x: xs, y: ys, line }, x, y) {
  const places = [];
  for (let i = 0; i < ys.length; i++) {
    const px = x(xs[i]), py = y(ys[i]), before = places.at(-1);
    if (line?.shape === "hv" && before) places.push([px, before[1]]);
    places.push(Number.isFinite(py) ? [px, py] : null);
  }
  return places;
}

function pathOf(places) {
  const path = new Path2D();
  let open = false;
  for (const place of places) {
    if (place) path[open ? "lineTo" : "moveTo"](...place);
    open = place !== null;
  }
  return path;
}

// A line in pieces, each of which begins with the last stretch of the one before, so that they join: without a GPU a browser takes twice
// as long for a line of 400 points in one. A line that lets others shine through, or has dashes, stays whole.
// Pieces that end left of `from` px are left out.
function piecesOf(places, { style }, opacity, from) {
  const whole = opacity < 1 || Number(style.strokeOpacity || 1) < 1 || (style.strokeDasharray && style.strokeDasharray !== "none");
  const paths = [], size = whole ? places.length : PIECE;
  for (let first = 0; first < places.length; first += size) {
    const piece = places.slice(Math.max(0, first - 2), first + size);
    if (piece.some((place) => place && place[0] >= from)) paths.push(pathOf(piece));
  }
  return paths;
}

// The edges between cells in px: halfway between the middles of two. null if they are not numbers, or less than two.
function edgesOf(middles, axis) {
  const n = middles.length;
  if (n < 2) return null;
  const at = (nth) => (nth === 0 ? 1.5 * middles[0] - 0.5 * middles[1] : nth === n ? 1.5 * middles[n - 1] - 0.5 * middles[n - 2] : (middles[nth - 1] + middles[nth]) / 2);
  const edges = Array.from({ length: n + 1 }, (_, nth) => axis._offset + axis.c2p(at(nth)));
  return edges.every(Number.isFinite) ? edges : null;
}

// Whether cells are as long as each other, to a hundredth.
function isEven(middles) {
  const mean = (middles.at(-1) - middles[0]) / (middles.length - 1);
  return middles.every((middle, nth) => !nth || Math.abs(middle - middles[nth - 1] - mean) <= Math.abs(mean) / 100);
}

// Where each cell begins between its edges, in whole px, and how long it is, with a gap to the next.
function stretches(edges, gap = 0) {
  const whole = edges.map(Math.round);
  return whole.slice(1).map((edge, nth) => [Math.min(edge, whole[nth]) + Math.floor(gap / 2), Math.abs(edge - whole[nth]) - gap]);
}

// What writes the colour of a value into a picture, by the trace's scale, and nothing for a value that is missing; null if a colour of
// the scale is not written as #RRGGBB, or the scale has no length.
function colourOf({ colorscale, zmin, zmax }) {
  if (!Array.isArray(colorscale) || zmax <= zmin || !colorscale.every(([, name]) => /^#[0-9a-f]{6}$/i.test(name))) return null;
  const stops = colorscale.map(([at, name]) => [at, [1, 3, 5].map((digit) => parseInt(name.slice(digit, digit + 2), 16))]);
  return (value, into, at) => {
    if (!Number.isFinite(value)) return;
    const share = Math.min(1, Math.max(0, (value - zmin) / (zmax - zmin)));
    const upper = Math.max(1, stops.findIndex(([stop]) => stop >= share)), [[low, one], [high, other]] = [stops[upper - 1], stops[upper]];
    for (let i = 0; i < 3; i++) into[at + i] = one[i] + ((other[i] - one[i]) * (share - low)) / (high - low || 1);
    into[at + 3] = 255;
  };
}

// The dashes of a line in px as Plotly has them, by its word for them; null for a word that none of our figures has.
function dashOf({ dash = "solid", width = 2 }) {
  const each = Math.max(width, 3);
  const words = { solid: "none", dot: `${each}px,${each}px`, dash: `${3 * each}px,${3 * each}px` };
  return words[dash] ?? (/^[\d.]+px(,[\d.]+px)*$/.test(dash) ? dash : null);
}

// Which side of a name stands at its place if the name does not say: Plotly's rule.
function anchor(share, low, middle, high) {
  return share < 1 / 3 ? low : share > 2 / 3 ? high : middle;
}

const ENTITIES = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": "\u00a0" };

// The words of a name by rows, each in parts of one colour and weight; null if it has a tag or a sign that is not known here.
function rowsOf({ text }) {
  const rows = [[]], open = [];
  for (const part of text.split(/(<[^>]*>)/).filter(Boolean)) {
    const colour = part.match(/^<span style="color:([^";]+);?">$/)?.[1];
    if (part === "<br>") rows.push([]);
    else if (part === "<b>") open.push({ bold: true });
    else if (colour) open.push({ colour });
    else if (part === "</b>" || part === "</span>") open.pop();
    else if (part.startsWith("<")) return null;
    else {
      const plain = part.replace(/&\w+;|&#\d+;/g, (sign) => ENTITIES[sign] ?? "\0");
      if (plain.includes("\0")) return null;
      rows.at(-1).push(Object.assign({ text: plain }, ...open));
    }
  }
  return rows;
}

// Of two lists of numbers: how many are the same from the first on, and how many from the last; Infinity if all are.
function changedIn(before, after) {
  const short = Math.min(before.length, after.length), equal = Object.is;
  let first = 0, last = 0;
  while (first < short && equal(before[first], after[first])) first++;
  if (first === before.length && first === after.length) return [Infinity, Infinity];
  while (last < short - first && equal(before[before.length - 1 - last], after[after.length - 1 - last])) last++;
  return [first, last];
}

// Whether two values of plain types are the same.
export function same(one, other) {
  if (Object.is(one, other)) return true;
  if (typeof one !== "object" || typeof other !== "object" || !one || !other) return false;
  const names = Object.keys(one);
  return names.length === Object.keys(other).length && names.every((name) => same(one[name], other[name]));
}
