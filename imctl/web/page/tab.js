// One tab at a time has what a device keeps: two would each overwrite the other's outbox, and give
// one cid to two messages. The SDK locks its store for the same reason.
"use strict";

// A reloaded tab's former document may have the lock a moment longer.
const TRIES = 5, TRY_MS = 200;

export class Tab {
  // begin(): from now on this tab has it. end(): another tab has asked for it; when this returns,
  // nothing here may write any more. changed(): `state` is different.
  constructor(name, begin, end, changed) {
    this.name = name;
    this.begin = begin;
    this.end = end;
    this.changed = changed;
    this.state = "asking"; // here, elsewhere
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = () => this.#giveWay();
    this.#start();
  }

  // It comes here as soon as the other tab has stopped, or is closed.
  take() {
    this.channel.postMessage("give way");
    if (this.state !== "elsewhere") return;
    this.#become("asking");
    this.#hold({});
  }

  async #start() {
    for (let left = TRIES; left; left--) {
      if (await this.#hold({ ifAvailable: true })) return;
      await new Promise((done) => setTimeout(done, TRY_MS));
    }
    this.#become("elsewhere");
  }

  // Until it is given away; false: another tab has it.
  #hold(options) {
    return navigator.locks.request(this.name, options, async (lock) => {
      if (!lock) return false;
      const released = new Promise((release) => (this.release = release));
      this.begin();
      this.#become("here");
      await released;
      return true;
    });
  }

  #giveWay() {
    if (this.state !== "here") return;
    this.end();
    this.#become("elsewhere");
    this.release();
  }

  #become(state) {
    this.state = state;
    this.changed();
  }
}
