// What a task has printed, as text with colours (SGR). Nothing else of what controls a terminal has
// an effect or is shown, as in the command line's orchestrator/client/text.py.
const STRING_BODY = "[^\\x07\\x1b\\x9c\\n]*";
const CONTROL = "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069]";
const TOKEN = new RegExp(
  "\\x1b\\[(?<style>[0-9;:]*)m|(?<newline>\\r\\n?)|(?:\\x1b\\[|\\x9b)[0-?]*[ -/]*[@-~]" +
  `|(?:\\x1b[\\]PX^_]|[\\x90\\x98\\x9d-\\x9f])${STRING_BODY}(?:\\x07|\\x1b\\\\|\\x9c)?` +
  `|\\x1b[ -/]*[0-~]|${CONTROL}`, "g");
const UNFINISHED = new RegExp(
  "(?:\\r|(?:\\x1b\\[|\\x9b)[0-?]*[ -/]*|\\x1b[ -/]*" +
  `|(?:\\x1b[\\]PX^_]|[\\x90\\x98\\x9d-\\x9f])${STRING_BODY}\\x1b?)$`);
const LONGEST_SEQUENCE = 4096;
const BASIC = [
  "0 0 0", "205 0 0", "0 205 0", "205 205 0", "0 0 238", "205 0 205", "0 205 205", "229 229 229",
  "127 127 127", "255 0 0", "0 255 0", "255 255 0", "92 92 255", "255 0 255", "0 255 255", "255 255 255",
];
const SWITCHES = {
  1: ["bold", true], 2: ["dim", true], 3: ["italic", true], 4: ["underline", true], 7: ["inverse", true],
  21: ["underline", true], 23: ["italic", false], 24: ["underline", false], 27: ["inverse", false],
};

// Of 256: 16 basic ones, a cube of 6 * 6 * 6, and greys.
function indexed(number) {
  if (!(number >= 0 && number < 256)) return null;
  if (number < 16) return BASIC[number];
  if (number >= 232) return Array(3).fill(8 + 10 * (number - 232)).join(" ");
  const level = (step) => (step ? 55 + 40 * step : 0);
  const place = number - 16;
  return [Math.floor(place / 36), Math.floor(place / 6) % 6, place % 6].map(level).join(" ");
}

function mixed(numbers) {
  return numbers.length === 3 && numbers.every((one) => one >= 0 && one < 256) ? numbers.join(" ") : null;
}

function applyStyle(style, parameters) {
  const rest = parameters.split(";");
  while (rest.length) {
    const [first, ...parts] = rest.shift().split(":").map(Number);
    if (first === 38 || first === 48) {
      const has = first === 38 ? "fg" : "bg";
      const kind = parts.length ? parts.shift() : Number(rest.shift());
      if (kind === 5) style[has] = indexed(parts.length ? parts[0] : Number(rest.shift()));
      // With colons there may be a colour space before the three numbers.
      else if (kind === 2) style[has] = mixed(parts.length ? parts.slice(-3) : rest.splice(0, 3).map(Number));
    } else if (parts.length) continue;
    else if (first === 0) for (const name of Object.keys(style)) delete style[name];
    else if (first === 22) style.bold = style.dim = false;
    else if (SWITCHES[first]) style[SWITCHES[first][0]] = SWITCHES[first][1];
    else if (first === 39) style.fg = null;
    else if (first === 49) style.bg = null;
    else if (first >= 30 && first < 38) style.fg = BASIC[first - 30];
    else if (first >= 40 && first < 48) style.bg = BASIC[first - 40];
    else if (first >= 90 && first < 98) style.fg = BASIC[first - 82];
    else if (first >= 100 && first < 108) style.bg = BASIC[first - 92];
  }
}

function styled(style, text) {
  const { fg, bg, inverse, ...others } = style;
  const [front, back] = inverse ? [bg, fg] : [fg, bg];
  const names = Object.keys(others).filter((name) => others[name]);
  if (front) names.push("fg");
  if (back) names.push("bg");
  if (inverse && !fg && !bg) names.push("inverse");
  if (!names.length) return document.createTextNode(text);
  const span = document.createElement("span");
  span.className = names.join(" ");
  // By the style sheet, each is made readable in light and in dark.
  if (front) span.style.setProperty("--fg", `rgb(${front})`);
  if (back) span.style.setProperty("--bg", `rgb(${back})`);
  span.textContent = text;
  return span;
}

// Turns chunks into nodes; a sequence may go on in the next chunk.
class Terminal {
  style = {};
  unfinished = "";

  feed(chunk) {
    let text = this.unfinished + chunk;
    const from = Math.max(0, text.length - LONGEST_SEQUENCE);
    const open = UNFINISHED.exec(text.slice(from));
    this.unfinished = open ? open[0] : "";
    text = text.slice(0, text.length - this.unfinished.length);
    const nodes = [];
    let plain = "";
    let done = 0;
    const flush = () => { if (plain) nodes.push(styled(this.style, plain)); plain = ""; };
    for (const token of text.matchAll(TOKEN)) {
      plain += text.slice(done, token.index);
      done = token.index + token[0].length;
      if (token.groups.newline) plain += "\n";
      else if (token.groups.style !== undefined) {
        flush();
        applyStyle(this.style, token.groups.style);
      }
    }
    plain += text.slice(done);
    flush();
    return nodes;
  }
}
