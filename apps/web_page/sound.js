// The microphone and the loudspeaker, joined by one audio worklet at 24 kHz; the browser resamples and cancels the echo.

import { RATE_HZ } from "./pcm.js";

const PREBUFFER_MS = 60; // sound that must be there before a response starts: evens out the network
const FADE_MS = 8; // ramp to silence at a stop
const BLOCK_MS = 20;

/** Why there is no sound, in words for the user: what is wrong, and what to do. */
export class SoundError extends Error {}

const REASONS = {
  NotAllowedError:
    "The browser does not let this page use the microphone. Allow it (the symbol beside the address, or the system's privacy settings), then press Talk again.",
  NotFoundError: "There is no microphone. Plug one in, then press Talk again.",
  NotReadableError: "Another program holds the microphone, or it does not answer. Close that program, then press Talk again.",
  OverconstrainedError: "The microphone cannot do what was asked of it. Choose another one in the browser's settings, then press Talk again.",
};

/** The sentence for a page that may not use a microphone at all, or null. */
export function whyNoMicrophone(scope = window) {
  if (!scope.isSecureContext)
    return (
      `Browsers allow a microphone only on secure pages, and ${scope.location.origin} is none. ` +
      "Open the page as https:// (start the server with --ssl-certfile and --ssl-keyfile), or on the server's own machine as http://127.0.0.1."
    );
  if (!scope.navigator.mediaDevices?.getUserMedia || !scope.AudioWorkletNode)
    return "This browser has no microphone access or no AudioWorklet. Use a current Chromium, Firefox or Safari.";
  return null;
}

/** Whether the browser resamples a microphone for a context of another rate; Firefox does not, and says so by an error. */
function joins(context, stream) {
  try {
    new MediaStreamAudioSourceNode(context, { mediaStream: stream }).disconnect();
    return true;
  } catch {
    return false;
  }
}

export class Sound {
  /**
   * Asks for the microphone and starts both ways. `onBlock({near, far, queued, underruns, id, played, playing, stopped})` is called
   * every 20 ms; `onLost(message)` when the microphone goes away. Throws SoundError.
   */
  static async open({ onBlock, onLost }) {
    const reason = whyNoMicrophone();
    if (reason) throw new SoundError(reason);
    let context = new AudioContext({ sampleRate: RATE_HZ, latencyHint: "interactive" });
    let stream = null;
    try {
      let resumed = context.resume(); // inside the click, before any await: autoplay rules
      stream = await navigator.mediaDevices.getUserMedia({
        audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
      });
      if (!joins(context, stream)) {
        await context.close();
        context = new AudioContext({ latencyHint: "interactive" });
        resumed = context.resume();
      }
      await context.audioWorklet.addModule(new URL("./duplex_worklet.js", import.meta.url)).catch(() => {
        throw new SoundError("The server does not answer. Check that it is running, then press Talk again.");
      });
      const sound = new Sound(context, stream, onBlock, onLost);
      await resumed;
      return sound;
    } catch (error) {
      stream?.getTracks().forEach((track) => track.stop());
      await context.close();
      throw error instanceof SoundError ? error : new SoundError(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
  }

  constructor(context, stream, onBlock, onLost) {
    this.context = context;
    this.stream = stream;
    this.muted = false;
    this.node = new AudioWorkletNode(context, "duplex", {
      numberOfInputs: 1,
      numberOfOutputs: 1,
      outputChannelCount: [1],
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: {
        prebufferSamples: (PREBUFFER_MS * RATE_HZ) / 1000,
        fadeSamples: (FADE_MS * RATE_HZ) / 1000,
        blockSamples: (BLOCK_MS * RATE_HZ) / 1000,
      },
    });
    this.node.port.onmessage = ({ data }) => {
      if (this.muted) data.near.fill(0);
      onBlock(data);
    };
    this.node.onprocessorerror = () => onLost("The browser's audio stopped working. Press Talk to begin again.");
    this.source = new MediaStreamAudioSourceNode(context, { mediaStream: stream });
    this.source.connect(this.node).connect(context.destination);
    context.onstatechange = () => context.state !== "running" && context.resume(); // a telephone call, a lid that was closed
    stream.getAudioTracks()[0].onended = () => onLost("The microphone went away. Plug it in again, then press Talk.");
  }

  /** Seconds between a sample leaving the worklet and leaving the loudspeaker. */
  get outputLatencyS() {
    return this.context.outputLatency || this.context.baseLatency || 0;
  }

  /** Append sound of response `id`. */
  play(id, samples) {
    this.node.port.postMessage({ play: samples, id }, [samples.buffer]);
  }

  /** Response `id` has no more sound. */
  finish(id) {
    this.node.port.postMessage({ finish: id });
  }

  /** Fade out now, and forget what is queued. */
  stop() {
    this.node.port.postMessage({ stop: true });
  }

  async close() {
    this.node.port.onmessage = this.context.onstatechange = null;
    this.stream.getTracks().forEach((track) => {
      track.onended = null;
      track.stop();
    });
    this.source.disconnect();
    this.node.disconnect();
    if (this.context.state !== "closed") await this.context.close();
  }
}
