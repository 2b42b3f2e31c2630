"use strict";
(function () {
  const root = document.getElementById("flame"), blob = document.getElementById("timelines");
  if (!root || !blob) return;
  const data = JSON.parse(blob.textContent);
  const ROW = 20, GAP = 4, AXIS = 22, STRIP = 18, TOKEN = 7, LONG = 3000, NS = document.querySelector("svg").namespaceURI;
  const TYPES = { u1: Uint8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;
  const state = { run: 0, sort: "recorded", metric: "", from: 0, to: 1, box: -1, cursor: 0 };
  const stats = { calls: 0, frames: 0 };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let episode = null, colours = {}, waiting = false, margin = 104;

  // ---- columns and texts

  function column(told) {
    const bytes = Uint8Array.from(atob(told.d), (c) => c.charCodeAt(0));
    const found = new TYPES[told.t](bytes.buffer);
    if (!told.r) return found;
    const runs = column(told.r), whole = new TYPES[told.t](runs.reduce((sum, n) => sum + n, 0));
    let at = 0;
    runs.forEach((n, k) => { whole.fill(found[k], at, at + n); at += n; });
    return whole;
  }
  const columns = (told) => Object.fromEntries(Object.entries(told || {}).map(([name, one]) => [name, column(one)]));
  const visible = (text) => text.replace(HIDDEN, (c) => "\u27e8U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "\u27e9");
  const brief = (text, most) => visible(text.length > most ? text.slice(0, Math.max(most - 1, 0)) + "\u2026" : text).replace(/\s+/g, " ");
  const number = (x, digits = 7) => (x === null || !isFinite(x) ? "unknown" : String(Number(x.toPrecision(digits)))).replace("-", "\u2212");
  function node(name, attributes, ...inside) {
    const svg = ["svg", "g", "use", "path", "circle"].includes(name);
    const element = svg ? document.createElementNS(NS, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  }
  function told(text, most) { // a text as text, whatever it holds; very long ones in part until asked for
    const body = node("pre", { dir: "ltr" }, visible(text.slice(0, most)));
    if (text.length <= most) return body;
    const more = node("button", { type: "button" }, "show all " + text.length + " characters");
    more.onclick = () => { body.textContent = visible(text); more.remove(); };
    return node("div", {}, body, more);
  }

  // ---- an episode made ready

  function prepare(run, raw) {
    const e = Object.assign({ run, raw }, columns({
      row: raw.row, start: raw.start, stop: raw.stop, end: raw.end, parent: raw.parent, text: raw.text, choice: raw.choice, replaced: raw.replaced,
    }));
    for (const name of ["metrics", "terms", "chain", "facts", "tokens"]) e[name] = columns(raw[name]);
    e.rewards = Object.entries(raw.rewards).map(([name, one]) => ({ name, at: column(one.at), value: column(one.value) }));
    e.observation = Object.entries(raw.observation).map(([name, one]) => ({ name, size: one.size, data: column(one.data) }));
    e.path = raw.path ? column(raw.path) : null;
    e.first = raw.rows.map((_, r) => bisect(e.row, 0, e.row.length, (x) => x >= r)).concat(e.row.length);
    if (raw.context) {
      const lengths = column(raw.context.length), texts = column(raw.context.text);
      let at = 0;
      e.context = Array.from(lengths, (n) => texts.subarray(at, (at += n)));
    }
    e.height = raw.rows.length * (ROW + GAP) + (e.tokens.at ? ROW + GAP : 0) + STRIP + AXIS;
    return e;
  }
  function bisect(list, low, high, past) { // the first place from low at which `past` holds
    while (low < high) {
      const middle = (low + high) >> 1;
      if (past(list[middle])) high = middle; else low = middle + 1;
    }
    return low;
  }
  const text = (e, box) => data.runs[e.run].strings[e.text[box]];
  const level = (e, box) => e.raw.rows[e.row[box]], names = (line) => [line[0], line[1], line[2] ? "lane " + (line[2] + 1) : ""].filter(Boolean).join(" ");

  // ---- colours

  function theme() {
    const style = getComputedStyle(document.documentElement), get = (name) => style.getPropertyValue(name).trim();
    colours = { ink: get("--ink"), soft: get("--soft"), hair: get("--hair"), paper: get("--paper"), mark: get("--subgoal") };
    colours.list = [0, 1, 2, 3, 4, 5].map((k) => get("--s" + k));
  }
  function rgb(hex) { return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)); }
  function luminance(c) { // relative, of WCAG 2: at 0.18 black and white stand out alike
    const [r, g, b] = c.map((v) => (v <= 10 ? v / 3295 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function ramp(anchors, levels) {
    return Array.from({ length: levels }, (_, k) => {
      const at = (k / (levels - 1)) * (anchors.length - 1), i = Math.min(Math.floor(at), anchors.length - 2);
      const a = rgb(anchors[i]), b = rgb(anchors[i + 1]);
      const c = a.map((x, j) => Math.round(x + (b[j] - x) * (at - i)));
      return { fill: "rgb(" + c.join(",") + ")", ink: luminance(c) > 0.18 ? "#000000" : "#ffffff" };
    });
  }
  function scale(values) { // of a metric: colours from its low to its high, around 0 where it has both signs
    const known = Array.from(values).filter(isFinite).sort((a, b) => a - b);
    if (!known.length) return null;
    const at = (q) => known[Math.round(q * (known.length - 1))];
    const both = known[0] < 0 && known[known.length - 1] > 0 || state.metric === "advantage";
    const most = Math.max(Math.abs(at(0.02)), Math.abs(at(0.98))) || 1;
    const low = both ? -most : at(0.02), high = both ? most : at(0.98);
    const list = ramp(both ? data.colours[dark.matches ? "dark" : "diverging"] : data.colours.sequential, 41);
    return { low, high, list, of: (x) => (isFinite(x) ? list[Math.max(0, Math.min(40, Math.round((40 * (x - low)) / (high - low || 1))))] : null) };
  }
  function painter(e) {
    const none = { fill: colours.hair, ink: colours.ink };
    const plain = (k) => ({ fill: colours.list[((k % 6) + 6) % 6], ink: colours.paper });
    if (state.metric === "choice") return (box) => (e.choice[box] < 0 ? none : plain(e.choice[box]));
    if (state.metric === "how it ended") return (box) => plain(e.end[box]);
    const values = e.metrics[state.metric] || e.terms[state.metric.replace("term: ", "")];
    e.scale = values ? scale(values) : null;
    return (box) => (e.scale && e.scale.of(values[box])) || none;
  }
  function metrics(e) {
    const found = Object.keys(e.metrics).concat(Object.keys(e.terms).map((name) => "term: " + name));
    return found.concat(e.choice.some((x) => x >= 0) ? ["choice"] : [], ["how it ended"]);
  }

  // ---- drawing: only what is visible, at most one box a pixel of a row

  const canvas = node("canvas", { tabindex: 0, role: "application", "aria-describedby": "marks", "aria-label": "flame graph of the episode; arrow keys choose a decision, Enter reads it, plus and minus zoom, Shift with an arrow pans, 0 shows all" });
  const pen = canvas.getContext("2d");
  const width = () => Math.max(canvas.clientWidth - margin - 8, 50);
  const x = (time) => margin + ((time - state.from) / (state.to - state.from)) * width();
  const time = (pixel) => state.from + ((pixel - margin) / width()) * (state.to - state.from);

  function rect(left, top, wide, high, fill) { pen.fillStyle = fill; pen.fillRect(left, top, wide, high); stats.calls++; }
  function write(words, left, top, fill, align) { pen.fillStyle = fill; pen.textAlign = align || "left"; pen.fillText(words, left, top); stats.calls++; }

  function draw() {
    waiting = false;
    const e = episode, ratio = window.devicePixelRatio || 1, wide = canvas.clientWidth;
    if (!e || !wide) return;
    margin = wide < 480 ? 66 : 104;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(e.height * ratio)) {
      canvas.style.height = e.height + "px";
      canvas.width = Math.round(wide * ratio); canvas.height = Math.round(e.height * ratio);
    }
    stats.calls = 0; stats.frames++;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, wide, e.height);
    pen.font = "11px ui-sans-serif, system-ui, sans-serif"; pen.textBaseline = "middle";
    pen.save(); pen.beginPath(); pen.rect(margin, 0, width(), e.height); pen.clip();
    e.raw.rows.forEach((_, r) => boxes(e, r));
    if (e.tokens.at) tokens(e);
    strip(e);
    pen.restore();
    if (e.tokens.at) write("tokens", margin - 8, e.raw.rows.length * (ROW + GAP) + ROW / 2, colours.ink, "right");
    e.raw.rows.forEach((line, r) => write(brief(names(line), Math.floor((margin - 8) / 6.4)), margin - 8, r * (ROW + GAP) + ROW / 2, colours.ink, "right"));
    axis(e);
  }
  function boxes(e, r) {
    const top = r * (ROW + GAP), last = e.first[r + 1];
    let box = bisect(e.stop, e.first[r], last, (t) => t > state.from);
    if (box > e.first[r] && e.stop[box - 1] === e.start[box - 1]) box--;
    while (box < last && e.start[box] < state.to) {
      const left = x(e.start[box]), right = x(e.stop[box]), wide = right - left, paint = e.paint(box);
      rect(left, top, Math.max(wide - 0.6, 0.8), ROW, paint.fill);
      mark(e.raw.ends[e.end[box]][1], right, top, wide, e.stop[box] - e.start[box]);
      if (box === state.box) { pen.strokeStyle = colours.ink; pen.lineWidth = 2; pen.strokeRect(left + 1, top + 1, Math.max(wide - 2, 1), ROW - 2); stats.calls++; }
      const words = text(e, box), room = Math.floor((Math.min(right, margin + width()) - Math.max(left, margin)) / 7) - 1;
      if (wide > 13 && room >= Math.min(3, words.length)) write(brief(words, room), Math.max(left, margin) + 4, top + ROW / 2, paint.ink);
      if (wide >= 1) box++;
      else { const next = time(left + 1); box = Math.max(box + 1, bisect(e.stop, box + 1, last, (t) => t > next)); }
    }
  }
  function mark(kind, right, top, wide, long) {
    if (kind === "timeout" && wide > 6 && long > 1) rect(right - 2.6, top, 2, ROW, colours.ink);
    const slim = Math.max(0.8, Math.min(wide - 0.6, 2));
    if (kind === "interrupted" && wide < 9) rect(right - slim, top, slim, 4, colours.mark);
    else if (kind === "interrupted") {
      pen.fillStyle = colours.mark; pen.beginPath(); pen.moveTo(right, top); pen.lineTo(right - 7, top); pen.lineTo(right, top + 9); pen.fill(); stats.calls++;
    }
    if (kind === "fault") write("\u00d7", right - 8, top + ROW / 2, colours.mark);
  }
  function tokens(e) {
    const top = e.raw.rows.length * (ROW + GAP), wide = x(1) - x(0), strings = data.runs[e.run].strings;
    if (wide < TOKEN) return write("zoom in to see them", margin + 4, top + ROW / 2, colours.soft);
    const at = e.tokens.at;
    for (let k = bisect(at, 0, at.length, (t) => t + 1 > state.from); k < at.length && at[k] < state.to; k++) {
      const paint = (e.tokenScale && e.tokenScale.of(e.tokenValue[k])) || { fill: colours.hair, ink: colours.ink };
      rect(x(at[k]), top, wide - 0.6, ROW, paint.fill);
      if (e.tokens.given[k]) rect(x(at[k]), top + ROW - 3, wide - 0.6, 3, colours.soft);
      if (wide > 14) write(brief(strings[e.tokens.text[k]], Math.floor(wide / 7)), x(at[k]) + 2, top + ROW / 2, paint.ink);
    }
  }
  function strip(e) { // rewards, paid above a line and costs below it, and times at which something else was done than was decided
    const top = e.height - AXIS - STRIP;
    if (e.rewards.some((one) => one.at.length)) rect(margin, top + 6, width(), 1, colours.hair);
    for (const one of e.rewards) ticks(one.at, (k) => rect(x(one.at[k] + 0.5) - 0.8, one.value[k] < 0 ? top + 7 : top, 1.6, 6, one.value[k] < 0 ? colours.list[1] : colours.list[2]));
    ticks(e.replaced, (k) => rect(x(e.replaced[k] + 0.5) - 1, top + 14, 2, 3, colours.mark));
    rect(x(state.cursor), 0, 1, e.height - AXIS, colours.ink);
  }
  function ticks(at, paint) {
    for (let k = bisect(at, 0, at.length, (t) => t + 1 > state.from); k < at.length && at[k] < state.to;) {
      paint(k);
      const next = time(x(at[k]) + 1);
      k = Math.max(k + 1, bisect(at, k + 1, at.length, (t) => t >= next));
    }
  }
  function axis(e) {
    const top = e.height - AXIS, span = state.to - state.from, most = Math.max(2, Math.min(10, width() / 54)), ten = 10 ** Math.floor(Math.log10(span / most)), step = ten * [1, 2, 5, 10].find((m) => span / (ten * m) <= most);
    write(e.raw.unit + "s", margin - 8, top + 12, colours.soft, "right");
    for (let t = Math.ceil(state.from / step) * step; t <= state.to; t += step) {
      rect(x(t), top, 1, 4, colours.soft);
      const words = String(Number(t.toPrecision(6)));
      write(words, Math.min(x(t), margin + width() + 8 - 3.3 * words.length), top + 13, colours.soft, "center");
    }
  }
  function soon() { if (!waiting) { waiting = true; requestAnimationFrame(draw); } }

  // ---- moving about

  function look(from, to) {
    const whole = episode.raw.span, least = Math.min(episode.raw.unit === "token" ? 8 : 4, whole), span = Math.max(least, Math.min(to - from, whole));
    state.from = Math.max(0, Math.min(from + (to - from - span) / 2, whole - span));
    state.to = state.from + span;
    soon();
  }
  const pan = (share) => look(state.from + share * (state.to - state.from), state.to + share * (state.to - state.from));
  function zoom(factor, around) {
    look(around - (around - state.from) * factor, around + (state.to - around) * factor);
  }
  function under(event) {
    const box = canvas.getBoundingClientRect(), r = Math.floor((event.clientY - box.top) / (ROW + GAP)), t = time(event.clientX - box.left), e = episode;
    if (event.clientX - box.left < margin || r < 0) return { t: null, box: -1, token: -1 };
    if (r >= e.raw.rows.length) {
      const lies = e.tokens.at && r === e.raw.rows.length && x(1) - x(0) >= TOKEN;
      const k = lies ? bisect(e.tokens.at, 0, e.tokens.at.length, (s) => s + 1 > t) : -1;
      return { t, box: -1, token: lies && k < e.tokens.at.length && e.tokens.at[k] <= t ? k : -1 };
    }
    const near = time(event.clientX - box.left + 1);
    const found = bisect(e.stop, e.first[r], e.first[r + 1], (s) => s > t);
    return { t, token: -1, box: found < e.first[r + 1] && e.start[found] <= near ? found : -1 };
  }

  const tip = node("div", { class: "tip", hidden: "" }), live = node("div", { class: "unseen", "aria-live": "polite" });
  let drag = null;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = canvas.getBoundingClientRect();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan(0.002 * (event.deltaX || event.deltaY));
    else zoom(Math.exp(0.002 * event.deltaY), time(event.clientX - box.left));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    drag = { at: event.clientX, from: state.from, to: state.to, moved: false };
    try { canvas.setPointerCapture(event.pointerId); } catch (error) { drag.moved = false; }
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && Math.abs(event.clientX - drag.at) > 3) drag.moved = true;
    if (drag && drag.moved) {
      const shift = ((drag.at - event.clientX) / width()) * (drag.to - drag.from);
      return look(drag.from + shift, drag.to + shift);
    }
    hover(event);
  });
  canvas.addEventListener("pointerup", (event) => {
    const clicked = drag && !drag.moved;
    drag = null;
    if (clicked) choose(under(event).box);
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  function hover(event) {
    const found = under(event), e = episode;
    if (found.t !== null) cursor(found.t);
    tip.hidden = found.box < 0 && found.token < 0;
    if (tip.hidden) return;
    if (found.box >= 0) tip.textContent = summary(e, found.box);
    else {
      const known = Object.entries(e.tokens).filter(([name]) => !["at", "text", "given"].includes(name)).map(([name, list]) => name + " " + number(list[found.token]));
      tip.textContent = "token \u201c" + brief(data.runs[e.run].strings[e.tokens.text[found.token]], 60) + "\u201d" + (e.tokens.given[found.token] ? ", not chosen by the model" : "") + (known.length ? "; " + known.join("; ") : "");
    }
    const box = stage.getBoundingClientRect();
    tip.style.left = Math.max(0, Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth)) + "px";
    tip.style.top = event.clientY - box.top + 16 + "px";
  }
  function summary(e, box) {
    const shown = e.metrics.advantage ? "; advantage " + number(e.metrics.advantage[box]) : "";
    return names(level(e, box)) + ": " + brief(text(e, box), 160) + "; " + e.raw.unit + "s " + number(e.start[box]) + " to " + number(e.stop[box]) + "; ended by: " + e.raw.ends[e.end[box]][0] + shown;
  }
  canvas.addEventListener("keydown", (event) => {
    const e = episode;
    const keys = {
      "+": () => zoom(0.7, middle()), "=": () => zoom(0.7, middle()), "-": () => zoom(1 / 0.7, middle()), 0: () => look(0, e.raw.span), Home: () => look(0, e.raw.span),
      f: () => state.box >= 0 && look(e.start[state.box] - 0.2 * (e.stop[state.box] - e.start[state.box]), e.stop[state.box] + 0.2 * (e.stop[state.box] - e.start[state.box])),
      Escape: () => choose(-1), Enter: () => state.box >= 0 && panel.focus(),
      ArrowLeft: () => (event.shiftKey ? pan(-0.2) : step(-1)), ArrowRight: () => (event.shiftKey ? pan(0.2) : step(1)),
      ArrowUp: () => climb(-1), ArrowDown: () => climb(1),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  function step(by) {
    if (state.box < 0) return choose(bisect(episode.stop, 0, episode.first[1], (t) => t > state.from) % Math.max(episode.row.length, 1));
    const next = state.box + by;
    if (next >= 0 && next < episode.row.length && episode.row[next] === episode.row[state.box]) choose(next);
  }
  function climb(by) {
    if (state.box < 0) return step(1);
    const e = episode, at = e.start[state.box];
    for (let r = e.row[state.box] + by; r >= 0 && r < e.raw.rows.length; r += by) {
      const found = bisect(e.stop, e.first[r], e.first[r + 1], (t) => t > at);
      if (found < e.first[r + 1]) return choose(found);
    }
  }

  // ---- the panel of a decision

  const panel = node("div", { class: "decision", tabindex: -1, role: "region", "aria-label": "the chosen decision" });
  panel.addEventListener("keydown", (event) => { if (event.key === "Escape") canvas.focus(); });
  function table(rows) { return node("table", {}, node("tbody", {}, ...rows.map(([name, value]) => node("tr", {}, node("th", { scope: "row" }, visible(name)), node("td", {}, value))))); }
  function credit(e, box) {
    const shown = e.metrics.advantage ? e.metrics.advantage[box] : NaN, rows = [];
    const why = e.raw.why[level(e, box)[1]] || e.raw.why[""] || "";
    if (e.chain.td_error && isFinite(e.chain.td_error[box])) {
      let weight = 1, sum = 0, k = box;
      for (let n = 0; n < 8; n++) {
        const part = weight * e.chain.td_error[k];
        rows.push([n ? "TD error " + n + " later, times " + number(weight, 3) : "TD error of this decision", number(part)]);
        sum += part; weight *= e.chain.decay[k];
        if (!weight || e.row[++k] !== e.row[box]) { weight = 0; break; }
      }
      if (weight) rows.push(["all later TD errors", number(shown - sum)]);
      for (const name of Object.keys(e.chain)) if (!["td_error", "decay"].includes(name)) rows.push([name, number(e.chain[name][box])]);
    }
    for (const [name, list] of Object.entries(e.terms)) rows.push(["term " + name, number(list[box])]);
    if (e.metrics.advantage) rows.unshift(["advantage", isFinite(shown) ? number(shown) : "unknown"]);
    for (const [name, list] of Object.entries(e.facts)) rows.push([name, number(list[box])]);
    return [node("h4", {}, "How its advantage came about"), node("p", {}, visible(why)), rows.length ? table(rows) : ""];
  }
  function rewards(e, box) {
    const rows = e.rewards.map((one) => {
      let sum = 0;
      for (let k = bisect(one.at, 0, one.at.length, (t) => t >= e.start[box]); k < one.at.length && one.at[k] < e.stop[box]; k++) sum += one.value[k];
      return [one.name, number(sum)];
    });
    return rows.length ? [node("h4", {}, "Rewards while it held"), table(rows)] : [];
  }
  function observed(e, box) {
    const at = Math.round(e.start[box]), strings = data.runs[e.run].strings;
    const rows = e.observation.filter((one) => (at + 1) * one.size <= one.data.length).map((one) => [one.name, Array.from(one.data.subarray(at * one.size, (at + 1) * one.size), (v) => String(Number(v.toPrecision(4)))).join(", ")]);
    const found = rows.length ? [node("h4", {}, "Observation"), table(rows)] : [];
    if (e.context && e.context[box].length) {
      const whole = Array.from(e.context[box], (k) => strings[k]).join("");
      found.push(node("h4", {}, "Context, " + whole.length + " characters"), told(whole, LONG));
    }
    return found;
  }
  function choose(box, quiet) {
    const e = episode;
    state.box = box;
    if (box < 0) { panel.replaceChildren(node("p", {}, "Choose a decision in the graph.")); remember(); return soon(); }
    if (e.stop[box] < state.from || e.start[box] > state.to) look(e.start[box] - (state.to - state.from) / 2, e.start[box] + (state.to - state.from) / 2);
    const known = Object.entries(e.metrics).filter(([name]) => name !== "advantage").map(([name, list]) => [name, number(list[box])]);
    const above = e.parent[box] >= 0 ? node("button", { type: "button" }, "the decision above it") : "";
    if (above) above.onclick = () => choose(e.parent[box]);
    panel.replaceChildren(
      node("h3", {}, visible(names(level(e, box))), ", ", e.raw.unit + "s " + number(e.start[box]) + " to " + number(e.stop[box])),
      node("div", { class: "two" },
        node("div", {}, node("h4", {}, "Decision"), told(text(e, box), LONG), node("p", {}, "Ended by: " + e.raw.ends[e.end[box]][0] + ". ", above), known.length ? table(known) : "", ...rewards(e, box)),
        node("div", {}, ...credit(e, box), ...observed(e, box))));
    live.textContent = quiet ? "" : summary(e, box);
    cursor(e.start[box]);
    remember();
    soon();
  }

  // ---- the world beside it

  const world = node("div", { class: "world" });
  let follow = () => {};
  function cursor(t) { state.cursor = Math.max(0, Math.min(t, episode.raw.span)); follow(state.cursor); soon(); }
  function plan(e, board) {
    const points = Array.from({ length: e.path.length / 2 }, (_, k) => [e.path[2 * k], e.path[2 * k + 1]]);
    const line = (list) => (list.length ? "M" + list.map((p) => p[0].toFixed(1) + " " + p[1].toFixed(1)).join("L") : "M0 0");
    const done = node("path", { class: "trail" }), agent = node("circle", { class: "agent", r: 4 }), aim = node("path", { class: "aim", d: "M0 -4.6L4.6 0L0 4.6L-4.6 0Z" });
    world.replaceChildren(node("svg", { viewBox: board.box.join(" "), class: "maze", role: "img", "aria-label": "where the agent is at the cursor" },
      node("use", { href: "#" + board.id }), node("path", { class: "trail", d: line(points), opacity: 0.3 }), done, aim, agent));
    follow = (t) => {
      const at = Math.min(Math.floor(t), points.length - 1), goal = e.raw.subgoals.filter((s) => s[0] <= t).pop();
      done.setAttribute("d", line(points.slice(0, at + 1)));
      agent.setAttribute("cx", points[at][0]); agent.setAttribute("cy", points[at][1]);
      aim.style.display = goal ? "" : "none";
      if (goal) aim.setAttribute("transform", "translate(" + goal[1] + " " + goal[2] + ")");
    };
  }
  function transcript(e) {
    const strings = data.runs[e.run].strings, roles = [...new Set(e.raw.said.map((one) => one[0]))];
    const list = node("ol", { class: "said", tabindex: 0, "aria-label": "transcript" }, ...e.raw.said.map(([role, words, box]) => {
      const pick = node("button", { type: "button", class: "s" + (roles.indexOf(role) % 6) }, visible(role));
      pick.onclick = () => choose(box);
      return node("li", {}, pick, told(strings[words], 1200));
    }));
    world.replaceChildren(list);
    follow = (t) => {
      let last = -1;
      e.raw.said.forEach(([, , box], k) => { const current = e.start[box] <= t && t < e.stop[box]; list.children[k].toggleAttribute("data-now", current); if (current && last < 0) last = k; });
      if (last >= 0 && !list.matches(":hover, :focus-within")) list.scrollTop = list.children[last].offsetTop - list.offsetTop - 20;
    };
  }

  // ---- what the marks mean

  const legend = node("ul", { class: "legend", id: "marks", "aria-label": "marks" });
  function explain(e) { // the marks of this episode, each beside what it stands for
    const shapes = { timeout: ["M15 0h3v14h-3z", "ink"], interrupted: ["M18 0h-7l7 9z", "mark"], fault: ["M9 4l1.4-1.4 2.6 2.6 2.6-2.6 1.4 1.4-2.6 2.6 2.6 2.6-1.4 1.4-2.6-2.6-2.6 2.6-1.4-1.4 2.6-2.6z", "mark"] };
    const item = (words, box, [d, role]) => node("li", {}, node("svg", { viewBox: "0 0 18 14", "aria-hidden": "true" }, box ? node("path", { d: "M0 0h18v14h-18z", class: "box" }) : "", node("path", { d, class: role })), words);
    const ended = e.raw.ends.filter((_, k) => e.end.includes(k)), kinds = [...new Set(ended.map((end) => end[1]))].filter((kind) => shapes[kind]);
    const paid = (sign) => e.rewards.some((one) => one.value.some((v) => Math.sign(v) === sign));
    legend.replaceChildren(...kinds.map((kind) => item(ended.filter((end) => end[1] === kind).map((end) => end[0]).join(" or "), true, shapes[kind])),
      ...(paid(1) ? [item("reward", false, ["M7 0h3v7h-3z", "paid"])] : []), ...(paid(-1) ? [item("negative reward", false, ["M7 7h3v7h-3z", "cost"])] : []),
      ...(e.replaced.length ? [item("done otherwise than decided", false, ["M7 5h4v4h-4z", "mark"])] : []));
  }

  // ---- choosing an episode

  const runs = node("select", { "aria-label": "run" }), order = node("select", { "aria-label": "sorted by" }), colour = node("select", { "aria-label": "colour" });
  const episodes = node("select", { "aria-label": "episode", size: 6 }), bar = node("span", { class: "bar-line" });
  const stage = node("div", { class: "stage" }, canvas, tip, legend);
  const middle = () => (state.from + state.to) / 2;
  const buttons = [["+", "zoom in", () => zoom(0.5, middle())], ["\u2212", "zoom out", () => zoom(2, middle())], ["\u2190", "earlier", () => pan(-0.4)],
    ["\u2192", "later", () => pan(0.4)], ["all", "show all", () => look(0, episode.raw.span)]]
    .map(([sign, name, act]) => Object.assign(node("button", { type: "button", "aria-label": name, title: name }, sign), { onclick: act }));
  function option(value, words) { return node("option", { value }, visible(words)); }
  function list() {
    const raws = data.runs[state.run].episodes.map((raw, k) => [raw, k]), by = { return: (e) => -(e.earned ?? -Infinity), length: (e) => -e.length, recorded: () => 0 }[state.sort];
    raws.sort((a, b) => by(a[0]) - by(b[0]) || a[1] - b[1]);
    episodes.size = Math.max(2, Math.min(6, raws.length));
    episodes.replaceChildren(...raws.map(([e, k]) => option(k, [(/^\d/.test(e.key) ? "episode " : "") + e.key, e.title, "return " + number(e.earned), e.length + (e.unit === "token" ? " calls" : " steps"), e.success === null ? "" : e.success ? "success" : "no success"].filter(Boolean).join(" \u00b7 "))));
  }
  function open(run, k, box) {
    state.run = run;
    runs.value = run; list(); episodes.value = k;
    episode = prepare(run, data.runs[run].episodes[k]);
    const known = metrics(episode);
    if (!known.includes(state.metric)) state.metric = episode.metrics.advantage && episode.metrics.advantage.some(isFinite) ? "advantage" : known.includes("choice") ? "choice" : "how it ended";
    colour.replaceChildren(...known.map((name) => option(name, name)));
    colour.value = state.metric;
    paint();
    explain(episode);
    state.from = 0; state.to = episode.raw.span; state.cursor = 0;
    const board = data.runs[run].plan;
    world.replaceChildren(); follow = () => {};
    if (episode.raw.said.length) transcript(episode); else if (episode.path && board) plan(episode, board);
    root.classList.toggle("alone", !world.firstChild);
    choose(box >= 0 && box < episode.row.length ? box : -1, true);
    look(0, episode.raw.span);
    cursor(state.cursor);
  }
  function paint() {
    episode.scale = null;
    episode.paint = painter(episode);
    if (episode.row.length) episode.paint(0);
    const parts = Object.entries(episode.tokens).filter(([name]) => name.startsWith("term ")).map((one) => one[1]);
    episode.tokenValue = parts.length ? Float64Array.from(parts[0], (_, k) => parts.reduce((sum, part) => sum + part[k], 0)) : episode.tokens["log-probability"];
    episode.tokenScale = episode.tokenValue ? scale(episode.tokenValue) : null;
    const s = episode.scale, gradient = s ? node("i", { style: "background:linear-gradient(90deg," + s.list.map((c) => c.fill).join(",") + ")" }) : "";
    bar.replaceChildren(...(s ? [number(s.low, 2), gradient, number(s.high, 2)] : []));
    soon();
  }

  // ---- the address

  let own = "";
  function remember() {
    if (!remembering) return;
    const raw = episode.raw;
    own = "#" + new URLSearchParams({ run: state.run, episode: raw.key, ...(state.box >= 0 ? { decision: state.box } : {}) });
    try { history.replaceState(null, "", own); } catch (error) { location.hash = own; }
  }
  function recall() {
    const asked = new URLSearchParams(location.hash.slice(1)), run = Number(asked.get("run"));
    if (!asked.has("episode") || !data.runs[run]) return false;
    const k = data.runs[run].episodes.findIndex((one) => one.key === asked.get("episode"));
    if (k < 0) return false;
    open(run, k, asked.has("decision") ? Number(asked.get("decision")) : -1);
    return true;
  }
  let remembering = false;
  window.addEventListener("hashchange", () => { if (location.hash !== own) recall(); });

  runs.append(...data.runs.map((run, k) => option(k, run.label)));
  order.append(option("recorded", "as recorded"), option("return", "highest return first"), option("length", "longest first"));
  runs.onchange = () => open(Number(runs.value), 0, -1);
  order.onchange = () => { state.sort = order.value; const kept = episodes.value; list(); episodes.value = kept; };
  episodes.onchange = () => open(state.run, Number(episodes.value), -1);
  colour.onchange = () => { state.metric = colour.value; paint(); };
  root.append(
    node("div", { class: "controls" }, node("label", {}, "run ", runs), node("label", {}, "order ", order), node("label", {}, "colour ", colour), bar, node("div", { class: "chips", role: "group", "aria-label": "view" }, ...buttons)),
    episodes, node("div", { class: "beside" }, node("div", { class: "graph" }, stage, live, panel), world));
  theme();
  root.hidden = false;
  dark.addEventListener("change", () => { theme(); paint(); });
  new ResizeObserver(soon).observe(canvas);
  if (recall()) root.scrollIntoView();
  else open(0, 0, -1);
  remembering = true;
  const place = (box) => [(x(Math.max(episode.start[box], state.from)) + x(Math.min(episode.stop[box], state.to))) / 2, (episode.row[box] + 0.5) * (ROW + GAP)];
  root.explorer = { state, stats, look, pan, zoom, choose, draw, scale, place, time, get episode() { return episode; } };
})();
