"use strict";
const by = (id) => document.getElementById(id);
let key = sessionStorage.getItem("key");
let selected = "";
let watching = null;

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
  const place = refusedAt.isConnected ? refusedAt : by(refusedAt.id) || by("tasks");
  place.focus({ preventScroll: true });
});

async function call(method, path, body) {
  const headers = { "X-API-Key": key };
  const isForm = body instanceof FormData;
  if (body && !isForm) headers["Content-Type"] = "application/json";
  const sent = { method, headers, body: body && !isForm ? JSON.stringify(body) : body };
  const answer = await fetch(path, sent).catch(() => { throw new Error("The server does not answer."); });
  if (!answer.ok) throw new Error(await reason(answer));
  return answer.json();
}

async function reason(answer) {
  const text = await answer.text();
  // A proxy may respond in its own way.
  try { return JSON.parse(text).detail || text; } catch { return `HTTP status ${answer.status}`; }
}

const shown = new Map();

function show(part, html) {
  if (shown.get(part) === html) return;
  shown.set(part, html);
  const focused = document.activeElement && document.activeElement.id;
  const parsed = document.createElement("template");
  parsed.innerHTML = html;
  by(part).replaceChildren(parsed.content);
  if (focused && document.activeElement === document.body && by(focused)) by(focused).focus({ preventScroll: true });
}

function take(event) {
  say("connection", "");
  if (by("fleet").hidden) {
    by("fleet").hidden = false;
    preview();
  }
  show(event.part, event.html);
  if (event.part === "chosen" && left !== null) reveal();
}

// The task that was selected before, until the new one is shown.
let left = null;

function choose(id) {
  left = selected;
  selected = id;
  watch();
}

function reveal() {
  const title = by("task-title");
  if (title) {
    by("task").scrollIntoView();
    title.focus({ preventScroll: true });
  } else (by(`show-${left}`) || by("tasks")).focus();
  left = null;
}

async function read(answer) {
  const lines = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await lines.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) take(JSON.parse(event.slice(6)));
  }
}

async function watch() {
  const mine = new AbortController();
  if (watching) watching.abort();
  watching = mine;
  while (!mine.signal.aborted) {
    let wait_s = 1;
    try {
      const query = new URLSearchParams({ task_id: selected });
      const answer = await fetch(`dashboard/live?${query}`, { headers: { "X-API-Key": key }, signal: mine.signal });
      if (answer.ok) await read(answer);
      else {
        const why = await reason(answer);
        if (answer.status === 401 || answer.status === 403) return signOut(why);
        wait_s = Math.min(Math.max(Number(answer.headers.get("Retry-After")) || 1, 1), 60);
        say("connection", `${why}; retrying in ${wait_s} s.`);
      }
    } catch (error) {
      if (!mine.signal.aborted) say("connection", "The server does not answer; retrying.");
    }
    await new Promise((resume) => setTimeout(resume, wait_s * 1000));
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
  key = left = null;
  selected = "";
  for (const part of shown.keys()) by(part).replaceChildren();
  shown.clear();
  by("new-key").textContent = by("new-token").textContent = "";
  by("sign-in").hidden = false;
  by("fleet").hidden = by("sign-out").hidden = true;
  say("connection", "");
  say("refusal", "");
  by("key").focus();
  if (why) refuse(why);
}

function tags() {
  const pairs = by("tags").value.split(",").map((pair) => pair.trim()).filter(Boolean);
  return Object.fromEntries(pairs.map((pair) => [pair.split("=")[0].trim(), pair.split("=").slice(1).join("=").trim()]));
}

function target() { return { target_node_name: by("target").value || null, target_tags: tags() }; }

let asking = 0;
async function preview() {
  const mine = ++asking;
  try {
    const count = await call("POST", "dashboard/matches", target());
    if (mine === asking) by("matches").textContent = `matches ${count.matching} of ${count.total} nodes`;
  } catch (error) { if (key) by("matches").textContent = error.message; }
}

async function trying(work) {
  say("refusal", "");
  try { await work(); } catch (error) { refuse(error.message); }
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

let soon = 0;
for (const id of ["target", "tags"]) by(id).addEventListener("input", () => { clearTimeout(soon); soon = setTimeout(preview, 300); });
by("new-task").addEventListener("toggle", preview);

by("create").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(async () => {
    const files = [];
    for (const file of by("files").files) {
      const form = new FormData();
      form.append("file", file);
      files.push((await call("POST", "upload", form)).filename);
    }
    const task = await call("POST", "tasks", {
      ...target(), files, prompt: by("prompt").value, priority: Number(by("priority").value),
      timeout_seconds: Number(by("limit").value), recurrence: by("recurrence").value || null,
    });
    by("create").reset();
    by("new-task").open = false;
    choose(task.id);
  });
});

by("create-key").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(async () => {
    const patterns = by("key-patterns").value.split(",").map((one) => one.trim()).filter(Boolean);
    const made = await call("POST", "keys", {
      name: by("key-name").value, description: by("key-description").value,
      allowed_node_patterns: patterns, role: by("key-role").value,
      expires_in_days: Number(by("key-days").value) || null, rate_limit: Number(by("key-rate").value) || null,
    });
    by("create-key").reset();
    by("new-key").textContent = `New key (shown only once): ${made.api_key}`;
  });
});

by("create-token").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(async () => {
    const patterns = by("token-patterns").value.split(",").map((one) => one.trim()).filter(Boolean);
    const days = Number(by("token-days").value);
    const made = await call("POST", "registration-tokens", {
      name: by("token-name").value, allowed_node_patterns: patterns, max_uses: Number(by("token-uses").value) || null,
      expires_at: days ? new Date(Date.now() + days * 86400000).toISOString() : null,
    });
    by("create-token").reset();
    by("new-token").textContent = `New registration token (shown only once): ${made.token}`;
  });
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { select, cancel, rotate, revoke, revokeToken, delete: remove } = button.dataset;
  if (select !== undefined) choose(select);
  if (cancel && confirm("Cancel this task?")) trying(() => call("DELETE", `tasks/${cancel}`));
  if (revoke && confirm("Revoke this key?")) trying(() => call("POST", `keys/${revoke}/revoke`));
  if (revokeToken && confirm("Revoke this registration token? Its nodes stay registered.")) trying(() => call("DELETE", `registration-tokens/${revokeToken}`));
  if (remove && confirm("Delete this key?")) trying(() => call("DELETE", `keys/${remove}`));
  if (rotate) trying(async () => {
    const made = await call("POST", `keys/${rotate}/rotate`);
    by("new-key").textContent = `Rotated key (shown only once): ${made.api_key}`;
  });
});

if (key) signIn(); else by("key").focus();
