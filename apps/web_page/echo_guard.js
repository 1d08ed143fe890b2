// A second look at the microphone after the browser's echo canceller. When the way from loudspeaker to microphone suddenly takes longer (a busy
// machine, a Bluetooth headset), the canceller needs seconds to find it again, and meanwhile the agent would hear itself and fall silent.
//
// The agent's voice is recognised by its likeness to what was just played: the whitened cross-correlation of the last 160 ms of the microphone
// with the last 960 ms of the loudspeaker has one sharp peak for an echo of any delay up to 800 ms, and none for another voice, nor
// when another voice is louder than what is left of the echo. At a delay where an echo was found before, a lower peak is believed. A block that is echo is silenced; what a person says passes.

import { levelDb } from "./pcm.js";

const DECIMATE = 3; // 24 kHz -> 8 kHz: speech's band is enough
const RATE_HZ = 8000;
const WINDOW = 1280; // samples of the microphone that are compared: 160 ms
const LAGS = 6400; // 800 ms
const SIZE = 8192;
const BAND_HZ = [300, 3400];
const PEAK = 10; // peak over standard deviation from which it is an echo; another voice reaches this in one block of fifty
const KNOWN_PEAK = 7; // the same at a delay at which there was an echo before
const NEAR_LAG = 80; // samples, 10 ms: so near a known delay
const KEEP = 12; // echoes that are remembered
const APART_BLOCKS = 9; // more than a window
const QUIET_DB = -58; // softer than this it does not matter what it is
const FAR_DB = -50;
const HOLD_BLOCKS = 3; // once recognised, the echo is expected for 60 ms more

/** Complex FFT in place, SIZE points; `sign` -1 forwards, +1 backwards (unscaled). */
function transform(re, im, sign) {
  for (let i = 1, j = 0; i < SIZE; i++) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let length = 2; length <= SIZE; length <<= 1) {
    const half = length >> 1;
    const stride = SIZE / length;
    for (let k = 0; k < half; k++) {
      const wr = COS[k * stride];
      const wi = sign * SIN[k * stride];
      for (let a = k; a < SIZE; a += length) {
        const b = a + half;
        const tr = re[b] * wr - im[b] * wi;
        const ti = re[b] * wi + im[b] * wr;
        re[b] = re[a] - tr;
        im[b] = im[a] - ti;
        re[a] += tr;
        im[a] += ti;
      }
    }
  }
}
const COS = Float64Array.from({ length: SIZE / 2 }, (_, k) => Math.cos((2 * Math.PI * k) / SIZE));
const SIN = Float64Array.from({ length: SIZE / 2 }, (_, k) => Math.sin((2 * Math.PI * k) / SIZE));
const HANN = Float64Array.from({ length: WINDOW }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / (WINDOW - 1)));

/** Low pass and every third sample, block by block. */
class Decimator {
  constructor() {
    const taps = 33;
    this.taps = Float64Array.from({ length: taps }, (_, i) => {
      const x = i - (taps - 1) / 2;
      const sinc = x === 0 ? 1 : Math.sin((Math.PI * x) / DECIMATE) / ((Math.PI * x) / DECIMATE);
      return (sinc / DECIMATE) * (0.54 + 0.46 * Math.cos((2 * Math.PI * x) / (taps - 1)));
    });
    this.past = new Float32Array(taps - 1);
  }

  /** [n], n a multiple of three -> [n / 3] */
  push(block) {
    const sound = new Float32Array(this.past.length + block.length);
    sound.set(this.past);
    sound.set(block, this.past.length);
    this.past = sound.slice(block.length);
    return Float32Array.from({ length: block.length / DECIMATE }, (_, i) => {
      let sum = 0;
      for (let k = 0; k < this.taps.length; k++) sum += this.taps[k] * sound[DECIMATE * i + k];
      return sum;
    });
  }
}

function shiftIn(ring, block) {
  ring.copyWithin(0, block.length);
  ring.set(block, ring.length - block.length);
}

export class EchoGuard {
  constructor() {
    this.nearRate = new Decimator();
    this.farRate = new Decimator();
    this.near = new Float32Array(WINDOW);
    this.far = new Float32Array(WINDOW + LAGS);
    this.re = new Float64Array(SIZE);
    this.im = new Float64Array(SIZE);
    this.farBlocks = 0; // blocks in which what was played can still come back
    this.hold = 0;
    this.found = []; // {lag, block} of the newest echoes
    this.block = 0;
  }

  /** Microphone and loudspeaker of the same 20 ms; true when the microphone holds the agent's own voice and nobody louder. */
  isEcho(near, far) {
    this.block++;
    shiftIn(this.near, this.nearRate.push(near));
    shiftIn(this.far, this.farRate.push(far));
    if (levelDb(far) > FAR_DB) this.farBlocks = Math.ceil(((LAGS + WINDOW) * DECIMATE) / near.length);
    else if (this.farBlocks) this.farBlocks--;
    if (!this.farBlocks || levelDb(near) < QUIET_DB) {
      if (this.hold) this.hold--;
      return false;
    }
    if (this.alike()) this.hold = HOLD_BLOCKS;
    else if (this.hold) this.hold--;
    return this.hold > 0;
  }

  /** Whether the whitened cross-correlation has a peak that only an echo makes. */
  alike() {
    const { re, im } = this;
    re.fill(0);
    im.fill(0);
    for (let i = 0; i < WINDOW; i++) re[i] = this.near[i] * HANN[i]; // both at once: one real, one imaginary
    im.set(this.far);
    transform(re, im, -1);
    const [low, high] = BAND_HZ.map((hz) => Math.round((hz * SIZE) / RATE_HZ));
    const [cr, ci] = [new Float64Array(SIZE), new Float64Array(SIZE)];
    for (let k = low; k <= high; k++) {
      const m = SIZE - k;
      const nr = (re[k] + re[m]) / 2;
      const ni = (im[k] - im[m]) / 2;
      const fr = (im[k] + im[m]) / 2;
      const fi = (re[m] - re[k]) / 2;
      const xr = nr * fr + ni * fi; // near times the conjugate of far
      const xi = ni * fr - nr * fi;
      const size = Math.hypot(xr, xi) || 1;
      cr[k] = xr / size;
      ci[k] = xi / size;
      cr[m] = cr[k];
      ci[m] = -ci[k];
    }
    transform(cr, ci, 1);
    let [best, known, sum, squares] = [0, 0, 0, 0];
    const at = (start) => cr[(SIZE - start) % SIZE]; // the window lies `start` samples after the far side's first
    for (let start = 0; start <= LAGS; start++) {
      const value = at(start);
      if (value > at(best)) best = start;
      sum += value;
      squares += value * value;
    }
    for (const lag of this.knownLags())
      for (let start = Math.max(lag - NEAR_LAG, 0); start <= Math.min(lag + NEAR_LAG, LAGS); start++) known = Math.max(known, at(start));
    const mean = sum / (LAGS + 1);
    const deviation = Math.sqrt(squares / (LAGS + 1) - mean * mean) || Infinity;
    if (at(best) >= PEAK * deviation) {
      this.found.push({ lag: best, block: this.block });
      if (this.found.length > KEEP) this.found.shift();
      return true;
    }
    return known >= KNOWN_PEAK * deviation;
  }

  /** Delays that were found twice in windows that share no sound: chance does not do that. */
  knownLags() {
    const { found } = this;
    const twice = found.filter((a) => found.some((b) => b.block - a.block >= APART_BLOCKS && Math.abs(a.lag - b.lag) <= NEAR_LAG));
    return twice.map(({ lag }) => lag);
  }
}
