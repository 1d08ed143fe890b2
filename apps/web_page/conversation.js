// One conversation: what goes between the socket, the sound and the views. Holds no element of the page.

import { EchoGuard } from "./echo_guard.js";
import { decode, encode, levelDb, RATE_HZ } from "./pcm.js";
import { Speech } from "./ribbon.js";

const ACK_EVERY_BLOCKS = 10;
const MURMUR = "murmur "; // begins the ids of sounds that belong to no response
const AUDIBLE_DB = -50;
const MOST_WAITING_BYTES = 256 * 1024; // some four seconds of sound that the network does not take: newer sound is dropped
const CLOCK_SPAN = 50; // level events, four seconds, over which the two clocks are compared

/** The server's clock in the page's: the least delayed of the last messages tells best. */
class Clock {
  constructor() {
    this.offsets = [];
  }

  note(serverMs, nowS) {
    this.offsets.push(nowS - serverMs / 1000);
    if (this.offsets.length > CLOCK_SPAN) this.offsets.shift();
  }

  toLocal(serverMs, nowS) {
    return this.offsets.length ? Math.min(serverMs / 1000 + Math.min(...this.offsets), nowS) : nowS;
  }
}

export class Conversation {
  /** `socket`, `sound` as in their modules; `view` has the methods that are called below. */
  constructor({ socket, sound, view, settings }) {
    Object.assign(this, { socket, sound, view, settings });
    this.speech = new Speech();
    this.guard = new EchoGuard();
    this.clock = new Clock();
    this.latencies = []; // {id, responseS, stopS} per turn
    this.recording = null;
    this.sessionId = null;
    this.floor = "quiet";
    this.blocks = 0;
    this.acks = []; // what the worklet had played, block by block, as long as it is on its way to the loudspeaker
    this.acked = "";
    this.murmurs = 0;
    this.stale = new Set(); // items whose sound is not wanted any more
    this.current = null; // the item that is being spoken
    this.open = null; // the user's item that is not final yet
    this.gaps = { seen: 0, told: 0 };
  }

  get nowS() {
    return this.blocks * this.blockS;
  }

  blockS = 0.02;

  /** Every 20 ms, from the sound. */
  block({ near, far, underruns, id, played, playing }) {
    this.blockS = near.length / RATE_HZ;
    this.blocks++;
    if (this.guard.isEcho(near, far)) near.fill(0);
    const farDb = levelDb(far);
    this.speech.agentAudible(farDb > AUDIBLE_DB, this.nowS, this.blockS);
    this.view.levels(levelDb(near), farDb);
    this.recording?.add(near, far);
    if (this.socket.waitingBytes < MOST_WAITING_BYTES) this.socket.send({ type: "input_audio_buffer.append", audio: encode(near) });
    if (underruns > this.gaps.seen) {
      if (playing && this.floor === "agent") this.view.gap(++this.gaps.told);
      this.gaps.seen = underruns;
    }
    this.acks.push({ id, played });
    const late = Math.round(this.sound.outputLatencyS / this.blockS);
    while (this.acks.length > late + 1) this.acks.shift();
    if (this.blocks % ACK_EVERY_BLOCKS === 0) this.acknowledge(this.acks[0]);
  }

  acknowledge({ id, played }) {
    const mark = `${id} ${played}`;
    if (id === null || id.startsWith(MURMUR) || mark === this.acked) return;
    this.acked = mark;
    this.socket.send({ type: "duologue.playback.ack", item_id: id, played_ms: Math.round((1000 * played) / RATE_HZ) });
  }

  /** Settings are sent when the session begins and whenever one changes. */
  update(settings) {
    this.settings = settings;
    const { instructions, voice, eagerness } = settings;
    const audio = { input: { turn_detection: { type: "semantic_vad", eagerness: eagerness || "auto" } } };
    if (voice) audio.output = { voice };
    const session = { type: "realtime", audio, duologue: { levels: true } };
    if (instructions !== undefined) session.instructions = instructions;
    this.socket.send({ type: "session.update", session });
  }

  say(text) {
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    return this.socket.send({ type: "conversation.item.create", item }) && this.socket.send({ type: "response.create" });
  }

