// Both transcripts as they grow: interim words in grey, words of the agent that are still to come in grey, unheard ones struck out.

const MOST_TURNS = 300;
const NAMES = { user: "You", agent: "Agent", remark: "Note" };

export class Transcript {
  /** `log`: the element that holds the turns; `announcer`: the live region in which finished turns of the user are read out. */
  constructor(log, announcer) {
    this.log = log;
    this.announcer = announcer;
    this.turns = new Map(); // key -> {who, element, words, note, done}
  }

  clear() {
    this.turns.clear();
    this.log.replaceChildren();
  }

  turn(who, key) {
    let turn = this.turns.get(key);
    if (turn) return turn;
    const element = document.createElement("div");
    element.className = `turn ${who}`;
    const name = document.createElement("b");
    name.textContent = NAMES[who];
    const words = document.createElement("span");
    const note = document.createElement("small");
    element.append(name, words, note);
    turn = { who, element, words, note, done: false };
    this.turns.set(key, turn);
    this.log.querySelector(".empty")?.remove();
    this.keepingBottom(() => this.log.append(element));
    if (this.turns.size > MOST_TURNS) this.remove(this.turns.keys().next().value);
    return turn;
  }

  /** The words of the user's turn `key` so far; `final` once they will not change. */
  user(key, text, final) {
    if (!text.trim()) return final ? this.remove(key) : undefined;
    const turn = this.turn("user", key);
    if (turn.done && !final) return;
    turn.done = final;
    this.write(turn, [[text, final ? "" : "interim"]]);
    if (final) this.announcer.textContent = `You said: ${text}`;
  }

  /** What was heard of response `key`, and all that was written of it so far. */
  agent(key, heard, text) {
    const turn = this.turn("agent", key);
    if (turn.done) return;
    turn.text = text;
    turn.heard = heard;
    this.write(turn, [[heard, ""], [rest(heard, text), "coming"]]);
  }

  /** Response `key` is over; `cut` when the user did not hear all of it. */
  agentEnded(key, cut) {
    const turn = this.turns.get(key);
    if (!turn || turn.done) return;
    turn.done = true;
    const { heard = "", text = "" } = turn;
    if (cut) this.write(turn, [[heard, ""], [rest(heard, text), "unheard"]]);
    else this.write(turn, [[text, ""]]);
  }

  /** How turn `key` went; a response is noted before its first word is heard. */
  note(key, text, who = "agent") {
    const turn = this.turn(who, key);
    this.keepingBottom(() => (turn.note.textContent = [turn.note.textContent, text].filter(Boolean).join(" · ")));
  }

  /** A line that nobody said. */
  remark(key, text) {
    const turn = this.turn("remark", key);
    turn.done = true;
    this.write(turn, [[text, ""]]);
    this.announcer.textContent = text;
  }

  remove(key) {
    this.turns.get(key)?.element.remove();
    this.turns.delete(key);
  }

  write(turn, parts) {
    const nodes = parts
      .filter(([text]) => text)
      .map(([text, kind]) => {
        const node = document.createElement(kind === "unheard" ? "s" : "span");
        if (kind) node.className = kind;
        if (kind === "unheard") node.setAttribute("aria-label", `not heard: ${text}`);
        node.textContent = text;
        return node;
      });
    this.keepingBottom(() => turn.words.replaceChildren(...nodes));
  }

  /** Follows the newest line, unless the reader has scrolled up. */
  keepingBottom(change) {
    const { log } = this;
    const atBottom = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    change();
    if (atBottom) log.scrollTop = log.scrollHeight;
  }
}

/** What of `text` comes after `heard`; the heard words may differ from the written ones in spaces only. */
export function rest(heard, text) {
  let at = 0;
  for (const letter of heard.replace(/\s+/g, "")) {
    while (at < text.length && /\s/.test(text[at])) at++;
    if (text[at] !== letter) break;
    at++;
  }
  return text.slice(at);
}
