// Sorting and filtering of the tables of layers. Without it the tables are whole, in the model's order.
for (const table of document.querySelectorAll("table.layers")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];

  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? parseFloat(cell.dataset.value) : cell.textContent;
  };
  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // unknown ones last
    return sign * (a - b);
  };
  const sortBy = (column) => {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    const sorted = [...rows].sort((a, b) => compare(key(a, column), key(b, column), up ? 1 : -1));
    body.append(...sorted);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("span"); // a <button> is not printed again on the next sheet
    button.role = "button";
    button.tabIndex = 0;
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(column));
    button.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sortBy(column);
      }
    });
    head.replaceChildren(button);
  });

  const tools = document.createElement("div");
  tools.className = "tools";
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "Filter by name, as fc1 or blocks.3";
  search.setAttribute("aria-label", "Filter layers by name");
  const form = document.createElement("select");
  form.setAttribute("aria-label", "Filter layers by form");
  for (const name of ["all forms", ...new Set(rows.map((row) => row.dataset.form))]) {
    form.append(new Option(name, name === "all forms" ? "" : name));
  }
  const count = document.createElement("output");
  const filter = () => {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = row.cells[0].textContent.toLowerCase().includes(wanted);
      row.hidden = !fits || (form.value !== "" && row.dataset.form !== form.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} layers`;
  };
  search.addEventListener("input", filter);
  form.addEventListener("change", filter);
  filter();
  tools.append(search, form, count);
  table.parentElement.before(tools);
}
// What is folded away on a screen belongs on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((d) => (d.open = true)));
