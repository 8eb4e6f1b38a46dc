// A device in a page. What it sends is kept in localStorage until another IDC holds it, so that a
// reload, a lost connection or a lost IDC costs no message; what it shows is pulled again.
"use strict";

import { Decoder, EVENT, Message, PREFACE, REQUEST, encode, frames, pieces } from "./wire.js";

const WANT = 2n; // SendAck.outcome
const CLAIMS_MAX = 64; // of what is shown, that a send names
const PULL_LIMIT = 200n;
const ASK_MS = 10_000;
// Whoever comes back unasked would put the other one out; as the SDK has them.
const FOR_GOOD = new Map([
  ["replaced", "this device is connected elsewhere; reload the page to connect here"],
  ["kicked", "the session of this device was ended; reload the page to sign in again"],
]);

const originKey = (origin) => `${origin.string(1)}.${origin.int(2)}`;

function place(message) {
  return { hlc: message.int(1), origin: originKey(message.message(2)), seq: message.int(3) };
}

export function before(a, b) {
  if (a.hlc !== b.hlc) return a.hlc < b.hlc;
  if (a.origin !== b.origin) return a.origin < b.origin;
  return a.seq < b.seq;
}

function keyOf(key) {
  return [key.string(1), key.string(2), key.string(3), key.int(5)].join("/");
}

// ------------------------------------------------------------------------ what is on the disk

class Store {
  constructor(session) {
    this.name = `im/${session.region}/${session.uid}/${session.device}`;
    const kept = JSON.parse(localStorage.getItem(this.name) ?? "null");
    this.kept = kept ?? { epoch: 0, outbox: crypto.randomUUID(), cids: {}, waiting: [] };
  }

  save() { localStorage.setItem(this.name, JSON.stringify(this.kept)); }

  epoch() {
    this.kept.epoch = Math.max(this.kept.epoch + 1, Date.now());
    this.save();
    return this.kept.epoch;
  }

  add(conversation, content) {
    const cid = (this.kept.cids[conversation] = (this.kept.cids[conversation] ?? 0) + 1);
    this.kept.waiting.push({ conversation, cid, content, composed: Date.now() });
    try {
      this.save();
    } catch (error) {
      this.kept.waiting.pop();
      this.kept.cids[conversation] = cid - 1;
      throw error;
    }
  }

  of(conversation) { return this.kept.waiting.filter((one) => one.conversation === conversation); }

  drop(which) {
    this.kept.waiting = this.kept.waiting.filter((one) => !which(one));
    this.save();
  }
}

// --------------------------------------------------------------------------- one conversation

class Conversation {
  constructor() {
    this.heads = new Map(); // origin -> {bytes, seq}: all up to here is known
    this.messages = new Map(); // client key -> what is shown
    this.places = new Map(); // client key -> the place that its class has come to
    this.changes = new Map(); // client key -> {edit, order, recalled, reactions}
    this.pulling = null;
  }

  // False: it does not follow what is known, so the conversation must be pulled.
  take(entry) {
    const origin = originKey(entry.message(1)), seq = entry.int(2);
    const known = this.heads.get(origin)?.seq ?? 0n;
    if (seq <= known) return true;
    if (seq !== known + 1n) return false;
    this.heads.set(origin, { bytes: entry.bytes(1), seq });
    if (entry.has(4)) this.#message(entry.message(4));
    else if (entry.has(5)) this.#moved(keyOf(entry.message(5).message(1)), place(entry.message(5).message(2)));
    else if (entry.has(8)) this.#changed(entry.message(8));
    return true;
  }

