"use strict";
const by = (id) => document.getElementById(id);
const root = document.body.dataset.root;
let key = sessionStorage.getItem("key");
let watching = null;

// What each page adds: the path of its stream, and what it does when its content is shown or hidden.
const page = { live: "", opened() {}, closed() {}, shown() {} };

// The state of the connection clears by itself; a refusal stays until it is dismissed or retried.
const messages = { connection: "", refusal: "" };
let refusedAt = null;

function say(about, text) {
  if (messages[about] === text) return;
  messages[about] = text;
  const sentence = [messages.connection, messages.refusal].filter(Boolean).join(" ");
  by("state").textContent = sentence;
  by("notice").classList.toggle("tells", sentence !== "");
  by("dismiss").hidden = !messages.refusal;
}

function refuse(text) {
  refusedAt = document.activeElement;
  say("refusal", text);
}

by("dismiss").addEventListener("click", () => {
  say("refusal", "");
  // A live update may have replaced the element.
  const place = refusedAt.isConnected ? refusedAt : by(refusedAt.id) || document.querySelector("[tabindex='-1']");
  place.focus({ preventScroll: true });
});

async function request(method, path, { headers, body, signal } = {}) {
  const sent = { method, headers: { "X-API-Key": key, ...headers }, body, signal };
  const response = await fetch(root + path, sent).catch(() => { throw new Error("The server does not answer."); });
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

async function call(method, path, body) {
  const isJson = body && !(body instanceof FormData);
  const headers = isJson ? { "Content-Type": "application/json" } : {};
  const response = await request(method, path, { headers, body: isJson ? JSON.stringify(body) : body });
  return response.json();
}

async function reason(response) {
  const text = await response.text();
  // A proxy may respond in its own way.
  try { return JSON.parse(text).detail || text; } catch { return `HTTP status ${response.status}`; }
}

async function trying(work) {
  say("refusal", "");
  try { await work(); } catch (error) { refuse(error.message); }
}

const shown = new Map();

function show(part, html) {
  if (shown.get(part) === html) return;
  shown.set(part, html);
  const focused = by(part).contains(document.activeElement) ? document.activeElement.id : null;
  const parsed = document.createElement("template");
  parsed.innerHTML = html;
  by(part).replaceChildren(parsed.content);
  if (focused !== null) {
    const place = by(focused) || by(part).querySelector("[tabindex='-1']");
    if (place) place.focus({ preventScroll: true });
  }
  page.shown(part);
}

function take({ data }) {
  say("connection", "");
  if (by("content").hidden) {
    by("content").hidden = false;
    page.opened();
  }
  const { part, html } = JSON.parse(data);
  show(part, html);
}

// The difference between the server's clock and this one, in ms.
let skew = 0;

// Passes on the events of a response until it ends, or until `taker` returns true, as it then does.
async function read(response, taker) {
  const date = Date.parse(response.headers.get("Date"));
  if (date) skew = date - Date.now();
  const chunks = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await chunks.read();
    if (done) return false;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const fields = Object.fromEntries(event.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
      if (fields.data && taker(fields)) return true;
    }
  }
}

const pause_ms = (response) => 1000 * Math.min(Math.max(Number(response.headers.get("Retry-After")) || 1, 1), 60);
const sleep = (ms) => new Promise((resume) => setTimeout(resume, ms));

async function watch() {
  const mine = new AbortController();
  if (watching) watching.abort();
  watching = mine;
  while (!mine.signal.aborted) {
    let wait_ms = 1000;
    try {
      const response = await fetch(root + page.live, { headers: { "X-API-Key": key }, signal: mine.signal });
      if (response.ok) await read(response, take);
      else {
        const why = await reason(response);
        if (response.status === 401 || response.status === 403) return signOut(why);
        if (response.status === 404) return say("connection", why);
        wait_ms = pause_ms(response);
        say("connection", `${why}; retrying in ${wait_ms / 1000} s.`);
      }
    } catch (error) {
      if (!mine.signal.aborted) say("connection", "The server does not answer; retrying.");
    }
    await sleep(wait_ms);
  }
}

function canBeSent(text) {
  try { return Boolean(new Headers({ "X-API-Key": text })); } catch { return false; }
}

function signIn() {
  by("sign-in").hidden = true;
  by("sign-out").hidden = false;
  say("refusal", "");
  say("connection", "Connecting.");
  watch();
}

function signOut(why) {
  if (watching) watching.abort();
  sessionStorage.removeItem("key");
  key = null;
  for (const part of shown.keys()) by(part).replaceChildren();
  shown.clear();
  page.closed();
  by("sign-in").hidden = false;
  by("content").hidden = by("sign-out").hidden = true;
  say("connection", "");
  say("refusal", "");
  by("key").focus();
  if (why) refuse(why);
}

by("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  key = by("key").value;
  by("key").value = "";
  if (!canBeSent(key)) return signOut("This cannot be a key: it contains a character that no key has. Copy it again.");
  sessionStorage.setItem("key", key);
  signIn();
});
by("sign-out").addEventListener("click", () => signOut());

function start() { if (key) signIn(); else by("key").focus(); }
