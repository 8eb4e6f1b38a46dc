// A device in a page. What it sends is kept in localStorage until another IDC holds it, so that a
// reload, a lost connection or a lost IDC costs no message; what it shows is pulled again.
"use strict";

import { Decoder, EVENT, Message, PREFACE, REQUEST, encode, frames, pieces } from "./wire.js";

const WANT = 2n; // SendAck.outcome
const CLAIMS_MAX = 64; // of what is shown, that a send names
const PULL_LIMIT = 200n;
const HEADS_MAX = 200; // outboxes that a connect names: it has to fit 64 KiB, and they are only a help
const ASK_MS = 10_000;
const AGAIN_MS = 1000; // when the service names no time
// What may go well later. Any other word on a message is the last one.
const LATER = new Set([
  "overloaded", "unavailable", "deadline", "internal", "unauthenticated", "not_replicated",
]);
// Also said by an IDC that has not heard of the group, or of this member, yet.
const MAY_LAG = new Set(["forbidden", "not_found"]);
const LAG_MS = 8000;
// Whoever comes back unasked would put the other one out; as the SDK has them.
const FOR_GOOD = new Map([
  ["replaced", "this device is connected elsewhere; reload the page to connect here"],
  ["kicked", "the session of this device was ended; reload the page to sign in again"],
]);

const originKey = (origin) => `${origin.string(1)}.${origin.int(2)}`;

function place(message) {
  return { hlc: message.int(1), origin: originKey(message.message(2)), seq: message.int(3) };
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export function before(a, b) {
  if (a.hlc !== b.hlc) return a.hlc < b.hlc;
  if (a.origin !== b.origin) return a.origin < b.origin;
  return a.seq < b.seq;
}

function keyOf(key) {
  return [key.string(1), key.string(2), key.string(3), key.int(5)].join("/");
}

// ------------------------------------------------------------------------ what is on the disk

export const storeName = ({ region, uid, device }) => `im/${region}/${uid}/${device}`;

// The messages that are not known to be safe, oldest first. One that was refused is `failed`, with
// the reason, until the user has decided about it. `offered`: it may be known under its cid, which
// it keeps then; `acked`: it is.
class Store {
  constructor(session) {
    this.name = storeName(session);
    this.closed = false; // it is another tab's
    const kept = JSON.parse(localStorage.getItem(this.name) ?? "null");
    this.kept = kept ?? { epoch: 0, outbox: crypto.randomUUID(), cids: {}, waiting: [] };
    this.kept.outboxes ??= {}; // of conversations that have another one
    for (const one of this.kept.waiting) // written before each named its own
      if (!one.outbox) Object.assign(one, { outbox: this.kept.outbox, offered: true });
  }

  save() {
    if (this.closed) return;
    localStorage.setItem(this.name, JSON.stringify(this.kept));
  }

  epoch() {
    this.kept.epoch = Math.max(this.kept.epoch + 1, Date.now());
    this.save();
    return this.kept.epoch;
  }

  add(conversation, content) {
    const message = { conversation, content, composed: Date.now() };
    this.#number(message);
    this.kept.waiting.push(message);
    try {
      this.save();
    } catch (error) {
      this.kept.waiting.pop();
      this.kept.cids[conversation]--;
      throw error;
    }
  }

  #number(message) {
    const { conversation } = message;
    message.outbox = this.kept.outboxes[conversation] ?? this.kept.outbox;
    message.cid = this.kept.cids[conversation] = (this.kept.cids[conversation] ?? 0) + 1;
  }

  all(conversation) { return this.kept.waiting.filter((one) => one.conversation === conversation); }
  of(conversation) { return this.all(conversation).filter((one) => !one.failed); }

  lane({ conversation, outbox }) { return this.of(conversation).filter((one) => one.outbox === outbox); }
  floor(message) { return Math.min(...this.lane(message).map((one) => one.cid)); }

  // A new outbox id. IDCs go on wanting the cid of a refused message, so what stands behind it goes
  // on under the new one, as far as it was never offered; and so does `taken`, whose cid has come to
  // be used for something else.
  branch(conversation, taken) {
    const left = this.of(conversation), moving = [];
    while (left.length && (left.at(-1) === taken || !left.at(-1).offered)) moving.unshift(left.pop());
    if (taken && !moving.includes(taken)) moving.unshift(taken);
    this.kept.outboxes[conversation] = crypto.randomUUID();
    this.kept.cids[conversation] = 0;
    for (const one of moving) this.#number(one);
    this.kept.waiting = [...this.kept.waiting.filter((one) => !moving.includes(one)), ...moving];
    this.save();
  }

  drop(which) {
    const left = this.kept.waiting.filter((one) => !which(one));
    if (left.length === this.kept.waiting.length) return;
    this.kept.waiting = left;
    this.save();
  }
}

// --------------------------------------------------------------------------- one conversation

