"use strict";

import { Client, storeName } from "./client.js";
import { Tab } from "./tab.js";

const by = (id) => document.getElementById(id);
const session = await (await fetch("session")).json();
const OTHER = { asking: "waiting for another tab", elsewhere: "open in another tab" };
let current = "", drawing = false, client = null;

// Once a frame, however much has come.
function changed() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => { drawing = false; draw(); }, 30);
}

const tab = new Tab(
  storeName(session),
  () => { client = new Client(session, changed); },
  () => client.stop(),
  changed,
);
by("take").onclick = () => tab.take();
by("me").textContent = `${session.uid} (${session.device})`;

const peer = (name) => name.startsWith("d:")
  ? name.split(":").slice(1).find((uid) => uid !== session.uid) ?? session.uid
  : name;

function conversationWith(who) {
  return who.startsWith("g:") ? who : `d:${[session.uid, who].sort().join(":")}`;
}

function row(tag, message, note) {
  const item = document.createElement(tag);
  item.textContent = message.recalled ? "(recalled)" : message.text;
  if (message.uid === session.uid) item.className = "mine";
  const small = document.createElement("small");
  small.textContent = note;
  item.append(small);
  return item;
}

// What was refused, until the user has decided about it.
function refusedRow(message) {
  const item = row("li", { uid: session.uid, text: message.content }, `not sent: ${message.failed} `);
  item.classList.add("failed");
  const button = (text, act) => {
    const made = document.createElement("button");
    made.textContent = text;
    made.onclick = act;
    item.lastChild.append(made, " ");
  };
  button("Send again", () => { by("why").textContent = client.resend(message); });
  button("Dismiss", () => client.dismiss(message));
  return item;
}

function draw() {
  const here = tab.state === "here";
  by("take").hidden = tab.state !== "elsewhere";
  by("text").disabled = !current || !here;
  if (!here) by("state").textContent = OTHER[tab.state];
  else if (client.status === "connected") by("state").textContent = `connected to ${client.where}`;
  else by("state").textContent = client.status + (client.problem ? `: ${client.problem}` : "");
  if (!client) return;
  const names = [...client.conversations.keys()].sort();
  by("list").replaceChildren(...names.map((name) => {
    const button = document.createElement("button");
    const failed = client.unshown(name).filter((one) => one.failed).length;
    button.textContent = peer(name) + (failed ? ` (${failed} not sent)` : "");
    if (name === current) button.setAttribute("aria-current", "true");
    button.onclick = () => { current = name; draw(); by("text").focus(); };
    return button;
  }));
  if (!current) return;
  const conversation = client.conversation(current);
  const time = (ms) => new Date(ms).toLocaleTimeString();
  const shown = conversation.shown().map((one) => row("li", one,
    [one.uid === session.uid ? "" : one.uid, time(one.composed), one.edited ? "edited" : "", ...one.reactions]
      .filter(Boolean).join(" · ")));
  const waiting = client.unshown(current).map((one) => one.failed
    ? refusedRow(one) : row("li", { uid: session.uid, text: one.content }, "sending"));
  const list = by("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  list.replaceChildren(...shown, ...waiting);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

by("open").onsubmit = (event) => {
  event.preventDefault();
  const who = by("with").value.trim();
  if (!who || !client) return;
  current = conversationWith(who);
  client.conversation(current);
  by("with").value = "";
  draw();
  by("text").focus();
};

by("send").onsubmit = (event) => {
  event.preventDefault();
  if (!current || !client || !by("text").value) return;
  const why = client.send(current, by("text").value);
  by("why").textContent = why;
  if (!why) by("text").value = "";
};

by("text").oninput = () => { by("why").textContent = ""; };

changed();
