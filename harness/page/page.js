// The sample table, its texts and the charts' tooltips. Whatever comes from a result is set as text, never as markup.
"use strict";

const PAGE = 25;
const LONGEST = 100_000;

/** JSON out of an element that holds gzip in base64. */
async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

/** Control characters and changes of direction, made visible as the page's other texts have them. */
function visible(text) {
  return text
    .replace(/[\u202a-\u202e\u2066-\u2069]/g, (mark) => `⟨U+${mark.codePointAt(0).toString(16).toUpperCase()}⟩`)
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, (mark) => String.fromCharCode(0x2400 + mark.charCodeAt(0)));
}

function make(name, settings = {}, ...inside) {
  const element = Object.assign(document.createElement(name), settings);
  element.append(...inside);
  return element;
}

/** What a cell says; null for a gap. */
function cell(column, row) {
  const value = column.values[row];
  if (column.words) return column.words[value];
  return value === null ? null : value.toLocaleString("en", { minimumFractionDigits: column.decimals, maximumFractionDigits: column.decimals });
}

/** `latency>250` and the like; null for a word that is none. */
function condition(word, columns) {
  const found = /^(.+?)(<=|>=|<|>|=)(-?[\d.]+)$/.exec(word);
  if (!found) return null;
  const [, name, sign, text] = found;
  const column = columns.find((one) => !one.words && one.title.toLowerCase().startsWith(name));
  if (!column) return null;
  const bound = Number(text);
  const holds = { "<": (v) => v < bound, ">": (v) => v > bound, "<=": (v) => v <= bound, ">=": (v) => v >= bound, "=": (v) => v === bound }[sign];
  return (row) => column.values[row] !== null && holds(column.values[row]);
}

class Browser {
  constructor(details) {
    this.id = details.dataset.of;
    this.place = details.querySelector(".browser");
    this.page = 0;
    this.sorted = null;
    this.down = false;
    this.texts = new Map();
  }

  async open() {
    const table = await unpack(`table-of-${this.id}`);
    this.columns = table.columns;
    this.rows = table.rows;
    this.chunk = table.chunk;
    this.textOf = table.indices && new Map(table.indices.map((index, place) => [index, place]));
    this.order = Uint32Array.from({ length: this.rows }, (_, row) => row);
    this.build();
    await this.find();
    this.place.hidden = false;
  }

