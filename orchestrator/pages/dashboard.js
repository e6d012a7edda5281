"use strict";
const by = (id) => document.getElementById(id);
let key = sessionStorage.getItem("key");
let selected = "";
let watching = null;

function say(text) { by("state").textContent = text; }

async function call(method, path, body) {
  const headers = { "X-API-Key": key };
  const isForm = body instanceof FormData;
  if (body && !isForm) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && !isForm ? JSON.stringify(body) : body });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail);
  return told;
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
  say("");
  show(event.part, event.html);
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
    try {
      const query = new URLSearchParams({ task_id: selected });
      const answer = await fetch(`dashboard/live?${query}`, { headers: { "X-API-Key": key }, signal: mine.signal });
      if (answer.status === 401 || answer.status === 403) return signOut((await answer.json()).detail);
      if (answer.ok) await read(answer);
    } catch (error) {
      if (!mine.signal.aborted) say("The server does not answer; trying again.");
    }
    await new Promise((resume) => setTimeout(resume, 1000));
  }
}

function signIn() {
  by("sign-in").hidden = true;
  by("fleet").hidden = by("sign-out").hidden = false;
  say("");
  watch();
  preview();
}

function signOut(why) {
  if (watching) watching.abort();
  sessionStorage.removeItem("key");
  key = null;
  for (const part of shown.keys()) by(part).replaceChildren();
  shown.clear();
  by("new-key").textContent = "";
  by("sign-in").hidden = false;
  by("fleet").hidden = by("sign-out").hidden = true;
  say(why || "");
  by("key").focus();
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
    const told = await call("POST", "dashboard/matches", target());
    if (mine === asking) by("matches").textContent = `matches ${told.matching} of ${told.total} nodes`;
  } catch (error) { if (key) by("matches").textContent = error.message; }
}

async function trying(work) {
  try { await work(); } catch (error) { say(error.message); }
}

by("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  key = by("key").value;
  by("key").value = "";
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
    selected = task.id;
    watch();
  });
});

by("create-key").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(async () => {
    const patterns = by("key-patterns").value.split(",").map((one) => one.trim()).filter(Boolean);
    const made = await call("POST", "keys", {
      name: by("key-name").value, description: by("key-description").value,
      allowed_node_patterns: patterns, role: by("key-role").value,
    });
    by("create-key").reset();
    by("new-key").textContent = `The key, shown this once: ${made.api_key}`;
  });
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { select, cancel, rotate, revoke, delete: remove } = button.dataset;
  if (select !== undefined) { selected = select; watch(); }
  if (cancel && confirm("Cancel this task?")) trying(() => call("DELETE", `tasks/${cancel}`));
  if (revoke && confirm("Revoke this key?")) trying(() => call("POST", `keys/${revoke}/revoke`));
  if (remove && confirm("Delete this key?")) trying(() => call("DELETE", `keys/${remove}`));
  if (rotate) trying(async () => {
    const made = await call("POST", `keys/${rotate}/rotate`);
    by("new-key").textContent = `The new key, shown this once: ${made.api_key}`;
  });
});

if (key) signIn(); else by("key").focus();