  #message(message) {
    const placed = message.message(1), key = keyOf(placed.message(1));
    this.#moved(key, place(placed.message(5)));
    if (this.messages.has(key)) return;
    this.messages.set(key, {
      key,
      uid: placed.message(1).string(1),
      text: message.string(2),
      composed: Number(message.int(3)),
      attested: message.bytes(1),
    });
  }

  #moved(key, to) {
    const now = this.places.get(key);
    if (!now || before(to, now)) this.places.set(key, to);
  }

  #changed(change) {
    const key = keyOf(change.message(1)), order = change.message(3);
    const at = [order.int(1), order.string(2), order.int(3)];
    const known = this.changes.get(key) ?? { reactions: new Map() };
    this.changes.set(key, known);
    const later = (than) => !than || at[0] > than[0] ||
      (at[0] === than[0] && (at[1] > than[1] || (at[1] === than[1] && at[2] > than[2])));
    if (change.has(5)) known.recalled = true;
    else if (change.has(4) && later(known.order)) {
      known.edit = change.string(4);
      known.order = at;
    } else if (change.has(6)) {
      const reaction = change.message(6), name = `${change.string(2)} ${reaction.string(1)}`;
      if (later(known.reactions.get(name)?.order))
        known.reactions.set(name, { order: at, code: reaction.string(1), on: reaction.int(2) !== 0n });
    }
  }

  // In the order that everybody ends with.
  shown() {
    const all = [...this.messages.values()].map((one) => {
      const change = this.changes.get(one.key);
      const reactions = [...(change?.reactions.values() ?? [])].filter((each) => each.on);
      return {
        ...one,
        place: this.places.get(one.key),
        text: change?.recalled ? "" : change?.edit ?? one.text,
        recalled: Boolean(change?.recalled),
        edited: change?.edit !== undefined,
        reactions: reactions.map((each) => each.code),
      };
    });
    return all.sort((a, b) => (before(a.place, b.place) ? -1 : 1));
  }

  claims() { return this.shown().slice(-CLAIMS_MAX).map((one) => one.attested); }

  positions(field) {
    return [...this.heads.values()].map(({ bytes, seq }) => [field, encode([[1, bytes], [2, seq]])]);
  }
}

// ---------------------------------------------------------------------------------- the device

class Refused extends Error {
  constructor(error) {
    super(error.string(2));
    this.code = error.string(1);
    this.retryMs = Number(error.int(3));
  }
}

export class Client {
  // changed(): something to show is different. session: {uid, device, token, region,
  // content_bytes_max}.
  constructor(session, changed) {
    this.session = session;
    this.changed = changed;
    this.store = new Store(session);
    this.conversations = new Map();
    this.status = "connecting";
    this.stopped = ""; // why it does not connect again
    this.where = "";
    this.problem = "";
    this.acked = new Map(); // `conversation cid` -> {origin, partition, lsn}
    this.sending = new Set();
    this.acks = new Set(); // conversations of which positions were not told yet
    this.tokens = new Map(); // origin -> sync token
    this.resume = undefined;
    this.stamp = undefined;
    this.run();
  }

  conversation(name) {
    if (!this.conversations.has(name)) this.conversations.set(name, new Conversation());
    return this.conversations.get(name);
  }

  waiting(name) { return this.store.of(name).filter((one) => !this.acked.has(`${name} ${one.cid}`)); }

  // Why it is not taken; empty: it is in the outbox.
  send(name, content) {
    const bytes = new TextEncoder().encode(content).length, most = this.session.content_bytes_max;
    if (bytes > most) return `A message holds at most ${most} bytes, not ${bytes}.`;
    this.conversation(name);
    try {
      this.store.add(name, content);
    } catch (error) {
      return `The browser cannot keep it: ${error.message}`;
    }
    this.changed();
    this.#flush(name);
    return "";
  }

  // ------------------------------------------------------------------------------- connecting

  async run() {
    for (let wait = 250; !this.stopped; ) {
      let again = 0;
      try {
        again = await this.#connection();
        wait = 250;
      } catch (error) {
        this.problem = error.message;
        again = Math.max(error.retryMs ?? 0, wait);
        wait = Math.min(wait * 2, 8000);
      }
      if (this.stopped) break;
      this.status = "connecting";
      this.changed();
      await new Promise((done) => setTimeout(done, again * (1 + Math.random() / 2)));
    }
    this.status = this.stopped;
    this.problem = FOR_GOOD.get(this.stopped) ?? "";
    this.changed();
  }

