
"use strict";
// Without this script every number and figure is there; it adds sorting and zoom.

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells].filter((head) => head.dataset.sort);
  for (const head of heads) {
    const numeric = head.dataset.sort === "number";
    // numbers begin with the largest, names with the first
    const orders = numeric ? ["descending", "ascending"] : ["ascending", "descending"];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = orders[head.getAttribute("aria-sort") === orders[0] ? 1 : 0];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      sort(table.tBodies[0], head.cellIndex, numeric, order === "ascending" ? 1 : -1);
    });
  }
}

function sort(body, column, numeric, sign) {
  const key = (row) => (numeric ? row.cells[column].dataset.value : row.cells[column].textContent);
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (!numeric) return sign * x.localeCompare(y, "en");
    if (x === "" || y === "") return (x === "") - (y === ""); // no value: last, whatever the order
    return sign * (Number(x) - Number(y));
  };
  body.append(...[...body.rows].sort(compare));
}

function zoomable(image) {
  const title = image.closest("figure").querySelector("h3").textContent;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "open";
  button.setAttribute("aria-label", `Enlarge: ${title}`);
  button.setAttribute("aria-description", image.alt); // within a button an alt text is not read
  button.setAttribute("aria-haspopup", "dialog");
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => {
    document.getElementById("zoom-title").textContent = title;
    sheet.replaceChildren(image.cloneNode());
    resize(false);
    zoom.showModal();
  });
}

function resize(full) {
  sheet.classList.toggle("full", full);
  document.getElementById("zoom-size").setAttribute("aria-pressed", String(full));
}

const zoom = document.getElementById("zoom");
const sheet = zoom.querySelector(".sheet");
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("figure > img").forEach(zoomable);
document.getElementById("zoom-close").addEventListener("click", () => zoom.close());
document.getElementById("zoom-size").addEventListener("click", () => resize(!sheet.classList.contains("full")));
sheet.addEventListener("click", () => resize(!sheet.classList.contains("full")));
zoom.addEventListener("close", () => sheet.replaceChildren());
