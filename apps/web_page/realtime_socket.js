// The WebSocket to /v1/realtime: opens, comes back by itself with the resume token, and says in words why it closed for good.

const FIRST_WAIT_MS = 300;
const MOST_WAIT_MS = 4000;
const GIVE_UP_MS = 120000;

const ENDED = {
  1000: "The server ended the conversation.",
  1008: "The server closed the connection because of what this page sent. Reload the page.",
  1009: "A message was too large for the server. Reload the page.",
};

export class RealtimeSocket {
  /**
   * `onEvent(event)` for each server event, `onState(state, message)` with "open", "waiting" (it will come back by itself) or "ended"
   * (it will not; the message says why and what to do). `key` may be "".
   */
  constructor({ model, key, onEvent, onState }) {
    Object.assign(this, { model, key, onEvent, onState });
    this.socket = null;
    this.token = null;
    this.fatal = null; // the sentence of an error event that announces a close
    this.opened = false;
    this.lostAt = null;
    this.wait = FIRST_WAIT_MS;
    this.timer = null;
    this.over = false;
  }

  open() {
    const url = new URL("/v1/realtime", window.location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("model", this.model || "local");
    if (this.token) url.searchParams.set("resume", this.token);
    const protocols = ["realtime"];
    if (this.key) protocols.push(`openai-insecure-api-key.${this.key}`);
    let socket;
    try {
      socket = new WebSocket(url, protocols);
    } catch {
      return this.end("This access key holds characters that a browser cannot send. Check the key.");
    }
    this.socket = socket;
    socket.onmessage = ({ data }) => this.take(JSON.parse(data));
    socket.onclose = ({ code }) => socket === this.socket && this.closed(code);
  }

  take(event) {
    if (event.type === "session.created") {
      this.token = event.session.duologue?.resume_token ?? null;
      this.opened = true;
      this.lostAt = null;
      this.wait = FIRST_WAIT_MS;
      this.onState("open", "");
    }
    if (event.type === "error" && ["server_full", "session_expired"].includes(event.error.code)) this.fatal = event.error;
    this.onEvent(event);
  }

  /** Sends an event; false when there is no connection just now. */
  send(event) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(event));
    return true;
  }

  /** Bytes that the network has not taken yet. */
  get waitingBytes() {
    return this.socket?.bufferedAmount ?? 0;
  }

  async closed(code) {
    if (this.over) return;
    if (code === 1013 || this.fatal?.code === "server_full")
      return this.end("All places of this server are taken. Try again in a moment.");
    if (this.fatal?.code === "session_expired") return this.end("The time for one conversation is over. Press Talk for a new one.");
    if (ENDED[code]) return this.end(ENDED[code]);
    if (!this.opened) {
      const reason = await this.whyRefused();
      if (this.over) return;
      return this.end(reason);
    }
    this.lostAt ??= performance.now();
    if (performance.now() - this.lostAt > GIVE_UP_MS) return this.end("The server did not come back. Press Talk to try again.");
    this.onState("waiting", "The connection is lost; trying to come back …");
    this.timer = setTimeout(() => this.open(), this.wait);
    this.wait = Math.min(2 * this.wait, MOST_WAIT_MS);
  }

  /** A browser does not tell why a WebSocket was refused, so ask the server over HTTP whether it is there at all. */
  async whyRefused() {
    try {
      const answer = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(10_000) });
      if (!answer.ok) return "The server is starting or shutting down. Try again in a moment.";
      return this.key
        ? "The server refused the connection: the access key is wrong."
        : "The server refused the connection: it asks for an access key. Enter it under Settings, or open the address that the server printed.";
    } catch {
      return "The server does not answer. Check that it is running and try again.";
    }
  }

  end(message) {
    this.over = true;
    clearTimeout(this.timer);
    this.onState("ended", message);
  }

  /** Ends the conversation from this side. */
  close() {
    this.over = true;
    clearTimeout(this.timer);
    this.socket?.close(1000);
  }
}
