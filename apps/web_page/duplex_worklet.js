// Both ways of the sound in one audio processor: the microphone goes out in blocks of 20 ms, the agent's voice comes in through a
// ring buffer. Because one `process` call sees both sides, a recording of them is aligned to the sample.
//
// Messages in:  {play: Float32Array, id}   append sound of response `id`
//               {finish: id}               response `id` has no more sound: play the rest without waiting for the prebuffer
//               {stop: true}               fade out within FADE samples and forget what is queued
// Messages out, one per block: {near, far: Float32Array(block), queued, underruns, dropped, id, played}
//               `played` counts the samples of response `id` that have left so far; `stopped: id` once after a stop

const RING_S = 60; // more than the server sends ahead; what does not fit is dropped, newest first, and counted

class DuplexProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions: { prebufferSamples, fadeSamples, blockSamples } }) {
    super();
    this.prebuffer = prebufferSamples;
    this.fade = fadeSamples;
    this.ring = new Float32Array(RING_S * sampleRate);
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
    this.fill(out);
    for (let channel = 1; channel < output.length; channel++) output[channel].set(out);
    const mic = input[0]; // absent while nothing is connected
    for (let i = 0; i < out.length; i++) {
      this.near[this.filled] = mic ? mic[i] : 0;
      this.far[this.filled] = out[i];
      if (++this.filled === this.block) this.flush();
    }
    return true;
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