  /** Makes the agent stop now, without waiting for the server to hear of it. */
  hush() {
    if (this.current === null) return;
    this.silence(this.current);
    this.socket.send({ type: "response.cancel" });
  }

  silence(id) {
    this.stale.add(id);
    if (this.stale.size > 50) this.stale.delete(this.stale.values().next().value);
    this.sound.stop();
  }

  local(serverMs) {
    return this.clock.toLocal(serverMs, this.nowS);
  }

  /** One event of the server. */
  event(event) {
    const { view } = this;
    switch (event.type) {
      case "session.created":
        if (this.sessionId !== null && this.sessionId !== event.session.id) view.remark("A new conversation begins: the last one is lost.");
        this.sessionId = event.session.id;
        this.clock = new Clock();
        this.update(this.settings);
        break;
      case "duologue.levels":
        this.clock.note(event.at_ms, this.nowS);
        break;
      case "duologue.voice":
        if (event.active) this.speech.begin("user", this.local(event.at_ms));
        else this.speech.end("user", this.local(event.at_ms));
        break;
      case "duologue.backchannel":
        this.speech.backchannel(this.local(event.at_ms));
        view.backchannel(event.text);
        break;
      case "duologue.agent_backchannel":
        if (event.audio) {
          const id = `${MURMUR}${++this.murmurs}`;
          this.sound.play(id, decode(event.audio));
          this.sound.finish(id);
        }
        view.agentBackchannel(event.text);
        break;
      case "duologue.floor":
        this.floor = event.floor;
        view.floor(event.floor);
        break;
      case "input_audio_buffer.speech_started":
        if (this.open !== null && this.open !== event.item_id) view.userDropped(this.open);
        this.open = event.item_id;
        if (this.current !== null) this.silence(this.current);
        break;
      case "input_audio_buffer.committed":
        if (this.open === event.item_id) this.open = null;
        break;
      case "conversation.item.input_audio_transcription.delta":
        view.user(event.item_id, event.transcript, false);
        break;
      case "conversation.item.input_audio_transcription.completed":
        view.user(event.item_id, event.transcript, true);
        break;
      case "conversation.item.added":
        this.added(event.item);
        break;
      case "response.output_item.added":
        if (event.item.type === "message") this.current = event.item.id;
        view.speaking(true);
        break;
      case "response.output_audio.delta":
        if (!this.stale.has(event.item_id)) this.sound.play(event.item_id, decode(event.delta));
        break;
      case "response.output_audio.done":
        this.sound.finish(event.item_id);
        break;
      case "duologue.heard":
        view.agent(event.item_id, event.heard, event.text, event.final);
        break;
      case "duologue.latency":
        this.timed(event);
        break;
      case "response.done":
        this.done(event.response);
        break;
      case "duologue.trouble":
        view.remark(event.message);
        break;
      case "duologue.draining":
        view.remark(`The server shuts down in at most ${Math.round(event.seconds)} seconds.`);
        break;
      case "error":
        if (!["server_full", "session_expired", "resume_failed", "response_cancel_not_active"].includes(event.error.code))
          view.remark(event.error.message);
        break;
    }
  }

  added(item) {
    if (item.role !== "user") return;
    const text = item.content.map((part) => (part.type === "input_text" ? part.text : "")).join("");
    if (text) this.view.user(item.id, text, true);
  }

  timed({ item_id, response_ms, stop_ms }) {
    let turn = this.latencies.find(({ id }) => id === item_id);
    if (!turn) this.latencies.push((turn = { id: item_id, responseS: null, stopS: null }));
    if (response_ms != null) {
      turn.responseS = response_ms / 1000;
      this.view.note(item_id, `after ${turn.responseS.toFixed(2)} s`);
    }
    if (stop_ms != null) {
      turn.stopS = stop_ms / 1000;
      this.view.note(item_id, `interrupted, silent after ${turn.stopS.toFixed(2)} s`);
    }
    this.view.timed(this.latencies);
  }

  done({ status, output }) {
    const id = output?.find((item) => item.type === "message")?.id ?? this.current;
    if (status === "cancelled" && id !== null) this.silence(id);
    if (status === "failed") this.view.remark("An answer failed; ask again.");
    if (this.current === id) this.current = null;
    this.view.speaking(false);
  }
}
