"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const tip = document.getElementById("tip");
  const KINDS = [
    ["a unit (its colour follows from its name)", "u0"], ["of a canary", "canary"], ["kept after it was replaced", "kept"],
    ["of a host symbol", "host"], ["retired, held back", "held"], ["retired", "retired"],
    ["directory and tables", "tables"], ["free", "free"],
  ];
  const UNIT = 0, HELD = 4, RETIRED = 5, FREE = 7;
  const ROW = 26, GAP = 3;

  // Themes: what the system prefers, until somebody presses the button.
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = new URLSearchParams(location.search).get("theme");
  const setTheme = () => {
    root.classList.toggle("dark", chosen === "dark" || (chosen === null && dark.matches));
    draw();
  };
  document.getElementById("theme").addEventListener("click", () => {
    chosen = root.classList.contains("dark") ? "light" : "dark";
    setTheme();
  });
  dark.addEventListener("change", setTheme);

  const size = (bytes) => {
    if (bytes < 1024) return bytes + " B";
    const kib = bytes / 1024;
    return kib < 1024 ? +kib.toFixed(1) + " KiB" : +(kib / 1024).toFixed(1) + " MiB";
  };
  const hash = (text) => {
    let value = 7;
    for (let i = 0; i < text.length; i++) value = (value * 31 + text.charCodeAt(i)) >>> 0;
    return value;
  };
  const hues = data.units.map((unit) => "u" + (hash(unit.name) % 6));
  const named = (item) => (item[3] >= 0 ? data.units[item[3]].name : null);

  // The bytes of an area that are drawn: from its start to the end of what was ever in use, and some of the rest.
  const extent = (area) => {
    let end = 0;
    for (const item of area.items) if (item[2] !== FREE) end = Math.max(end, item[0] + item[1] - area.start);
    return Math.min(area.len_bytes, Math.max(64, Math.ceil(end * 1.04)));
  };
  const most = (area) => (/cells|stubs/.test(area.name) ? 4 : 14);
  const rows = (area) => Math.max(1, Math.min(most(area), Math.ceil(area.items.length / 24)));

  // Code first; what holds it together last.
  const FIRST = ["text", "read-only data", "private data", "shared data", "call cells", "address cells", "stubs", "control"];
  const inOrder = data.areas.slice().sort((a, b) => FIRST.indexOf(a.name) - FIRST.indexOf(b.name));
  const panels = inOrder.filter((area) => area.items.some((item) => item[2] !== FREE)).map((area) => {
    const panel = document.createElement("section");
    panel.className = "area";
    const title = document.createElement("div");
    title.className = "title";
    const name = document.createElement("b");
    name.textContent = area.name;
    const numbers = document.createElement("span");
    const used = area.used_bytes === null ? "" : size(area.used_bytes) + " used";
    const retired = area.retired_bytes > 0 ? ", " + size(area.retired_bytes) + " of it retired" : "";
    const longest = area.largest_free_bytes === null ? "" : ", longest free range " + size(area.largest_free_bytes);
    const shown = "; drawn: the first " + size(extent(area)) + " of " + size(area.len_bytes);
    numbers.textContent = used + retired + longest + shown;
    title.append(name, numbers);
    const canvas = document.createElement("canvas");
    panel.append(title, canvas);
    document.getElementById("picture").append(panel);
    const it = { area, canvas, rows: rows(area), extent: extent(area) };
    canvas.addEventListener("mousemove", (event) => point(it, event));
    canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
    return it;
  });

  let wanted = "";
  document.getElementById("find").addEventListener("input", (event) => {
    wanted = event.target.value.toLowerCase();
    draw();
  });
  const isWanted = (item) => {
    const name = named(item);
    return wanted !== "" && name !== null && name.toLowerCase().includes(wanted);
  };

  const colours = {};
  const readColours = () => {
    const style = getComputedStyle(root);
    for (const name of ["u0", "u1", "u2", "u3", "u4", "u5", "canary", "kept", "host", "held", "retired", "tables", "free", "mark", "on",
      "panel"]) colours[name] = style.getPropertyValue("--" + name).trim();
  };
  const colour = (item) => colours[item[2] === UNIT && item[3] >= 0 ? hues[item[3]] : KINDS[item[2]][1]];

  // The pieces of a range, row by row, as left and right edges in pixels.
  const pieces = (it, item, width, visit) => {
    const perRow = it.extent / it.rows;
    let from = item[0] - it.area.start;
    const end = Math.min(from + item[1], it.extent);
    while (from < end) {
      const row = Math.min(it.rows - 1, Math.floor(from / perRow));
      const to = Math.min(end, row === it.rows - 1 ? end : (row + 1) * perRow);
      visit(row, (from - row * perRow) / perRow * width, (to - row * perRow) / perRow * width);
      if (to <= from) return;
      from = to;
    }
  };

  function drawPanel(it) {
    const scale = window.devicePixelRatio || 1;
    const width = it.canvas.clientWidth || 1000, height = it.rows * (ROW + GAP) - GAP;
    it.canvas.width = Math.round(width * scale);
    it.canvas.height = Math.round(height * scale);
    it.canvas.style.height = height + "px";
    const context = it.canvas.getContext("2d");
    context.scale(scale, scale);
    context.clearRect(0, 0, width, height);
    context.font = "12px system-ui, 'DejaVu Sans', sans-serif";
    context.textBaseline = "middle";
    // What a pixel is too small for is drawn once for each pixel; what matters most comes last.
    const order = [FREE, 6, RETIRED, UNIT, 3, 2, 1, HELD];
    const last = new Map();
    for (const kind of order) {
      for (const item of it.area.items) {
        if (item[2] !== kind) continue;
        const found = isWanted(item);
        const faint = wanted !== "" && !found && kind !== FREE;
        pieces(it, item, width, (row, left, right) => {
          const key = row * 100000 + Math.floor(left);
          if (right - left < 1 && !found && last.get(key) === kind) return;
          last.set(key, kind);
          const top = row * (ROW + GAP), wide = Math.max(1, right - left);
          context.globalAlpha = faint ? 0.18 : 1;
          context.fillStyle = colour(item);
          context.fillRect(left, top, wide, ROW);
          if (kind === HELD || kind === RETIRED) stripes(context, left, top, wide);
          if (wide > 3) {
            context.fillStyle = colours.panel;
            context.fillRect(left + wide - 1, top, 1, ROW);
          }
          const name = named(item);
          if (name !== null && wide > 44) {
            context.save();
            context.beginPath();
            context.rect(left + 5, top, wide - 9, ROW);
            context.clip();
            context.fillStyle = colours.on;
            context.fillText(name.slice(0, 120), left + 6, top + ROW / 2 + 1);
            context.restore();
          }
          if (found) {
            context.strokeStyle = colours.mark;
            context.lineWidth = 2;
            context.strokeRect(left, top + 1, Math.max(wide, 2), ROW - 2);
          }
        });
      }
    }
    context.globalAlpha = 1;
  }

  // Stripes tell retired memory apart without colour.
  function stripes(context, left, top, wide) {
    if (wide < 6) return;
    context.save();
    context.beginPath();
    context.rect(left, top, wide, ROW);
    context.clip();
    context.strokeStyle = colours.panel;
    context.globalAlpha *= 0.55;
    context.lineWidth = 2;
    context.beginPath();
    for (let x = left - ROW; x < left + wide; x += 8) {
      context.moveTo(x, top + ROW);
      context.lineTo(x + ROW, top);
    }
    context.stroke();
    context.restore();
  }

  function point(it, event) {
    const box = it.canvas.getBoundingClientRect();
    const row = Math.min(it.rows - 1, Math.max(0, Math.floor((event.clientY - box.top) / (ROW + GAP))));
    const perRow = it.extent / it.rows, perPixel = perRow / box.width;
    const at = it.area.start + row * perRow + (event.clientX - box.left) * perPixel;
    const items = it.area.items;
    let low = 0, high = items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (items[middle][0] <= at) low = middle + 1; else high = middle;
    }
    const found = [];
    for (let i = Math.max(0, low - 1); i < items.length && items[i][0] <= at + perPixel; i++) found.push(items[i]);
    const lines = found.slice(0, 6).map(described);
    if (found.length > 6) lines.push("and " + (found.length - 6) + " more here");
    tip.textContent = lines.join("\n") || "nothing that is known";
    tip.hidden = false;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
  }
  function described(item) {
    const unit = item[3] >= 0 ? data.units[item[3]] : null;
    const what = unit !== null ? unit.name + " (" + unit.kind + ", generation " + unit.generation + ")" : KINDS[item[2]][0];
    const by = item[4] >= 0 ? ", by generation " + item[4] : "";
    return what + by + ": " + size(item[1]) + " at w+0x" + item[0].toString(16);
  }

  function draw() {
    readColours();
    const legend = document.getElementById("legend");
    legend.replaceChildren(...KINDS.map(([text, name], kind) => {
      const entry = document.createElement("li"), box = document.createElement("span");
      box.style.background = kind === UNIT
        ? "linear-gradient(135deg, " + colours.u0 + " 34%, " + colours.u3 + " 34% 67%, " + colours.u5 + " 67%)"
        : kind === HELD || kind === RETIRED
          ? "repeating-linear-gradient(135deg, " + colours[name] + " 0 4px, " + colours.panel + " 4px 6px)" : colours[name];
      entry.append(box, text);
      return entry;
    }));
    panels.forEach(drawPanel);
    root.dataset.drawn = panels.reduce((sum, it) => sum + it.area.items.length, 0);
  }
  let resizing = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(resizing);
    resizing = requestAnimationFrame(draw);
  });
  setTheme();
})();
