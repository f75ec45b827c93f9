// Streamgauge's charts, drawn in a tab of Locust's web UI. Needs no library and asks nobody else.
//
// Locust's page is React's. It shows nothing under our tab, and there this script hangs one element
// of its own, which React does not know of and leaves alone. Colours are the page's: lines apart,
// everything is drawn in the colour of its text, so that light and dark both fit.

const TITLE = "Streaming";
const EVERY_MS = 2000;
const KEPT = 1800; // points: an hour
const WIDTH = 640, HEIGHT = 240, LEFT = 64, RIGHT = 12, TOP = 10, BOTTOM = 28;

// The dashboard's styles: told apart by dash as well as by colour.
const STYLES = {
  p50: { colour: "#1c7fc4", dash: "" },
  p95: { colour: "#d55e00", dash: "6 3" },
  rate: { colour: "#1c7fc4", dash: "" },
};

const CHARTS = [
  latency("ttft", "TTFT", "time to first token"),
  latency("itl", "ITL", "gap between output events"),
  latency("e2e", "E2E", "time to the whole answer"),
  {
    title: "Output tokens/s",
    meaning: "of answers that ended",
    count: null,
    lines: [{ label: "", key: "output_tokens_per_s", style: STYLES.rate }],
    units: () => ({ name: "tokens/s", factor: 1 }),
  },
];

function latency(key, title, meaning) {
  const line = (q) => ({ label: q, key: `${key}_${q}_s`, style: STYLES[q] });
  return {
    title,
    meaning,
    count: `${key}_n`,
    lines: [line("p50"), line("p95")],
    units: (most) => (most < 10 ? { name: "ms", factor: 1000 } : { name: "s", factor: 1 }),
  };
}

let shown = { run: null, points: [] };
let panel = null;
let hovered = null; // index of the point under the pointer, in every chart

// Numbers: null is not observed, and a gap; "inf" is infinite, and drawn at the top.

const value = (point, key) => (point[key] === "inf" ? Infinity : (point[key] ?? Number.NaN));

function inWords(number, units) {
  if (Number.isNaN(number)) return "–";
  if (number === Infinity) return "∞";
  const scaled = number * units.factor;
  return `${scaled.toLocaleString("en", { maximumSignificantDigits: 3 })} ${units.name}`;
}

const clock = (seconds) => {
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  return (whole >= 3600 ? [Math.floor(whole / 3600), ...parts] : parts).join(":");
};

// About `count` round steps from 0 to at least `most`.
function ticks(most, count) {
  const rough = most / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= rough);
  return Array.from({ length: Math.ceil(most / step - 1e-9) + 1 }, (_, i) => i * step);
}

function minutes(from, to) {
  const step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900].find((size) => (to - from) / size <= 7);
  const first = Math.ceil(from / step) * step;
  const found = [];
  for (let at = first; at <= to; at += step) found.push(at);
  return found;
}

// Drawing

