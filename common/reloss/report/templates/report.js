"use strict";
// Sorts tables, filters by task, and hides rows without runs and empty columns. Without this script, all are shown.
{
  const order = new Intl.Collator("en", { numeric: true });

  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };

  // Numbers come before words in both directions, so that cells without a value stay at the end.
  const compare = (a, b, sign) => {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : order.compare(a, b));
  };

  const sort = (table, header) => {
    const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
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

  // A column in which no visible row has a value says nothing.
  const hideEmptyColumns = (table) => {
    const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
    for (const header of table.tHead.rows[0].cells) {
      const column = header.cellIndex;
      const empty = rows.length > 0 && rows.every((row) => "empty" in row.cells[column].dataset);
      header.hidden = empty;
      for (const row of table.tBodies[0].rows) row.cells[column].hidden = empty;
    }
  };

  const task = document.getElementById("task");
  const absent = document.getElementById("absent");
  const filter = () => {
    for (const element of document.querySelectorAll("[data-task]")) {
      const filtered = task.value !== "" && element.dataset.task !== task.value;
      element.hidden = filtered || ("absent" in element.dataset && !absent.checked);
    }
    for (const table of document.querySelectorAll("table[data-sortable]")) hideEmptyColumns(table);
    const rows = [...document.querySelectorAll("#results-caption ~ tbody tr")];
    document.getElementById("count").textContent =
      `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows of results`;
  };
  if (document.querySelector('meta[http-equiv="refresh"]')) { // keep the choice when the page is loaded again
    [task.value, absent.checked] = JSON.parse(sessionStorage.getItem("filter") ?? '["", false]');
    addEventListener("pagehide", () => sessionStorage.setItem("filter", JSON.stringify([task.value, absent.checked])));
  }
  task.addEventListener("change", filter);
  absent.addEventListener("change", filter);
  document.querySelector(".controls").addEventListener("submit", (event) => event.preventDefault());
  document.querySelector(".controls").hidden = false;
  filter();

  // Nothing can be opened on paper, so print everything open.
  const closed = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  addEventListener("beforeprint", () => { opened = closed(); for (const details of opened) details.open = true; });
  addEventListener("afterprint", () => { for (const details of opened) details.open = false; });
}
