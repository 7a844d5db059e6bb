"use strict";
// Sorting, the filter by task, and the switch for what was not run. Without this script all rows are shown as they are.
{
  const order = new Intl.Collator("en", { numeric: true });

  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };

  // Numbers before words, whichever the direction: what was not measured stays at the end.
  const compare = (a, b, sign) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : order.compare(a, b));
  };

  const sort = (table, header) => {
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, header.cellIndex), row]);
    body.append(...rows.sort((a, b) => compare(a[0], b[0], sign)).map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    for (const header of table.tHead.querySelectorAll("th[data-sort]")) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, header));
      header.append(button);
    }
  }

  const task = document.getElementById("task");
  const absent = document.getElementById("absent");
  const filter = () => {
    for (const each of document.querySelectorAll("[data-task]")) {
      const other = task.value !== "" && each.dataset.task !== task.value;
      each.hidden = other || ("absent" in each.dataset && !absent.checked);
    }
    const rows = [...document.querySelectorAll("#results-caption ~ tbody tr")];
    document.getElementById("count").textContent =
      `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows of results`;
  };
  task.addEventListener("change", filter);
  absent.addEventListener("change", filter);
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  document.querySelector(".controls").hidden = false;
  filter();

  // On paper nothing can be opened.
  const closed = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  addEventListener("beforeprint", () => { opened = closed(); for (const each of opened) each.open = true; });
  addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
}