class Conversation {
  constructor() {
    this.heads = new Map(); // origin -> {bytes, seq}: all up to here is known
    this.seals = new Map(); // origin -> seq: what is above is void
    this.messages = new Map(); // client key -> what is shown
    this.places = new Map(); // client key -> the place that its class has come to
    this.changes = new Map(); // client key -> [{origin, seq, change}]
    this.pulling = null;
  }

  // False: it does not follow what is known, so the conversation must be pulled.
  take(entry) {
    const origin = originKey(entry.message(1)), seq = entry.int(2);
    const known = this.heads.get(origin)?.seq ?? 0n;
    if (seq <= known) return true;
    const sealed = seq > (this.seals.get(origin) ?? seq);
    if (!sealed) {
      if (seq !== known + 1n) return false;
      this.heads.set(origin, { bytes: entry.bytes(1), seq });
    }
    if (entry.has(4)) this.#message(entry.message(4));
    else if (entry.has(5)) this.#moved(keyOf(entry.message(5).message(1)), place(entry.message(5).message(2)));
    else if (entry.has(8) && !sealed) this.#change(origin, seq, entry.message(8));
    return true;
  }

  // Of origins that are out, as a pull tells. Above a seal nothing will ever come, and what was
  // changed by something there no other IDC has. A message stays: it comes again from elsewhere,
  // under the same key.
  ends(suspended) {
    for (const one of suspended.filter((each) => each.int(3))) {
      const origin = originKey(one.message(1)), end = one.int(2), head = this.heads.get(origin);
      this.seals.set(origin, end);
      if (head?.seq > end) head.seq = end;
      for (const [key, made] of this.changes)
        this.changes.set(key, made.filter((each) => each.origin !== origin || each.seq <= end));
    }
  }

  // Whether changes stand here that an IDC with these heads does not have: it may know of a seal
  // below them, and tells that with a pull.
  ahead(heads) {
    const at = new Map(heads.map((head) => [originKey(head.message(1)), head.int(2)]));
    return [...this.changes.values()].flat().some(({ origin, seq }) => seq > (at.get(origin) ?? 0n));
  }

  behind(heads) {
    return heads.some((head) => {
      const origin = originKey(head.message(1)), end = this.seals.get(origin) ?? head.int(2);
      return (this.heads.get(origin)?.seq ?? 0n) < (head.int(2) < end ? head.int(2) : end);
    });
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

  #change(origin, seq, change) {
    const key = keyOf(change.message(1));
    this.changes.set(key, [...(this.changes.get(key) ?? []), { origin, seq, change }]);
  }

  // What they have made of a message by now.
  #changed(key) {
    const known = { recalled: false, edit: undefined, order: undefined, reactions: new Map() };
    for (const { change } of this.changes.get(key) ?? []) {
      const order = change.message(3);
      const at = [order.int(1), order.string(2), order.int(3)];
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
    return known;
  }

