// Printing: the charts get the colours of the light look, and as they were afterwards. The rest is live.css, under `print`.

export const printing = matchMedia("print");
const SHEET = 703; // px across A4 between our margins
const LEAST = 0.57; // of the screen's size: smaller letters could not be read

// How much of the sheet's width each cell of a page has, in 48ths. Charts stand as on the screen, all reduced by the same factor. If that made
// letters too small, each has half of the sheet, or all of it where half is too little. To be called while the page is as on the screen.
export function place(grid) {
  const scale = Math.min(1, SHEET / grid.clientWidth);
  for (const cell of grid.children) {
    const share = (Math.max(LEAST, scale) * cell.clientWidth) / SHEET, span = scale < LEAST ? (share > 0.56 ? 48 : 24) : Math.round(48 * share);
    cell.style.setProperty("--span", Math.min(48, Math.max(1, span)));
  }
}

// Calls back before and after the page is printed. The browser waits for neither, so what is to be printed must be drawn at once.
export function onPrint(back, signal) {
  for (const name of ["beforeprint", "afterprint"]) addEventListener(name, () => back(name === "beforeprint"), { signal });
  printing.addEventListener("change", () => back(printing.matches), { signal });
}

// A spec with each colour of the page's look, and each word for one, replaced by that which has its role on paper. A figure may have
// colours that become others than elsewhere (runs, not experts), and letters on cells the colour that reads on the printed cell.
export function onPaper(spec, paper) {
  const { data, layout } = replaced(spec, { ...paper, ...spec.layout.meta?.paper });
  spec.data.forEach(({ meta }, at) => meta?.printed && (data[at].textfont.color = meta.printed));
  return { data, layout };
}

function replaced(value, paper) {
  if (typeof value === "string") return recoloured(value, paper);
  if (value === null || typeof value !== "object" || ArrayBuffer.isView(value)) return value;
  if (Array.isArray(value)) {
    const numbers = typeof value[0] === "number" && typeof value.at(-1) === "number";
    return numbers || ArrayBuffer.isView(value[0]) ? value : value.map((one) => replaced(one, paper));
  }
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, replaced(inner, paper)]));
}

function recoloured(text, paper) {
  for (const [word, other] of Object.entries(paper)) if (word[0] !== "#") text = text.replace(word, other);
  return text
    .replace(/#[0-9a-f]{6}\b/gi, (colour) => paper[colour.toUpperCase()] ?? colour)
    .replace(/rgba\((\d+),(\d+),(\d+),/g, (whole, ...parts) => {
      const other = paper[hex(parts.slice(0, 3))];
      return other ? `rgba(${[1, 3, 5].map((at) => parseInt(other.slice(at, at + 2), 16)).join(",")},` : whole;
    });
}

function hex(channels) {
  return `#${channels.map((one) => Number(one).toString(16).padStart(2, "0")).join("")}`.toUpperCase();
}
