// Frames and Protobuf of the client protocol (docs/protocol.md), as little of them as a page needs.
// Integers of 64 bits are BigInts; a message that is only handed on stays bytes.
"use strict";

const text = new TextEncoder();
const untext = new TextDecoder();

// ------------------------------------------------------------------------------- Protobuf

// A message from [number, value] pairs: strings, bytes, and BigInts and numbers as varints. What is
// undefined, an empty string or 0 is left out, as proto3 does.
export function encode(fields) {
  const out = [];
  const varint = (value) => {
    let left = BigInt(value);
    for (; left > 127n; left >>= 7n) out.push(Number(left & 127n) | 128);
    out.push(Number(left));
  };
  for (const [number, value] of fields) {
    if (value === undefined || value === null || value === "" || value === 0 || value === 0n) continue;
    if (typeof value === "number" || typeof value === "bigint") {
      varint(number << 3);
      varint(value);
    } else {
      const bytes = typeof value === "string" ? text.encode(value) : value;
      varint((number << 3) | 2);
      varint(bytes.length);
      for (const byte of bytes) out.push(byte);
    }
  }
  return Uint8Array.from(out);
}

// A message that was received, by the numbers of its fields.
export class Message {
  #fields = new Map();

  constructor(bytes) {
    let at = 0;
    const varint = () => {
      let value = 0n;
      for (let shift = 0n; ; shift += 7n) {
        const byte = bytes[at++];
        if (byte === undefined) throw new Error("a message breaks off");
        value |= BigInt(byte & 127) << shift;
        if (byte < 128) return value;
      }
    };
    while (at < bytes.length) {
      const tag = Number(varint());
      let value;
      if ((tag & 7) === 0) value = varint();
      else if ((tag & 7) === 1) {
        value = new DataView(bytes.buffer, bytes.byteOffset + at, 8).getBigUint64(0, true);
        at += 8;
      } else if ((tag & 7) === 2) {
        const size = Number(varint());
        value = bytes.subarray(at, (at += size));
      } else if ((tag & 7) === 5) {
        value = bytes.subarray(at, (at += 4)); // of a later version
      } else throw new Error(`no wire type: ${tag & 7}`);
      if (!this.#fields.has(tag >> 3)) this.#fields.set(tag >> 3, []);
      this.#fields.get(tag >> 3).push(value);
    }
  }

  has(number) { return this.#fields.has(number); }
  int(number) { return this.#fields.get(number)?.at(-1) ?? 0n; }
  bytes(number) { return this.#fields.get(number)?.at(-1) ?? new Uint8Array(); }
  string(number) { return untext.decode(this.bytes(number)); }
  message(number) { return new Message(this.bytes(number)); }
  each(number) { return (this.#fields.get(number) ?? []).map((bytes) => new Message(bytes)); }
  eachBytes(number) { return this.#fields.get(number) ?? []; }
}

// --------------------------------------------------------------------------------- frames

export const REQUEST = 1, RESPONSE = 2, EVENT = 3;
export const PREFACE = Uint8Array.of(0x49, 0x4d, 0x43, 0x50, 1, 1); // IMCP, versions 1 to 1
const BODY_MAX = 1392, HEADER = 8;
const WEBSOCKET_MAX = 65_536; // what a gateway takes as one WebSocket message

export function frames(type, id, body) {
  const out = [];
  for (let at = 0; at === 0 || at < body.length; at += BODY_MAX) {
    const chunk = body.subarray(at, at + BODY_MAX);
    const frame = new Uint8Array(HEADER + chunk.length);
    const header = new DataView(frame.buffer);
    header.setUint8(0, type);
    header.setUint8(1, at + BODY_MAX < body.length ? 1 : 0);
    header.setUint16(2, chunk.length);
    header.setUint32(4, id);
    frame.set(chunk, HEADER);
    out.push(frame);
  }
  return joined(out);
}

// Of the bytes of frames: the gateway reads on over the borders of WebSocket messages.
export function pieces(bytes) {
  const out = [];
  for (let at = 0; at < bytes.length; at += WEBSOCKET_MAX) out.push(bytes.subarray(at, at + WEBSOCKET_MAX));
  return out;
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

// Bytes as they come, to whole messages: feed() returns [{type, id, body}].
export class Decoder {
  #left = new Uint8Array();
  #chunks = [];
  #spoken = false;

  feed(bytes) {
    let data = joined([this.#left, bytes]);
    if (!this.#spoken) {
      if (data.length < PREFACE.length) {
        this.#left = data;
        return [];
      }
      if (data[4] !== 1) throw new Error("the gateway speaks another version");
      this.#spoken = true;
      data = data.subarray(PREFACE.length);
    }
    const found = [];
    while (data.length >= HEADER) {
      const header = new DataView(data.buffer, data.byteOffset, HEADER);
      const end = HEADER + header.getUint16(2);
      if (data.length < end) break;
      this.#chunks.push(data.slice(HEADER, end));
      if (!(header.getUint8(1) & 1)) {
        found.push({ type: header.getUint8(0), id: header.getUint32(4), body: joined(this.#chunks) });
        this.#chunks = [];
      }
      data = data.subarray(end);
    }
    this.#left = data.slice();
    return found;
  }
}