  // In the order that everybody ends with.
  shown() {
    const all = [...this.messages.values()].map((one) => {
      const change = this.#changed(one.key);
      const reactions = [...change.reactions.values()].filter((each) => each.on);
      return {
        ...one,
        place: this.places.get(one.key),
        text: change.recalled ? "" : change.edit ?? one.text,
        recalled: change.recalled,
        edited: change.edit !== undefined,
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
    this.acked = new Map(); // message of the outbox -> {origin, partition, lsn}, as it was answered
    this.passed = new Set(); // that this IDC refuses, and another one has taken
    this.lagUntil = 0; // the IDC that serves may not have heard of everything yet
    this.sending = new Map(); // conversation -> the connection that it is sent on
    this.acks = new Set(); // conversations of which positions were not told yet
    this.tokens = new Map(); // origin -> sync token
    this.resume = undefined;
    this.stamp = undefined;
    for (const one of this.store.kept.waiting) this.conversation(one.conversation);
    this.run();
  }

  // For good. From now on it writes nothing.
  stop() {
    this.store.closed = true;
    this.status = this.stopped = "stopped";
    this.socket?.close();
  }

  conversation(name) {
    if (!this.conversations.has(name)) this.conversations.set(name, new Conversation());
    return this.conversations.get(name);
  }

  waiting(name) {
    return this.store.of(name).filter((one) => !this.acked.has(one) && !this.passed.has(one));
  }

  // What of the outbox is not shown as a message yet.
  unshown(name) {
    const { uid, device } = this.session, { messages } = this.conversation(name);
    return this.store.all(name).filter(
      ({ outbox, cid }) => !messages.has([uid, device, outbox, cid].join("/")),
    );
  }

  // A refused one, as a new message; answers as send() does.
  resend(message) {
    const why = this.send(message.conversation, message.content);
    if (!why) this.dismiss(message);
    return why;
  }

  dismiss(message) {
    this.store.drop((one) => one === message);
    this.changed();
  }

  // Why it is not taken; empty: it is in the outbox.
  send(name, content) {
    if (this.store.closed) return "This device is open in another tab.";
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
      await sleep(again * (1 + Math.random() / 2));
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
    if (this.stopped) throw new Error(this.stopped);
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
      for (const name of this.conversations.keys()) this.#flush(name);
      await this.#sync();
      await ended;
      return this.again;
    } finally {
      clearInterval(beating);
      socket.close();
      lose();
    }
  }

  async #hello(at, answer) {
    const lanes = new Map();
    for (const one of this.store.kept.waiting.filter((each) => !each.failed)) {
      const { conversation, outbox, cid } = one, name = `${conversation} ${outbox}`;
      const { floor, top } = lanes.get(name) ?? { floor: cid, top: cid };
      lanes.set(name, { conversation, outbox, floor: Math.min(floor, cid), top: Math.max(top, cid) });
    }
    const heads = [...lanes.values()].slice(0, HEADS_MAX).map(({ conversation, outbox, floor, top }) =>
      [6, encode([[1, conversation], [2, outbox], [3, floor], [4, top]])]);
    const connect = encode([
      [1, this.session.token], [2, this.store.epoch()], [3, this.resume], [5, "unknown"],
      ...heads, [7, "web/1"], [9, answer.placement],
    ]);
    const ok = (await this.#ask(10, connect)).message(10);
    this.resume = ok.bytes(3).slice();
    const origin = originKey(ok.message(6));
    if (this.origin && this.origin !== origin) this.lagUntil = Date.now() + LAG_MS;
    this.origin = origin;
    this.gateway = ok.string(9);
    this.acked.clear();
    this.passed.clear();
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
      this.store.drop((one) => {
        const ack = this.acked.get(one);
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
    const socket = this.socket;
    if (this.status !== "connected" || this.sending.get(name) === socket) return;
    this.sending.set(name, socket);
    for (let next; (next = this.waiting(name)[0]); ) {
      let wait = AGAIN_MS;
      try {
        wait = await this.#offer(name, next);
      } catch (error) {
        this.problem = error.message;
        if (error instanceof Refused) wait = this.#refused(name, next, error);
      }
      if (wait) await sleep(wait * (1 + Math.random() / 2));
      if (socket !== this.socket || this.status !== "connected") break;
    }
    if (this.sending.get(name) === socket) this.sending.delete(name);
  }

  // How long to wait then, in ms.
  async #offer(name, next) {
    if (!next.offered) {
      next.offered = true;
      this.store.save();
    }
    const claims = this.conversation(name).claims().map((bytes) => [7, bytes]);
    const send = encode([
      [1, name], [2, next.outbox], [3, next.cid], [4, this.store.floor(next)],
      [5, next.content], ...claims, [9, next.composed],
    ]);
    const ack = (await this.#ask(12, send)).message(12);
    if (ack.int(1) === WANT) {
      // It forgot what it had taken: from there on again. Where nothing of that is here, the floor
      // will pass it.
      for (const one of this.store.lane(next)) if (BigInt(one.cid) >= ack.int(3)) this.acked.delete(one);
      return this.waiting(name)[0] === next ? AGAIN_MS : 0;
    }
    this.acked.set(next, { origin: this.origin, partition: ack.int(4), lsn: ack.int(5) });
    next.acked = true;
    if (ack.int(6)) this.store.drop((one) => one === next);
    else this.store.save();
    this.changed();
    return 0;
  }

  // The same.
  #refused(name, next, error) {
    const lags = MAY_LAG.has(error.code) && Date.now() < this.lagUntil;
    if (error.retryMs || lags || LATER.has(error.code)) return error.retryMs || AGAIN_MS;
    if (next.acked) {
      this.passed.add(next); // the IDC that has taken it may come back
      this.store.branch(name);
    } else if (error.code === "cid_conflict") {
      this.store.branch(name, next);
    } else {
      next.failed = `${error.code}: ${error.message}`;
      if (this.store.floor(next) < next.cid) this.store.branch(name);
      else this.store.save();
    }
    this.changed();
    return 0;
  }

  // -------------------------------------------------------------------------------- receiving

  async #sync() {
    let page, token;
    do {
      const ok = (await this.#ask(14, encode([[1, this.tokens.get(this.origin)], [3, page]]))).message(14);
      for (const row of ok.each(1)) {
        const conversation = this.conversation(row.string(1)), heads = row.each(2);
        if (conversation.behind(heads) || conversation.ahead(heads)) await this.#pull(row.string(1));
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
      conversation.ends(ok.each(5));
      this.#take(name, entries, true);
      more = ok.int(3) !== 0n && entries.length > 0;
    }
  }

  #take(name, entries, pulled = false) {
    const conversation = this.conversation(name);
    const gap = entries.some((entry) => !conversation.take(entry));
    this.acks.add(name);
    const unshown = this.unshown(name); // of one that was refused, another IDC may have known better
    this.store.drop((one) => one.failed && one.conversation === name && !unshown.includes(one));
    if (gap && !pulled) this.#pull(name).catch(() => {});
    this.changed();
  }
}
