// The floor over the last seconds: a lane for each side, where both speak a third colour across, a ring for a backchannel.

const SPAN_S = 30;
const NARROW_SPAN_S = 15;
const LINGER_S = 0.25; // gaps shorter than this between two sounds of the agent are one utterance

/** Who spoke when, in seconds of the microphone's clock. Forgets what is older than twice the span. */
export class Speech {
  constructor() {
    this.user = [];
    this.agent = [];
    this.backchannels = [];
  }

  begin(who, at) {
    const last = this[who].at(-1);
    if (last && last.end === null) return;
    this[who].push({ start: at, end: null });
    while (this[who].length && this[who][0].end !== null && this[who][0].end < at - 2 * SPAN_S) this[who].shift();
  }

  end(who, at) {
    const last = this[who].at(-1);
    if (last && last.end === null) last.end = Math.max(at, last.start);
  }

  /** The agent is (not) audible in the block that ends at `at`. */
  agentAudible(audible, at, blockS) {
    const last = this.agent.at(-1);
    if (audible) {
      if (last && last.end !== null && at - last.end < LINGER_S) last.end = null;
      else this.begin("agent", at - blockS);
    } else this.end("agent", at - blockS);
  }

  backchannel(at) {
    this.backchannels.push(at);
    if (this.backchannels.length > 100) this.backchannels.shift();
  }

  /** Where both spoke, as {start, end} up to `now`. */
  overlaps(now) {
    const found = [];
    for (const u of this.user)
      for (const a of this.agent) {
        const start = Math.max(u.start, a.start);
        const end = Math.min(u.end ?? now, a.end ?? now);
        if (end > start) found.push({ start, end });
      }
    return found;
  }

  /** Words for who cannot see the picture. */
  describe(now) {
    const total = (parts) => parts.reduce((sum, { start, end }) => sum + (end ?? now) - start, 0).toFixed(0);
    if (!this.user.length && !this.agent.length) return "Nobody has spoken yet.";
    return (
      `You spoke ${total(this.user)} seconds, the agent ${total(this.agent)}, both at once ${total(this.overlaps(now))}; ` +
      `${this.backchannels.length} short sounds of yours let the agent go on.`
    );
  }
}

export class Ribbon {
  constructor(canvas, speech) {
    this.canvas = canvas;
    this.speech = speech;
  }

  draw(now) {
    const { canvas, speech } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * scale)) canvas.width = Math.round(width * scale);
    if (canvas.height !== Math.round(height * scale)) canvas.height = Math.round(height * scale);
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(name).trim();
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    const span = width < 480 ? NARROW_SPAN_S : SPAN_S;
    const left = Math.max(now - span, 0); // from the left at first, then the newest moment stays at the right
    const x = (at) => ((at - left) / span) * width;
    const lane = { user: 8, agent: 38 };
    const tall = 22;

    pen.fillStyle = color("--quiet");
    pen.strokeStyle = color("--border-color-primary");
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "center";
    for (let second = Math.ceil(left / 5) * 5; second <= left + span; second += 5) {
      pen.beginPath();
      pen.moveTo(x(second), 4);
      pen.lineTo(x(second), height - 18);
      pen.stroke();
      if (x(second) > 16 && x(second) < width - 16) pen.fillText(`${second} s`, x(second), height - 6);
    }
    const bar = (part, top, tall_) => {
      const from = Math.max(x(part.start), 0);
      const to = Math.min(x(part.end ?? now), width);
      if (to > 0 && from < width) pen.fillRect(from, top, Math.max(to - from, 1.5), tall_);
    };
    for (const who of ["user", "agent"]) {
      pen.fillStyle = color(`--${who}`);
      for (const part of speech[who]) bar(part, lane[who], tall);
    }
    pen.fillStyle = color("--both");
    for (const part of speech.overlaps(now)) bar(part, lane.user + tall, lane.agent - lane.user - tall);
    pen.lineWidth = 2;
    pen.strokeStyle = color("--user");
    for (const at of speech.backchannels) {
      pen.beginPath();
      pen.arc(x(at), lane.user + tall + 4, 6, 0, 2 * Math.PI);
      pen.fillStyle = color("--background-fill-primary");
      pen.fill();
      pen.stroke();
    }
    pen.lineWidth = 1;
  }
}
