"use strict";
// Themes, tabs, the list of examples, and saving figures. Without scripts the page shows everything, unfiltered.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function theme() {
  const button = document.querySelector("#theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const update = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("nlora-theme", root.dataset.theme); } catch (error) { /* then it is not remembered */ }
    update();
  });
  system.addEventListener("change", update);
  update();
}

function tabs() {
  for (const list of all("[role=tablist]")) {
    const items = all("[role=tab]", list);
    const choose = (chosen, focus) => {
      for (const item of items) {
        const isChosen = item === chosen;
        item.setAttribute("aria-selected", String(isChosen));
        item.tabIndex = isChosen ? 0 : -1;
        document.getElementById(item.getAttribute("aria-controls")).classList.toggle("closed", !isChosen);
      }
      if (focus) chosen.focus();
    };
    items.forEach((item, index) => {
      item.addEventListener("click", () => choose(item, false));
      item.addEventListener("keydown", (event) => {
        const last = items.length - 1;
        const to = { ArrowRight: index === last ? 0 : index + 1, ArrowLeft: index || items.length,
          Home: 0, End: last }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        choose(items[event.key === "ArrowLeft" ? to - 1 : to], true);
      });
    });
    choose(items[0], false);
  }
}

function examples() {
  const box = document.querySelector("#examples");
  if (!box) return;
  const step = 20;
  const items = all("li.example", box);
  // Without the page's own words, such as "expected".
  const texts = items.map((item) => all("p, dd", item).map((part) => part.textContent.toLowerCase()).join(" "));
  const search = box.querySelector("#search");
  if (!search) return;  // nothing was forgotten
  const filters = all("select", box);
  const count = box.querySelector("#count");
  const more = box.querySelector("#more");
  let shown = step;
  const apply = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    items.forEach((item, index) => {
      const fits = filters.every((filter) => !filter.value || item.dataset[filter.name] === filter.value)
        && words.every((word) => texts[index].includes(word));
      if (fits) found += 1;
      item.hidden = !fits || found > shown;
    });
    const visible = Math.min(found, shown);
    count.textContent = found === 0 ? "No example matches."
      : `${visible} of ${found} shown` + (found < items.length ? `, of ${items.length} in the list.` : ".");
    more.hidden = found <= shown;
  };
  const again = () => { shown = step; apply(); };
  search.addEventListener("input", again);
  for (const filter of filters) filter.addEventListener("change", again);
  more.addEventListener("click", () => {
    const next = items.filter((item) => !item.hidden).length;
    shown += step;
    apply();
    const first = items.filter((item) => !item.hidden)[next];
    if (first) { first.tabIndex = -1; first.focus({ preventScroll: true }); }
  });
  apply();
}

function figures() {
  const data = JSON.parse(document.getElementById("figure-style").textContent);
  const drawn = (figure) => {
    // A table's drawing is in a template; of several drawings on the page, the visible one is saved.
    const inert = figure.querySelector("template.drawing");
    const found = all("svg.figure", inert ? inert.content : figure);
    const visible = found.find((svg) => svg.getClientRects().length) || found[0];
    const svg = visible.cloneNode(true);
    const box = svg.viewBox.baseVal;
    svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    svg.setAttribute("width", box.width);
    svg.setAttribute("height", box.height);
    const make = (name) => svg.insertBefore(document.createElementNS("http://www.w3.org/2000/svg", name), svg.firstChild);
    const paper = make("rect");
    paper.setAttribute("width", box.width);
    paper.setAttribute("height", box.height);
    paper.setAttribute("class", "f-paper");
    make("style").textContent = data.style;
    return new XMLSerializer().serializeToString(svg);
  };
  const save = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const picture = (text, done) => {
    const image = new Image();
    const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    image.onload = () => {
      const scale = 3;
      const canvas = document.createElement("canvas");
      canvas.width = Math.round(image.naturalWidth * scale);
      canvas.height = Math.round(image.naturalHeight * scale);
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob(done, "image/png");
      URL.revokeObjectURL(url);
    };
    image.src = url;
  };
  for (const button of all("button[data-save]")) {
    button.addEventListener("click", () => {
      const figure = button.closest("figure");
      const text = drawn(figure);
      if (button.dataset.save === "svg") save(new Blob([text], { type: "image/svg+xml" }), `${figure.id}.svg`);
      else picture(text, (blob) => save(blob, `${figure.id}.png`));
    });
  }
  // Hovering over a line dims the others.
  for (const group of all("svg.figure g.series")) {
    const svg = group.ownerSVGElement;
    group.addEventListener("pointerenter", () => {
      svg.classList.add("focused");
      for (const other of all("g.series", svg)) {
        other.classList.toggle("front", other.dataset.series === group.dataset.series);
      }
    });
    group.addEventListener("pointerleave", () => svg.classList.remove("focused"));
  }
}

function copying() {
  for (const button of all("button[data-copy]")) {
    button.addEventListener("click", () => {
      const code = button.parentElement.querySelector("code");
      const range = document.createRange();
      range.selectNodeContents(code);
      const selection = getSelection();
      selection.removeAllRanges();
      selection.addRange(range);
      // Works for local files too, where the clipboard API is not available.
      const isCopied = document.execCommand("copy");
      button.textContent = isCopied ? "Copied" : "Selected";
    });
  }
}

function navigation() {
  const links = new Map(all("nav a").map((link) => [link.getAttribute("href").slice(1), link]));
  const sections = [...links.keys()].map((key) => document.getElementById(key));
  const mark = () => {
    const line = innerHeight / 3;
    let current = sections[0];
    for (const section of sections) if (section.getBoundingClientRect().top <= line) current = section;
    if (innerHeight + scrollY >= document.body.scrollHeight - 4) current = sections[sections.length - 1];
    for (const [key, link] of links) {
      if (key === current.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", mark, { passive: true });
  addEventListener("resize", mark);
  mark();
}

theme();
tabs();
examples();
figures();
copying();
navigation();
