// PCM16 and base64 for the wire, levels for the eye, and a stereo WAV of both sides.

export const RATE_HZ = 24000;

/** Float samples in [-1, 1] -> little-endian PCM16 as base64. */
export function encode(samples) {
  const bytes = new Uint8Array(2 * samples.length);
  const view = new DataView(bytes.buffer);
  samples.forEach((sample, i) => view.setInt16(2 * i, Math.round(Math.max(-1, Math.min(1, sample)) * 32767), true));
  let binary = "";
  for (let i = 0; i < bytes.length; i += 4096) binary += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(binary);
}

/** The inverse. */
export function decode(base64) {
  const binary = atob(base64);
  const samples = new Float32Array(binary.length >> 1);
  for (let i = 0; i < samples.length; i++) {
    const value = binary.charCodeAt(2 * i) | (binary.charCodeAt(2 * i + 1) << 8);
    samples[i] = (value << 16 >> 16) / 32768;
  }
  return samples;
}

/** RMS in dBFS, never below -90. */
export function levelDb(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  return Math.max(10 * Math.log10(sum / samples.length + 1e-12), -90);
}

/** Keeps both sides as PCM16 while it is on: left the user, right the agent. Ends by itself when `mostS` is reached. */
export class Recording {
  constructor(mostS = 1800) {
    this.most = mostS * RATE_HZ;
    this.blocks = [];
    this.length = 0;
  }

  get full() {
    return this.length >= this.most;
  }

  add(near, far) {
    if (this.full) return;
    const block = new Int16Array(2 * near.length);
    for (let i = 0; i < near.length; i++) {
      block[2 * i] = Math.round(Math.max(-1, Math.min(1, near[i])) * 32767);
      block[2 * i + 1] = Math.round(Math.max(-1, Math.min(1, far[i])) * 32767);
    }
    this.blocks.push(block);
    this.length += near.length;
  }

  /** A WAV file: 24 kHz, two channels, 16 bits. */
  wav() {
    const bytes = 4 * this.length;
    const header = new DataView(new ArrayBuffer(44));
    const text = (at, word) => [...word].forEach((letter, i) => header.setUint8(at + i, letter.charCodeAt(0)));
    text(0, "RIFF");
    header.setUint32(4, 36 + bytes, true);
    text(8, "WAVEfmt ");
    header.setUint32(16, 16, true);
    header.setUint16(20, 1, true);
    header.setUint16(22, 2, true);
    header.setUint32(24, RATE_HZ, true);
    header.setUint32(28, 4 * RATE_HZ, true);
    header.setUint16(32, 4, true);
    header.setUint16(34, 16, true);
    text(36, "data");
    header.setUint32(40, bytes, true);
    return new Blob([header, ...this.blocks], { type: "audio/wav" });
  }
}