  async #connection() {
    const response = await fetch(`gateways?last=${encodeURIComponent(this.gateway ?? "")}`);
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error?.message ?? `ipconf: ${response.status}`);
    for (const at of answer.gateways) {
      try {
        return await this.#at(at, answer);
      } catch (error) {
        this.problem = error.message;
        if (error instanceof Refused || this.stopped) throw error;
      }
    }
    throw new Error(this.problem || "no gateway answers");
  }

  // Until the connection ends; how long to wait then, in ms.
  async #at(at, answer) {
    const url = new URL(`connect?host=${at.host}&port=${at.port}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = (this.socket = new WebSocket(url));
    socket.binaryType = "arraybuffer";
    this.open = new Map();
    this.lastId = 0;
    this.again = 250;
    const decoder = new Decoder();
    const open = this.open;
    const lose = () => {
      for (const { no } of open.values()) no(new Error("the connection was lost"));
      open.clear();
    };
    const ended = new Promise((done) => (socket.onclose = () => { lose(); done(); }));
    socket.onmessage = ({ data }) => {
      try {
        for (const frame of decoder.feed(new Uint8Array(data))) this.#received(frame);
      } catch (error) {
        this.problem = error.message;
        socket.close();
      }
    };
    let beating;
    try {
      await Promise.race([
        new Promise((done) => (socket.onopen = done)),
        ended.then(() => { throw new Error(`${at.gateway} does not answer`); }),
      ]);
      socket.send(PREFACE);
      await this.#hello(at, answer);
      const beat = answer.parameters.heartbeat_ms;
      beating = setInterval(() => this.#heartbeat(), beat);
      for (const name of new Set(this.store.kept.waiting.map((one) => one.conversation))) this.#flush(name);
      await this.#sync();
      await ended;
      return this.again;
    } finally {
      clearInterval(beating);
      socket.close();
      lose();
      this.sending.clear();
    }
  }

  async #hello(at, answer) {
    const heads = [...new Set(this.store.kept.waiting.map((one) => one.conversation))].map((name) => {
      const cids = this.store.of(name).map((one) => one.cid);
      return [6, encode([[1, name], [2, this.store.kept.outbox], [3, Math.min(...cids)], [4, Math.max(...cids)]])];
    });
    const connect = encode([
      [1, this.session.token], [2, this.store.epoch()], [3, this.resume], [5, "unknown"],
      ...heads, [7, "web/1"], [9, answer.placement],
    ]);
    const ok = (await this.#ask(10, connect)).message(10);
    this.resume = ok.bytes(3).slice();
    this.origin = originKey(ok.message(6));
    this.gateway = ok.string(9);
    this.acked.clear();
    this.where = `${at.idc}, ${this.gateway}`;
    this.status = "connected";
    this.problem = "";
    this.changed();
  }

  // --------------------------------------------------------------------- requests and frames

  #ask(field, body) {
    const socket = this.socket, id = ++this.lastId;
    if (socket.readyState !== WebSocket.OPEN) return Promise.reject(new Error("not connected"));
    return new Promise((yes, no) => {
      const late = setTimeout(() => no(new Error("no answer in time")), ASK_MS);
      this.open.set(id, {
        yes: (response) => { clearTimeout(late); yes(response); },
        no: (error) => { clearTimeout(late); no(error); },
      });
      const request = encode([[3, this.stamp?.bytes]]);
      // An empty body must be there all the same.
      const asked = Uint8Array.from([...request, ...(body.length ? encode([[field, body]]) : [(field << 3) | 2, 0])]);
      for (const piece of pieces(frames(REQUEST, id, asked))) socket.send(piece);
    });
  }

  #received({ type, id, body }) {
    const message = new Message(body);
    const hlc = message.message(1).int(1);
    if (!this.stamp || hlc > this.stamp.hlc) this.stamp = { hlc, bytes: message.bytes(1) };
    if (type === EVENT) {
      this.#event(message);
      return;
    }
    const waits = this.open.get(id);
    this.open.delete(id);
    if (message.has(2)) waits?.no(new Refused(message.message(2)));
    else waits?.yes(message);
  }

  #event(event) {
    if (event.has(10)) {
      const push = event.message(10);
      this.#take(push.string(1), push.each(2));
    } else if (event.has(11)) {
      this.#pull(event.message(11).string(1));
    } else if (event.has(12)) {
      this.resume = event.message(12).bytes(2).slice();
      const within = Number(event.message(12).int(3));
      setTimeout(() => { this.again = 0; this.socket.close(); }, Math.random() * within);
    } else if (event.has(13)) {
      const close = event.message(13);
      this.problem = `closed: ${close.string(1)}`;
      this.again = Math.max(Number(close.int(2)), 250);
      if (FOR_GOOD.has(close.string(1))) this.stopped = close.string(1);
    } else if (event.has(14)) {
      const told = event.message(14), origin = originKey(told.message(1));
      this.store.drop(({ conversation, cid }) => {
        const ack = this.acked.get(`${conversation} ${cid}`);
        return ack && ack.origin === origin && ack.partition === told.int(2) && ack.lsn <= told.int(3);
      });
    } else if (event.has(70)) { // huge groups, of which all members are told at once
      const behind = event.message(70), within = Number(behind.int(2));
      for (const row of behind.each(1)) setTimeout(() => this.#pull(row.string(1)), Math.random() * within);
    }
  }

  #heartbeat() {
    const acks = [...this.acks].map((name) => [1, encode([[1, name], ...this.conversation(name).positions(2)])]);
    this.acks.clear();
    this.#ask(11, encode(acks)).then((response) => {
      for (const row of response.message(11).each(1)) this.#pull(row.string(1));
    }, () => this.socket.close());
  }

  // ---------------------------------------------------------------------------------- sending

  // One at a time and in order, so that the order of a sender is the order of its messages.
  async #flush(name) {
    if (this.status !== "connected" || this.sending.has(name)) return;
    this.sending.add(name);
    const socket = this.socket;
    try {
      for (let next; (next = this.waiting(name)[0]) && socket === this.socket; ) await this.#offer(name, next);
    } catch (error) {
      this.problem = error.message;
      if (error.code && !error.retryMs) {
        this.store.drop((one) => one === this.waiting(name)[0]); // it will never be taken
        this.changed();
      }
      setTimeout(() => { this.sending.delete(name); this.#flush(name); }, error.retryMs || 1000);
      return;
    }
    this.sending.delete(name);
  }

  async #offer(name, next) {
    const floor = this.store.of(name)[0].cid;
    const claims = this.conversation(name).claims().map((bytes) => [7, bytes]);
    const send = encode([
      [1, name], [2, this.store.kept.outbox], [3, next.cid], [4, floor],
      [5, next.content], ...claims, [9, next.composed],
    ]);
    const ack = (await this.#ask(12, send)).message(12);
    if (ack.int(1) === WANT) {
      // It forgot what it had taken: from there on again.
      for (const one of this.store.of(name))
        if (BigInt(one.cid) >= ack.int(3)) this.acked.delete(`${name} ${one.cid}`);
      return;
    }
    this.acked.set(`${name} ${next.cid}`, { origin: this.origin, partition: ack.int(4), lsn: ack.int(5) });
    if (ack.int(6)) this.store.drop((one) => one.conversation === name && one.cid === next.cid);
    this.changed();
  }

  // -------------------------------------------------------------------------------- receiving

  async #sync() {
    let page, token;
    do {
      const ok = (await this.#ask(14, encode([[1, this.tokens.get(this.origin)], [3, page]]))).message(14);
      for (const row of ok.each(1)) {
        const known = this.conversation(row.string(1)).heads;
        const behind = row.each(2).some((at) => (known.get(originKey(at.message(1)))?.seq ?? 0n) < at.int(2));
        if (behind) await this.#pull(row.string(1));
      }
      token = ok.bytes(2).slice();
      page = ok.bytes(3).slice();
    } while (page.length);
    this.tokens.set(this.origin, token);
    this.changed();
  }

  #pull(name) {
    const conversation = this.conversation(name);
    conversation.pulling ??= this.#pullAll(name, conversation).finally(() => (conversation.pulling = null));
    return conversation.pulling;
  }

  async #pullAll(name, conversation) {
    for (let more = true; more; ) {
      const pull = encode([[1, name], ...conversation.positions(2), [3, PULL_LIMIT]]);
      const ok = (await this.#ask(13, pull)).message(13);
      const entries = ok.each(2);
      this.#take(name, entries, true);
      more = ok.int(3) !== 0n && entries.length > 0;
    }
  }

  #take(name, entries, pulled = false) {
    const conversation = this.conversation(name);
    const gap = entries.some((entry) => !conversation.take(entry));
    this.acks.add(name);
    if (gap && !pulled) this.#pull(name).catch(() => {});
    this.changed();
  }
}
