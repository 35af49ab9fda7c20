"use strict";

const UNKNOWN = "(the text of this segment is not in the figures)";

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

/* The numbers of a plot as a table, made when it is asked for, and as a CSV file. */
function offerNumbers(figure, data) {
  const details = figure.querySelector("details.numbers");
  const shown = (cell) => (cell === null ? "" : String(cell));
  details.addEventListener("toggle", () => {
    const place = details.querySelector(".scroll");
    if (!details.open || place.firstChild) return;
    const table = element("table");
    const head = table.createTHead().insertRow();
    for (const column of data.columns) head.append(element("th", column));
    const body = table.createTBody();
    for (const row of data.rows) {
      const line = body.insertRow();
      for (const cell of row) line.append(element("td", shown(cell), typeof cell === "number" ? "number" : ""));
    }
    place.append(table);
  });
  details.querySelector(".save").addEventListener("click", () => {
    const quoted = (cell) => (/[",\n\r]/.test(shown(cell)) ? `"${shown(cell).replaceAll('"', '""')}"` : shown(cell));
    const lines = [data.columns, ...data.rows].map((row) => row.map(quoted).join(",") + "\n");
    const link = element("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "text/csv" }));
    link.download = `${figure.id}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

/* A line of the legend hides its line of the plot. */
function offerLines(figure) {
  for (const button of figure.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      figure.querySelector(`.line[data-line="${button.dataset.line}"]`).classList.toggle("off", !shown);
    });
  }
}

/* Pointing at a cell of a map shows both segments; a click keeps them; arrow keys walk; the address names the cell. */
function offerTexts(figure, data) {
  const cells = [...figure.querySelectorAll(".map rect")];
  const found = new Map(data.rows.map(([row, column], index) => [`${row}-${column}`, index]));
  const texts = new Map(data.texts);
  const what = figure.querySelector(".what");
  const [reading, recalled] = figure.querySelectorAll(".panel .text");
  const [readingTitle, recalledTitle] = figure.querySelectorAll(".panel h4");
  let current = 0;
  let kept = false;

  function show(index) {
    const [row, column, weight] = data.rows[index];
    cells[current].classList.remove("on");
    cells[current].setAttribute("tabindex", "-1");
    current = index;
    const line = `Segment ${row} recalls segment ${column}: weight ${Number(weight.toPrecision(4))}`;
    cells[index].classList.add("on");
    cells[index].setAttribute("tabindex", "0");
    cells[index].setAttribute("role", "button");
    cells[index].setAttribute("aria-label", line);
    what.textContent = line;
    readingTitle.textContent = `Segment ${row}, which recalls`;
    recalledTitle.textContent = `Segment ${column}, recalled`;
    reading.textContent = texts.get(row) ?? UNKNOWN;
    recalled.textContent = texts.get(column) ?? UNKNOWN;
    reading.hidden = recalled.hidden = false;
  }
  function keep(index) {
    kept = true;
    show(index);
    history.replaceState(null, "", `#cell-${figure.id}-${data.rows[index][0]}-${data.rows[index][1]}`);
  }
  function follow() {
    const address = decodeURIComponent(location.hash);
    const start = `#cell-${figure.id}-`;
    if (!address.startsWith(start) || !found.has(address.slice(start.length))) return;
    kept = true;
    show(found.get(address.slice(start.length)));
    figure.scrollIntoView();
  }
  const map = figure.querySelector(".map");
  const indexOf = (event) => cells.indexOf(event.target);
  cells[0].setAttribute("tabindex", "0");
  cells[0].setAttribute("role", "button");
  cells[0].setAttribute("aria-label", "First cell; arrow keys go to the others");
  map.addEventListener("mouseover", (event) => {
    if (!kept && indexOf(event) >= 0) show(indexOf(event));
  });
  map.addEventListener("click", (event) => {
    if (indexOf(event) >= 0) keep(indexOf(event));
  });
  map.addEventListener("focusin", (event) => {
    if (indexOf(event) >= 0) show(indexOf(event));
  });
  map.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") kept = false;
    if (event.key === "Enter" || event.key === " ") {
      keep(current);
      event.preventDefault();
    }
    if (!(event.key in steps)) return;
    event.preventDefault();
    const [down, right] = steps[event.key];
    let [row, column] = data.rows[current];
    for (let tries = 0; tries < data.rows.length; tries += 1) {
      row += down;
      column += right;
      const next = found.get(`${row}-${column}`);
      if (next !== undefined) {
        show(next);
        cells[next].focus();
        return;
      }
    }
  });
  window.addEventListener("hashchange", follow);
  follow();
}

for (const figure of document.querySelectorAll("figure")) {
  const data = JSON.parse(figure.querySelector("script.data").textContent);
  offerNumbers(figure, data);
  offerLines(figure);
  if (data.texts) offerTexts(figure, data);
}
