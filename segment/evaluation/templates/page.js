"use strict";
// Sorting and filtering of the tables, and the outlines' switches. Without it the page still shows everything.
(() => {
  const value = (cell) => {
    const text = cell.textContent.trim();
    const figure = Number(text);
    return text === "" || text === "–" ? null : Number.isNaN(figure) ? text : figure;
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), document.documentElement.lang, { numeric: true });
  };

  // Undefined figures stay at the end in both directions: they are neither good nor bad.
  const sortBy = (table, heading) => {
    const body = table.tBodies[0];
    const up = heading.getAttribute("aria-sort") !== "ascending";
    const rows = Array.from(body.rows, (row) => [value(row.cells[heading.cellIndex]), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : compare(a, b) * (up ? 1 : -1)));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows.map(([, row]) => row));
  };

  const tests = {
    equals: (cell, wanted) => cell.textContent.trim() === wanted,
    contains: (cell, wanted) => cell.textContent.toLowerCase().includes(wanted.toLowerCase()),
    least: (cell, wanted) => value(cell) !== null && value(cell) >= Number(wanted),
    most: (cell, wanted) => value(cell) !== null && value(cell) <= Number(wanted),
  };

  const filter = (table, form) => {
    const columns = Object.fromEntries(Array.from(table.tHead.rows[0].cells, (cell) => [cell.dataset.key, cell.cellIndex]));
    const active = Array.from(form.elements)
      .filter((control) => control.dataset.test && control.value !== "")
      .map((control) => [columns[control.dataset.key], tests[control.dataset.test], control.value]);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !active.every(([column, test, wanted]) => test(row.cells[column], wanted));
      shown += row.hidden ? 0 : 1;
    }
    form.querySelector("output").textContent = form.dataset.count.replace("{shown}", shown);
  };

  for (const form of document.querySelectorAll("form.filters")) {
    const table = document.getElementById(form.dataset.table);
    form.hidden = false;
    // Some browsers send only one of the two for a select.
    for (const kind of ["input", "change"]) form.addEventListener(kind, () => filter(table, form));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => filter(table, form)));
    filter(table, form); // a browser may have kept the controls' values over a reload
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.addEventListener("click", (event) => {
      const heading = event.target.closest("th");
      if (heading && event.target.closest("button")) sortBy(table, heading);
    });
  }
  for (const control of document.querySelectorAll("[data-outline]")) {
    const show = () => document.body.classList.toggle(`hide-${control.dataset.outline}`, !control.checked);
    control.addEventListener("change", show);
    control.closest("fieldset").hidden = false;
    show();
  }
})();