  build() {
    this.words = make("input", { type: "search", placeholder: "search; also latency>250, ttft<=20", ariaLabel: "Search samples" });
    this.bad = make("input", { type: "checkbox" });
    this.deep = make("input", { type: "checkbox" });
    this.count = make("span", { className: "count" });
    this.back = make("button", { type: "button", textContent: "‹", ariaLabel: "Earlier rows" });
    this.on = make("button", { type: "button", textContent: "›", ariaLabel: "Later rows" });
    this.head = make("tr");
    this.body = make("tbody");
    const tools = make("div", { className: "tools" }, this.words);
    if (this.columns.some((column) => column.name === "error")) tools.append(make("label", {}, this.bad, " failed only"));
    if (this.textOf) tools.append(make("label", {}, this.deep, " search texts too"));
    tools.append(this.count, this.back, this.on);
    for (const column of this.columns) this.head.append(this.heading(column));
    const table = make("table", {}, make("thead", {}, this.head), this.body);
    this.place.append(tools, make("div", { className: "scroll" }, table));
    let waiting;
    this.words.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => this.find(), 120); });
    for (const box of [this.bad, this.deep]) box.addEventListener("change", () => this.find());
    this.back.addEventListener("click", () => this.turn(-1));
    this.on.addEventListener("click", () => this.turn(1));
  }

  heading(column) {
    const button = make("button", { type: "button", textContent: column.title });
    const head = make("th", { scope: "col", className: column.words ? "words" : "" }, button);
    button.addEventListener("click", () => {
      this.down = this.sorted === column ? !this.down : false;
      this.sorted = column;
      for (const other of this.head.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      this.sort();
      this.turn(0);
    });
    return head;
  }

  /** Gaps come last in either direction. */
  sort() {
    if (!this.sorted) return;
    const { words, values } = this.sorted;
    const key = words ? values.map((value) => words[value]) : values;
    const sign = this.down ? -1 : 1;
    this.found.sort((one, other) => {
      const a = key[one], b = key[other];
      if (a === null || b === null) return (a === null) - (b === null) || one - other;
      return (a < b ? -sign : a > b ? sign : 0) || one - other;
    });
    this.page = 0;
  }

  async find() {
    const turn = (this.turnOf = (this.turnOf || 0) + 1);
    const needles = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const tests = needles.map((word) => condition(word, this.columns) || ((row) => this.holds(row, word)));
    if (this.bad.checked) {
      const error = this.columns.find((column) => column.name === "error");
      tests.push((row) => error.words[error.values[row]] !== null);
    }
    if (this.deep.checked && needles.length) await this.readAll();
    if (turn !== this.turnOf) return;
    this.found = this.order.filter((row) => tests.every((test) => test(row)));
    this.page = 0;
    this.sort();
    this.turn(0);
  }

  holds(row, word) {
    for (const column of this.columns) {
      const text = column.words ? column.words[column.values[row]] : column.values[row];
      if (text !== null && String(text).toLowerCase().includes(word)) return true;
    }
    const texts = this.deep.checked && this.known(row);
    return Boolean(texts) && texts.some((text) => text.toLowerCase().includes(word));
  }

  turn(step) {
    const pages = Math.max(1, Math.ceil(this.found.length / PAGE));
    this.page = Math.min(Math.max(0, this.page + step), pages - 1);
    const rows = this.found.subarray(this.page * PAGE, (this.page + 1) * PAGE);
    const first = this.found.length ? this.page * PAGE + 1 : 0;
    this.count.textContent = `${first.toLocaleString("en")}–${(first + rows.length - (first ? 1 : 0)).toLocaleString("en")} of ${this.found.length.toLocaleString("en")}`;
    this.back.disabled = this.page === 0;
    this.on.disabled = this.page >= pages - 1;
    this.body.replaceChildren(...Array.from(rows, (row) => this.line(row)));
  }

  line(row) {
    const line = make("tr", { className: "row", tabIndex: 0 });
    for (const column of this.columns) {
      const text = cell(column, row);
      line.append(make("td", { className: column.words ? "words" : "", textContent: text === null ? "" : visible(text) }));
    }
    line.addEventListener("click", () => this.toggle(line, row));
    line.addEventListener("keydown", (event) => { if (event.key === "Enter") this.toggle(line, row); });
    return line;
  }

  async toggle(line, row) {
    const next = line.nextElementSibling;
    if (next && !next.classList.contains("row")) return next.remove();
    const inside = make("td", { className: "whole", colSpan: this.columns.length });
    line.after(make("tr", {}, inside));
    for (const column of this.columns) {
      if (column.name === "error" && column.words[column.values[row]] !== null) this.part(inside, "error", cell(column, row));
    }
    const texts = this.textOf && (await this.read(row));
    if (!texts) return inside.childNodes.length || this.part(inside, "", this.textOf ? "This sample has no text." : "This report holds no texts of this run.");
    ["prompt", "answer", "reference"].forEach((name, at) => this.part(inside, name, texts[at]));
  }

  part(inside, name, text) {
    const rest = text.length - LONGEST;
    const shown = rest > 0 ? `${text.slice(0, LONGEST)} … and ${rest.toLocaleString("en")} characters more` : text;
    inside.append(make("p", { className: "part", textContent: name }), make("pre", { className: "text", dir: "auto", textContent: visible(shown) }));
  }

  /** Where a row's texts stand; undefined for a sample that has none. */
  placeOf(row) {
    return this.textOf.get(this.columns.find((column) => column.name === "sample_index").values[row]);
  }

  known(row) {
    const place = this.placeOf(row);
    return place === undefined ? undefined : this.texts.get(Math.floor(place / this.chunk))?.[place % this.chunk];
  }

  async read(row) {
    const place = this.placeOf(row);
    if (place === undefined) return undefined;
    await this.readChunk(Math.floor(place / this.chunk));
    return this.known(row);
  }

  async readChunk(number) {
    if (!this.texts.has(number)) this.texts.set(number, await unpack(`texts-${number}-of-${this.id}`));
  }

  async readAll() {
    const chunks = Math.ceil(this.textOf.size / this.chunk);
    for (let number = 0; number < chunks; number += 1) {
      this.count.textContent = `reading texts, ${number + 1} of ${chunks}`;
      await this.readChunk(number);
    }
  }
}

for (const details of document.querySelectorAll("details.samples")) {
  let begun = false;
  const begin = () => {
    if (begun || !details.open) return;
    begun = true;
    new Browser(details).open();
  };
  details.addEventListener("toggle", begin);
  begin();
}

const tip = document.getElementById("tip");
document.addEventListener("pointermove", (event) => {
  const mark = event.target.closest?.(".chart [aria-label]:not([aria-roledescription*=group]):not([aria-roledescription=axis])");
  const label = mark?.getAttribute("aria-label");
  tip.hidden = !label;
  if (!label) return;
  tip.textContent = label;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 18}px`;
});
