// The page: finds its elements, starts and ends conversations, and shows what they tell. `start(element)` is called by Gradio.

import { Conversation } from "./conversation.js";
import { LatencyPlot } from "./latency_plot.js";
import { Recording } from "./pcm.js";
import { RealtimeSocket } from "./realtime_socket.js";
import { Ribbon, Speech } from "./ribbon.js";
import { Sound, SoundError, whyNoMicrophone } from "./sound.js";
import { Transcript } from "./transcript.js";

const FLOORS = {
  quiet: "Listening.",
  user: "You speak.",
  pause: "You pause.",
  agent: "The agent speaks.",
  ducked: "You both speak.",
  held: "The agent waits for you.",
};
const DRAW_MS = 66;
const DESCRIBE_MS = 3000;
const METER_DB = -60;

export function start(root, { key = "" } = {}) {
  return new Page(root, key);
}

class Page {
  constructor(root, key) {
    const find = (selector) => root.querySelector(selector);
    this.root = root;
    this.key = key;
    this.settings = {};
    this.talkButton = find(".talk");
    this.muteButton = find(".mute");
    this.hushButton = find(".hush");
    this.statusLine = find(".status");
    this.problemLine = find(".problem");
    this.meters = { user: find(".meter.user"), agent: find(".meter.agent") };
    this.canvas = find("canvas");
    this.typing = find(".typing");
    this.recordBox = find(".record");
    this.download = find(".download");
    this.transcript = new Transcript(find(".transcript"), find(".announcer"));
    this.plot = new LatencyPlot(find("svg"), find(".figures"));
    this.ribbon = new Ribbon(this.canvas, new Speech());
    this.conversation = null;
    this.shown = null; // the conversation that is on the page, also after its end
    this.socket = null;
    this.sound = null;
    this.starting = false;
    this.remarks = 0;
    this.lastRemark = "";
    this.frame = null;
    this.drawn = this.described = 0;

    this.talkButton.onclick = () => (this.talking || this.starting ? this.stop() : this.begin());
    this.muteButton.onclick = () => this.mute(!this.sound.muted);
    this.hushButton.onclick = () => this.conversation?.hush();
    this.recordBox.onchange = () => this.record(this.recordBox.checked);
    this.typing.onsubmit = (event) => {
      event.preventDefault();
      const [field] = this.typing.elements;
      if (field.value.trim() && this.conversation?.say(field.value.trim())) field.value = "";
    };
    new ResizeObserver(() => this.redraw()).observe(root.querySelector(".duologue"));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(() => this.redraw(), 100));
    window.addEventListener("pagehide", () => this.socket?.close());
    const reason = whyNoMicrophone();
    if (reason) this.problem(reason);
    this.talkButton.disabled = false;
  }

  get talking() {
    return this.conversation !== null;
  }

  // -- a conversation begins and ends -----------------------------------------------------------------------------------------------

  async begin() {
    this.starting = true;
    this.problem("");
    this.say("Asking for the microphone …");
    this.talkButton.setAttribute("aria-pressed", "true");
    this.talkButton.textContent = "Stop";
    let conversation = null;
    let sound;
    try {
      sound = await Sound.open({ onBlock: (block) => conversation?.block(block), onLost: (message) => this.stop(message) });
    } catch (error) {
      if (!(error instanceof SoundError)) console.error(error);
      return this.stop(error.message);
    }
    if (!this.starting) return sound.close(); // Stop was pressed while the browser asked
    this.starting = false;
    this.say("Connecting …");
    const socket = new RealtimeSocket({
      model: this.settings.profile,
      key: this.settings.key || this.key,
      onEvent: (event) => conversation.event(event),
      onState: (state, message) => this.connection(state, message),
    });
    conversation = new Conversation({ socket, sound, view: this, settings: this.settings });
    this.transcript.clear();
    this.lastRemark = "";
    this.plot.draw([]);
    this.ribbon.speech = conversation.speech;
    Object.assign(this, { conversation, socket, sound, shown: conversation });
    if (this.recordBox.checked) this.record(true);
    socket.open();
    this.animate();
  }

  stop(message = "") {
    this.starting = false;
    const { conversation, socket, sound } = this;
    if (conversation?.recording) this.keep(conversation.recording);
    this.conversation = this.socket = this.sound = null;
    socket?.close();
    sound?.close();
    this.talkButton.setAttribute("aria-pressed", "false");
    this.talkButton.textContent = "Talk";
    this.enable(false);
    this.mute(false);
    this.levels(METER_DB, METER_DB);
    this.say("Press Talk and speak. You can interrupt the agent at any time.");
    this.problem(message);
  }

  connection(state, message) {
    if (state === "ended") return this.stop(message);
    this.enable(state === "open");
    this.say(state === "open" ? FLOORS.quiet : message);
  }

  enable(on) {
    this.muteButton.disabled = !on;
    for (const field of this.typing.elements) field.disabled = !on;
    if (!on) this.hushButton.disabled = true;
  }

  mute(on) {
    if (this.sound) this.sound.muted = on;
    this.muteButton.setAttribute("aria-pressed", String(on));
    this.muteButton.textContent = on ? "Muted" : "Mute";
  }

  /** Called by the settings' components with {profile, voice, instructions, eagerness, key}. */
  configure(settings) {
    this.settings = settings;
    if (!this.conversation) return;
    if (settings.profile === this.conversation.settings.profile) this.conversation.update(settings);
    else this.remark(`You still talk with ${this.conversation.settings.profile}. Press Stop, then Talk, for ${settings.profile}.`);
  }

  // -- the recording ----------------------------------------------------------------------------------------------------------------

  record(on) {
    if (!this.conversation) return;
    if (!on && this.conversation.recording) this.keep(this.conversation.recording);
    this.conversation.recording = on ? new Recording() : null;
    if (on) this.offer(null);
  }

  keep(recording) {
    if (recording.length) this.offer(URL.createObjectURL(recording.wav()));
  }

  offer(url) {
    if (this.download.href) URL.revokeObjectURL(this.download.href);
    this.download.hidden = url === null;
    if (url === null) this.download.removeAttribute("href");
    else this.download.href = url;
  }

  // -- what a conversation tells ----------------------------------------------------------------------------------------------------

  say(text) {
    this.statusLine.textContent = text;
  }

  problem(text) {
    this.problemLine.textContent = text;
    this.problemLine.hidden = !text;
  }

  remark(text) {
    if (text === this.lastRemark) return; // once is enough
    this.lastRemark = text;
    this.transcript.remark(`remark ${++this.remarks}`, text);
  }

  floor(floor) {
    this.say(FLOORS[floor] ?? floor);
  }

  speaking(on) {
    this.hushButton.disabled = !on;
  }

  levels(userDb, agentDb) {
    this.meter(this.meters.user, userDb);
    this.meter(this.meters.agent, agentDb);
  }

  meter(element, db) {
    const level = Math.min(Math.max(1 - db / METER_DB, 0), 1);
    element.firstElementChild.style.transform = `scaleX(${level.toFixed(3)})`;
    element.setAttribute("aria-valuenow", String(Math.round(Math.min(Math.max(db, METER_DB), 0))));
  }

  user(id, text, final) {
    this.transcript.user(id, text, final);
  }

  userDropped(id) {
    this.transcript.remove(id);
  }

  backchannel(text) {
    const id = `backchannel ${++this.remarks}`;
    this.transcript.user(id, text || "(a short sound)", true);
    this.transcript.note(id, "the agent goes on");
  }

  agentBackchannel(text) {
    const id = `backchannel ${++this.remarks}`;
    this.transcript.agent(id, text, text);
    this.transcript.note(id, "it listens");
  }

  agent(id, heard, text, final) {
    this.transcript.agent(id, heard, text);
    if (final) this.transcript.agentEnded(id, heard.trim() !== text.trim());
  }

  note(id, text) {
    this.transcript.note(id, text);
  }

  timed(latencies) {
    this.plot.draw(latencies);
  }

  gap(count) {
    if ([1, 10, 100].includes(count)) this.remark("The agent's voice ran dry for a moment: the server or the network is too slow.");
  }

  // -- drawing ----------------------------------------------------------------------------------------------------------------------

  animate() {
    cancelAnimationFrame(this.frame);
    const step = (now) => {
      if (!this.conversation) return;
      if (now - this.drawn >= DRAW_MS) {
        this.drawn = now;
        this.ribbon.draw(this.conversation.nowS);
      }
      if (now - this.described >= DESCRIBE_MS) {
        this.described = now;
        this.canvas.setAttribute("aria-label", this.conversation.speech.describe(this.conversation.nowS));
      }
      this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  redraw() {
    this.ribbon.draw(this.shown?.nowS ?? 0);
    this.plot.draw(this.shown?.latencies ?? []);
  }
}