function drawing(chart, points) {
  const finite = points.flatMap((p) => chart.lines.map((l) => value(p, l.key))).filter(Number.isFinite);
  const units = chart.units(Math.max(0, ...finite));
  const marks = ticks(Math.max(0, ...finite) * units.factor || 1, 4);
  const most = marks[marks.length - 1] / units.factor;
  const from = points.length > 1 ? points[0].at_s : 0;
  const to = Math.max(from + 10, points.length ? points[points.length - 1].at_s : 0);
  const x = (at) => LEFT + ((at - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  const y = (number) => TOP + (1 - Math.min(number, most) / most) * (HEIGHT - TOP - BOTTOM);
  const parts = [];
  for (const mark of marks) {
    const at = y(mark / units.factor);
    const text = mark.toLocaleString("en", { maximumSignificantDigits: 6 });
    parts.push(`<line x1="${LEFT}" x2="${WIDTH - RIGHT}" y1="${at}" y2="${at}" class="grid"/>`);
    parts.push(`<text x="${LEFT - 6}" y="${at + 4}" text-anchor="end">${text}</text>`);
  }
  for (const at of minutes(from, to)) {
    parts.push(`<text x="${x(at)}" y="${HEIGHT - 8}" text-anchor="middle">${clock(at)}</text>`);
  }
  parts.push(`<text x="${LEFT - 6}" y="${HEIGHT - 8}" text-anchor="end" class="unit">${units.name}</text>`);
  if (hovered !== null && points[hovered]) {
    const at = x(points[hovered].at_s);
    parts.push(`<line x1="${at}" x2="${at}" y1="${TOP}" y2="${HEIGHT - BOTTOM}" class="pointer"/>`);
  }
  for (const line of chart.lines) {
    const { colour, dash } = line.style;
    const style = `fill="none" stroke="${colour}" stroke-width="2" stroke-dasharray="${dash}"`;
    parts.push(`<path d="${path(points, line.key, x, y)}" data-line="${line.key}" ${style}/>`);
    for (const point of points.filter((p) => value(p, line.key) === Infinity)) {
      const at = x(point.at_s);
      parts.push(`<path d="M${at - 4} ${TOP + 5}L${at} ${TOP - 3}L${at + 4} ${TOP + 5}Z" fill="${colour}"/>`);
    }
  }
  return { svg: parts.join(""), units, x, from, to };
}

// A point without neighbours is drawn as a dot: a line of no length, with round ends.
function path(points, key, x, y) {
  let drawn = "";
  let pen = "M";
  for (const point of points) {
    const number = value(point, key);
    if (Number.isFinite(number)) {
      drawn += `${pen}${x(point.at_s).toFixed(1)} ${y(number).toFixed(1)}${pen === "M" ? "h0" : ""}`;
      pen = "L";
    } else {
      pen = "M";
    }
  }
  return drawn;
}

function legend(chart, point, units) {
  const items = chart.lines.map((line) => {
    const { colour, dash } = line.style;
    const sample = `<svg width="24" height="10"><line x1="0" x2="24" y1="5" y2="5" stroke="${colour}"
      stroke-width="2" stroke-dasharray="${dash}"/></svg>`;
    const said = point ? inWords(value(point, line.key), units) : "–";
    return `<span>${sample} ${line.label} <b data-value="${line.key}">${said}</b></span>`;
  });
  const n = chart.count && point ? `<span>n = ${point[chart.count].toLocaleString("en")}</span>` : "";
  return items.join("") + n;
}

function sentence(chart, point, units) {
  if (!point) return `${chart.title}: nothing yet.`;
  const said = chart.lines.map((line) => `${line.label} ${inWords(value(point, line.key), units)}`.trim());
  return `${chart.title}, ${chart.meaning}: ${said.join(", ")} in the 10 s up to ${clock(point.at_s)}.`;
}

function draw() {
  if (!panel) return;
  const { run, points } = shown;
  const point = points[hovered ?? points.length - 1];
  const head = panel.querySelector("[data-head]");
  if (!run) {
    head.textContent = "No run yet. Charts begin with the first one.";
  } else {
    const when = point ? `${hovered === null ? "" : "at "}${clock(point.at_s)}` : clock(0);
    head.textContent =
      `Run ${run.name} (${run.id}), ${run.ended ? "ended" : "going on"}, ${when}. Each point: the 10 s` +
      ` before it, as felt: where more than 5 % fail, p95 is ∞. Whole runs: streamgauge report ${run.id}`;
  }
  for (const [index, figure] of [...panel.querySelectorAll("figure")].entries()) {
    const chart = CHARTS[index];
    const drawn = drawing(chart, points);
    const svg = figure.querySelector("[data-plot]");
    svg.innerHTML = drawn.svg;
    svg.setAttribute("aria-label", sentence(chart, points[points.length - 1], drawn.units));
    figure.querySelector("[data-legend]").innerHTML = legend(chart, point, drawn.units);
    figure.dataset.from = drawn.from;
    figure.dataset.to = drawn.to;
  }
}

function hover(event) {
  const svg = event.target.closest("[data-plot]");
  const points = shown.points;
  hovered = null;
  if (svg && event.type === "pointermove" && points.length) {
    const { from, to } = svg.closest("figure").dataset;
    const box = svg.getBoundingClientRect();
    const across = (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
    const at = Number(from) + across * (Number(to) - Number(from));
    const distance = (index) => Math.abs(points[index].at_s - at);
    hovered = points.reduce((best, _, index) => (distance(index) < distance(best) ? index : best), 0);
  }
  draw();
}

// The element

const STYLE = `
  .sg { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 24px;
        padding: 8px 0 32px; font: 14px Roboto, Helvetica, Arial, sans-serif; }
  .sg p { grid-column: 1 / -1; margin: 0; opacity: 0.8; }
  .sg figure { margin: 0; }
  .sg figcaption b { font-weight: 500; }
  .sg [data-legend] { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 4px 0; min-height: 20px; }
  .sg [data-plot] { display: block; width: 100%; touch-action: pan-y; }
  .sg svg text { fill: currentColor; opacity: 0.75; font-size: 12px; }
  .sg svg path { stroke-linecap: round; stroke-linejoin: round; }
  .sg .grid { stroke: currentColor; opacity: 0.15; }
  .sg .pointer { stroke: currentColor; opacity: 0.5; }
`;

function build() {
  const element = document.createElement("section");
  element.id = "streamgauge";
  element.className = "sg";
  const figures = CHARTS.map(
    ({ title, meaning }) => `<figure>
      <figcaption><b>${title}</b>, ${meaning}</figcaption>
      <div data-legend></div>
      <svg data-plot role="img" viewBox="0 0 ${WIDTH} ${HEIGHT}"></svg>
    </figure>`,
  );
  element.innerHTML = `<style>${STYLE}</style><p data-head></p>${figures.join("")}`;
  element.addEventListener("pointermove", hover);
  element.addEventListener("pointerleave", hover);
  return element;
}

// Our panel stands under Locust's tabs while ours is the one selected.
function place() {
  const selected = document.querySelector('[role="tab"][aria-selected="true"]');
  if (selected?.textContent.trim() !== TITLE) {
    panel?.remove();
    panel = null;
  } else if (!panel?.isConnected) {
    panel = build();
    const tabs = selected.closest('[role="tablist"]');
    (tabs.closest('[class*="MuiContainer"]') ?? tabs.parentElement).append(panel);
    draw();
  }
}

async function ask() {
  const { run, points } = shown;
  const after = points.length ? points[points.length - 1].at_s : -1;
  const answer = await fetch(`./streamgauge/live?run=${run ? run.id : ""}&after=${after}`);
  if (!answer.ok) return;
  const told = await answer.json();
  const same = run && told.run && run.id === told.run.id;
  const all = same ? [...points, ...told.points] : told.points;
  if (!same || all.length > KEPT) hovered = null; // it names a point by its place
  shown = { run: told.run, points: all.slice(-KEPT) };
  draw();
}

async function follow() {
  try {
    if (!document.hidden) await ask();
  } catch {
    // Locust has gone, or not answered this once; the next time tells.
  }
  setTimeout(follow, EVERY_MS);
}

new MutationObserver(place).observe(document.getElementById("root"), {
  subtree: true,
  childList: true,
  attributes: true,
  attributeFilter: ["aria-selected"],
});
place();
follow();
