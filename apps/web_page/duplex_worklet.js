// Both ways of the sound in one audio processor: the microphone goes out in blocks of 20 ms, the agent's voice comes in through a
// ring buffer. Because one `process` call sees both sides, a recording of them is aligned to the sample.
//
// Messages in:  {play: Float32Array, id}   append sound of response `id`
//               {finish: id}               response `id` has no more sound: play the rest without waiting for the prebuffer
//               {stop: true}               fade out within FADE samples and forget what is queued
// Messages out, one per block: {near, far: Float32Array(block), queued, underruns, dropped, id, played}
//               `played` counts the samples of response `id` that have left so far; `stopped: id` once after a stop

// Where the browser cannot give us 24 kHz (Firefox joins a microphone only to a context of the device's own rate), both ways are
// resampled here; everything but the two ends is at 24 kHz in any case.

const WIRE_HZ = 24000;
const RING_S = 60; // more than the server sends ahead; what does not fit is dropped, newest first, and counted
const ZEROS = 16; // zero crossings of the interpolating sinc on each side
const SPARE = 16; // samples kept back, because a quantum may convert to one sample less than its length
const FINE = 512; // table entries per zero crossing

/** Streaming band-limited resampling: a windowed sinc, read from a table. */
export class Resampler {
  constructor(fromHz, toHz) {
    this.step = fromHz / toHz;
    this.cutoff = Math.min(1, toHz / fromHz) * 0.94;
    this.half = Math.ceil(ZEROS / this.cutoff);
    this.table = Float32Array.from({ length: ZEROS * FINE + 2 }, (_, i) => {
      const x = i / FINE;
      if (x >= ZEROS) return 0;
      const window = 0.5 + 0.5 * Math.cos((Math.PI * x) / ZEROS);
      return this.cutoff * window * (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
    });
    this.past = new Float32Array(this.half);
    this.at = this.half; // place of the next output in `past` and what follows it: at first the first input
  }

  /** The next input, any length -> the output that it makes possible. */
  push(input) {
    const sound = new Float32Array(this.past.length + input.length);
    sound.set(this.past);
    sound.set(input, this.past.length);
    const out = [];
    for (; this.at + this.half < sound.length; this.at += this.step) {
      let sum = 0;
      const first = Math.ceil(this.at - this.half);
      for (let k = Math.max(first, 0); k <= this.at + this.half; k++) {
        const x = Math.abs(k - this.at) * this.cutoff * FINE;
        const i = Math.floor(x);
        if (i >= ZEROS * FINE) continue;
        sum += sound[k] * (this.table[i] + (x - i) * (this.table[i + 1] - this.table[i]));
      }
      out.push(sum);
    }
    const keep = Math.min(sound.length, 2 * this.half + Math.ceil(this.step));
    this.past = sound.slice(sound.length - keep);
    this.at -= sound.length - keep;
    return Float32Array.from(out);
  }
}

class DuplexProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions: { prebufferSamples, fadeSamples, blockSamples } }) {
    super();
    this.prebuffer = prebufferSamples;
    this.fade = fadeSamples;
    this.ring = new Float32Array(RING_S * WIRE_HZ);
    this.read = 0;
    this.queued = 0;
    this.segments = []; // {id, left}: whose the queued samples are, in order
    this.id = null; // the response that is being played
    this.played = 0;
    this.playing = false;
    this.finished = new Set();
    this.fading = 0; // samples of a stop's ramp still to come
    this.rising = 0; // samples of the ramp after a gap still to come
    this.stopped = null;
    this.underruns = 0;
    this.dropped = 0;
    this.block = blockSamples;
    this.near = new Float32Array(blockSamples);
    this.far = new Float32Array(blockSamples);
    this.filled = 0;
    this.converting = sampleRate !== WIRE_HZ;
    this.inward = new Resampler(sampleRate, WIRE_HZ);
    this.outward = new Resampler(WIRE_HZ, sampleRate);
    this.made = new Float32Array(0); // converted output that does not fill a quantum yet
    this.primed = false;
    this.silence = new Float32Array(128);
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(message) {
    if (message.play) this.append(message.play, message.id);
    if (message.finish !== undefined) this.finished.add(message.finish);
    if (message.stop) this.stop();
  }

