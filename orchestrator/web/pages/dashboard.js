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
    location.assign(`dashboard/tasks/${encodeURIComponent(task.id)}`);
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
  const { pause, resume, rotate, revoke, revokeToken, delete: remove } = button.dataset;
  if (pause) trying(() => call("POST", `nodes/${pause}/pause`));
  if (resume) trying(() => call("POST", `nodes/${resume}/resume`));
  if (revoke && confirm("Revoke this key?")) trying(() => call("POST", `keys/${revoke}/revoke`));
  if (revokeToken && confirm("Revoke this registration token? Its nodes stay registered.")) trying(() => call("DELETE", `registration-tokens/${revokeToken}`));
  if (remove && confirm("Delete this key?")) trying(() => call("DELETE", `keys/${remove}`));
  if (rotate) trying(async () => {
    const made = await call("POST", `keys/${rotate}/rotate`);
    by("new-key").textContent = `Rotated key (shown only once): ${made.api_key}`;
  });
});

page.live = "dashboard/live";
page.opened = preview;
page.closed = () => { by("new-key").textContent = by("new-token").textContent = ""; };
start();
