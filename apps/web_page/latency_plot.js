// Response and stop latency per turn: a bar until the answer, a diamond until silence after an interruption.

const SVG = "http://www.w3.org/2000/svg";
const MOST_TURNS = 40;
const EDGE = { left: 34, right: 8, top: 10, bottom: 20 };

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];
const counted = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
const seconds = (value) => `${value.toFixed(2)} s`;

/** One line about the figures. */
export function describe(turns) {
  const responses = turns.map((turn) => turn.responseS).filter((value) => value !== null);
  const stops = turns.map((turn) => turn.stopS).filter((value) => value !== null);
  if (!responses.length && !stops.length) return "No answer yet.";
  const parts = [];
  if (responses.length) {
    parts.push(`${counted(responses.length, "answer")}, the last after ${seconds(responses.at(-1))}, median ${seconds(median(responses))}`);
  }
  if (stops.length) parts.push(`${counted(stops.length, "interruption")}, silent after ${seconds(stops.at(-1))}, at most ${seconds(Math.max(...stops))}`);
  return `${parts.join("; ")}.`;
}

export class LatencyPlot {
  constructor(svg, figures) {
    this.svg = svg;
    this.figures = figures;
  }

  draw(all) {
    const { svg } = this;
    const turns = all.slice(-MOST_TURNS);
    const first = all.length - turns.length;
    const width = svg.clientWidth;
    const height = svg.clientHeight;
    const most = Math.max(1, ...turns.flatMap((turn) => [turn.responseS ?? 0, turn.stopS ?? 0]));
    const top = Math.ceil(most * 2) / 2;
    const y = (value) => height - EDGE.bottom - (value / top) * (height - EDGE.top - EDGE.bottom);
    const step = (width - EDGE.left - EDGE.right) / Math.max(turns.length, 8);
    const parts = [];
    const add = (name, attributes, text) => {
      const part = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value);
      if (text !== undefined) part.textContent = text;
      parts.push(part);
    };
    for (let mark = 0; mark <= top; mark += top > 3 ? 1 : 0.5) {
      add("line", { x1: EDGE.left, x2: width - EDGE.right, y1: y(mark), y2: y(mark) });
      add("text", { x: EDGE.left - 4, y: y(mark) + 4, "text-anchor": "end" }, `${mark} s`);
    }
    turns.forEach((turn, i) => {
      const middle = EDGE.left + (i + 0.5) * step;
      const half = Math.min(step * 0.3, 14);
      if (turn.responseS !== null) {
        add("rect", { class: "response", x: middle - half, width: 2 * half, y: y(turn.responseS), height: y(0) - y(turn.responseS), rx: 2 });
      }
      if (turn.stopS !== null) {
        const at = y(turn.stopS);
        add("path", { class: "stop", stroke: "var(--background-fill-primary)", d: `M${middle} ${at - 7}l7 7l-7 7l-7 -7z` });
      }
      if (turns.length <= 20 || (first + i + 1) % 5 === 0) {
        add("text", { x: middle, y: height - 6, "text-anchor": "middle" }, `${first + i + 1}`);
      }
    });
    svg.replaceChildren(...parts);
    const told = describe(all);
    svg.setAttribute("aria-label", told);
    this.figures.textContent = told;
  }
}