  append(samples, id) {
    if (this.fading) this.forget(); // the next response does not wait for the last one's ramp
    const room = this.ring.length - this.queued;
    const count = Math.min(samples.length, room);
    this.dropped += samples.length - count;
    let write = (this.read + this.queued) % this.ring.length;
    for (let i = 0; i < count; i++) {
      this.ring[write] = samples[i];
      if (++write === this.ring.length) write = 0;
    }
    this.queued += count;
    const last = this.segments[this.segments.length - 1];
    if (last && last.id === id) last.left += count;
    else this.segments.push({ id, left: count });
  }

  stop() {
    this.stopped = this.id ?? this.segments[0]?.id ?? null;
    if (this.playing && this.queued) this.fading = Math.min(this.fade, this.queued);
    else this.forget();
  }

  forget() {
    this.read = 0;
    this.queued = 0;
    this.segments = [];
    this.playing = false;
    this.fading = 0;
    this.finished.clear();
  }

  ready() {
    return this.queued >= this.prebuffer || (this.queued > 0 && this.finished.has(this.segments[0].id));
  }

  next() {
    const sample = this.ring[this.read];
    if (++this.read === this.ring.length) this.read = 0;
    this.queued--;
    const segment = this.segments[0];
    if (segment.id !== this.id) {
      this.id = segment.id;
      this.played = 0;
    }
    this.played++;
    if (--segment.left === 0) this.segments.shift();
    return sample;
  }

  fill(out) {
    if (!this.playing && this.ready()) this.playing = true;
    if (!this.playing) return out.fill(0);
    const available = Math.min(this.queued, out.length);
    const ending = this.segments[this.segments.length - 1]?.id;
    const dry = this.queued < out.length && !this.finished.has(ending) && !this.fading;
    for (let i = 0; i < out.length; i++) {
      if (i >= available) {
        out[i] = 0;
        continue;
      }
      let sample = this.next();
      if (this.fading) {
        sample *= this.fading / this.fade;
        if (--this.fading === 0) {
          this.forget();
          out[i] = sample;
          return out.fill(0, i + 1);
        }
      } else if (dry) sample *= (available - i) / available; // a gap comes: rather a dip than a click
      else if (this.rising) sample *= 1 - this.rising-- / this.fade;
      out[i] = sample;
    }
    if (dry) {
      this.underruns++;
      this.rising = this.fade;
    }
    if (this.queued === 0) {
      this.playing = false;
      this.finished.clear();
    }
    return out;
  }

  process([input], [output]) {
    const out = output[0];
    const mic = input[0] ?? this.silence; // absent while nothing is connected
    if (this.converting) this.convert(mic, out);
    else this.collect(mic, this.fill(out));
    for (let channel = 1; channel < output.length; channel++) output[channel].set(out);
    return true;
  }

  convert(mic, out) {
    const near = this.inward.push(mic);
    const far = this.fill(new Float32Array(near.length));
    this.collect(near, far);
    const fresh = this.outward.push(far);
    const sound = new Float32Array(this.made.length + fresh.length);
    sound.set(this.made);
    sound.set(fresh, this.made.length);
    this.primed ||= sound.length >= out.length + SPARE;
    if (this.primed) out.set(sound.subarray(0, out.length));
    this.made = this.primed ? sound.slice(out.length) : sound;
  }

  collect(near, far) {
    for (let i = 0; i < far.length; i++) {
      this.near[this.filled] = near[i];
      this.far[this.filled] = far[i];
      if (++this.filled === this.block) this.flush();
    }
  }

  flush() {
    const { near, far, queued, underruns, dropped, id, played, playing, stopped } = this;
    this.port.postMessage({ near, far, queued, underruns, dropped, id, played, playing, stopped }, [near.buffer, far.buffer]);
    this.near = new Float32Array(this.block); // the old ones were handed over
    this.far = new Float32Array(this.block);
    this.filled = 0;
    this.stopped = null;
  }
}

registerProcessor("duplex", DuplexProcessor);
