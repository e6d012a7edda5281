const id = document.body.dataset.task;
const path = `tasks/${encodeURIComponent(id)}`;
const box = by("output");

// A browser bears no 10 MB of coloured text well: the end is shown, and the download has all.
const SHOWN_BYTES = 500000;
const SHOWN_WEIGHT = 1000000;
const WEIGHT_OF_A_NODE = 50;

const output = { run: null, next: 0, weight: 0, terminal: new Terminal(), done: false, reading: null };

function clearOutput() {
  if (output.reading) output.reading.abort();
  Object.assign(output, { next: 0, weight: 0, terminal: new Terminal(), done: false, reading: null });
  box.replaceChildren();
  by("output-cut").hidden = true;
}

function addOutput(text) {
  const nodes = output.terminal.feed(text);
  const block = document.createElement("span");
  block.append(...nodes);
  block.weight = block.textContent.length + WEIGHT_OF_A_NODE * nodes.length;
  output.weight += block.weight;
  box.append(block);
  while (output.weight > SHOWN_WEIGHT && box.firstChild !== block) {
    output.weight -= box.firstChild.weight;
    box.firstChild.remove();
    by("output-cut").hidden = false;
  }
  if (by("follow").checked) box.scrollTop = box.scrollHeight;
}

box.addEventListener("scroll", () => { by("follow").checked = box.scrollHeight - box.scrollTop - box.clientHeight < 8; });
by("follow").addEventListener("change", () => { if (by("follow").checked) box.scrollTop = box.scrollHeight; });

function takeOutput({ event, id: place, data }) {
  const value = JSON.parse(data);
  if (event === "end") {
    output.done = true;
    by("output-state").textContent = output.next ? "Complete." : "The task has printed nothing, or its node does not send it.";
    return true;
  }
  output.next = Number(place);
  // The first line may be cut.
  addOutput(output.skips ? value.text.slice(value.text.indexOf("\n") + 1) : value.text);
  output.skips = false;
  return false;
}

async function skipBeginning(signal) {
  // Beyond its end there is no text, only the length.
  const response = await request("GET", `${path}/output?offset=${Number.MAX_SAFE_INTEGER}`, { signal });
  const length = Number(response.headers.get("X-Output-Length")) || 0;
  output.next = Math.max(0, length - SHOWN_BYTES);
  output.skips = output.next > 0;
  by("output-cut").hidden = !output.skips;
}

async function watchOutput() {
  const { signal } = output.reading = new AbortController();
  while (!signal.aborted && !output.done) {
    let wait_ms = 1000;
    try {
      if (!output.next) await skipBeginning(signal);
      const headers = { "X-API-Key": key, Accept: "text/event-stream", "Last-Event-ID": String(output.next) };
      const response = await fetch(`${root}${path}/output`, { headers, signal });
      if (response.ok) {
        by("output-state").textContent = "";
        await read(response, takeOutput);
      } else {
        by("output-state").textContent = await reason(response);
        wait_ms = pause_ms(response);
      }
    } catch (error) {
      if (!signal.aborted) by("output-state").textContent = `${error.message} Retrying.`;
    }
    if (!output.done) await sleep(wait_ms);
  }
}

async function download(from, name) {
  const response = await request("GET", from);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const actions = {
  cancel: () => confirm("Cancel this task?") && call("DELETE", path),
  rerun: async () => { location.assign(encodeURIComponent((await call("POST", `${path}/rerun`)).id)); },
  purge: async () => {
    if (!confirm("Delete this task with its history, log, output and artifacts?")) return;
    await call("POST", `${path}/purge`);
    location.assign(`${root}dashboard`);
  },
  output: () => download(`${path}/output`, `output-${id}.txt`),
  log: () => download(`logs/${encodeURIComponent(id)}`, `log-${id}.json`),
  archive: () => download(`${path}/artifacts.zip`, `artifacts-${id}.zip`),
  artifact: ({ artifact }) => {
    const segments = artifact.split("/");
    return download(`${path}/artifacts/${segments.map(encodeURIComponent).join("/")}`, segments.at(-1));
  },
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button || button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  trying(() => actions[button.dataset.do](button.dataset)).finally(() => button.removeAttribute("aria-busy"));
});

function durationText(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}

function showDurations() {
  for (const one of document.querySelectorAll("[data-since]")) {
    one.textContent = durationText(Date.now() + skew - Date.parse(one.dataset.since));
  }
}
setInterval(showDurations, 1000);

// A browser has few connections for each server: a page that nobody sees holds none.
document.addEventListener("visibilitychange", () => {
  if (!key) return;
  if (document.hidden) {
    watching.abort();
    if (output.reading) output.reading.abort();
  } else {
    watch();
    if (!by("content").hidden) watchOutput();
  }
});

page.live = `dashboard/${path}/live`;
page.opened = watchOutput;
page.closed = () => {
  clearOutput();
  output.run = null;
  document.title = "Task";
};
page.shown = (part) => {
  showDurations();
  if (part !== "facts") return;
  const { status, run } = by("task-state").dataset;
  document.title = `${status}: task ${id.slice(0, 8)}`;
  const isAnother = output.run !== null && output.run !== run;
  output.run = run;
  if (isAnother) {
    // At another node its output starts over.
    clearOutput();
    watchOutput();
  }
};
start();
