"use strict";
(function () {
  const root = document.getElementById("player"), blob = document.getElementById("episodes");
  if (!root || !blob) return;
  const data = JSON.parse(blob.textContent);
  const NS = document.querySelector("svg").namespaceURI;
  const state = { task: data.groups[0].tasks[0], seed: 0, episode: 0, step: 0, playing: false };

  function node(name, attributes, ...inside) {
    const svg = ["svg", "g", "use", "path", "circle", "line"].includes(name);
    const element = svg ? document.createElementNS(NS, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  }
  function chips(label, names, chosen, choose) {
    const buttons = names.map((name, index) => {
      const button = node("button", { type: "button", "aria-pressed": String(index === chosen) }, String(name));
      button.onclick = () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        choose(index);
      };
      return button;
    });
    const box = node("div", { class: "chips", role: "group", "aria-label": label || "ground" });
    if (label) box.append(node("span", {}, label));
    box.append(...buttons);
    return box;
  }
  function unpack(episode) {
    const points = [];
    let x = 0, y = 0;
    for (let i = 0; i < episode.path.length; i += 2) {
      x += episode.path[i]; y += episode.path[i + 1];
      points.push([x / 10, y / 10]);
    }
    return points;
  }
  const minus = (value) => String(value).replace("-", "\u2212");
  const line = (points) => (points.length ? "M" + points.map((p) => p[0].toFixed(1) + " " + p[1].toFixed(1)).join("L") : "M0 0");

  class Panel {
    constructor(group) {
      this.group = group;
      this.ground = 0;
      this.said = node("span", { class: "said" });
      const use = (id) => node("use", { href: id });
      this.field = use("");
      this.ends = node("g", {});
      this.whole = node("path", { class: "casing" });
      this.rest = node("path", { class: "over", opacity: "0.35" });
      this.done = node("path", { class: "over" });
      this.now = node("path", { class: "now" });
      this.aim = node("path", { class: "aim", d: "M0 -4.6L4.6 0L0 4.6L-4.6 0Z" });
      this.agent = node("circle", { class: "agent", r: 4 });
      this.svg = node("svg", { viewBox: group.box.join(" "), class: "maze", role: "img", "aria-label": group.label },
        use("#floor" + group.maze), this.field, use("#walls" + group.maze), this.whole, this.rest, this.done, this.ends, this.now, this.aim, this.agent);
      this.bar = node("div", { class: "bar-line" });
      this.chips = node("div", {});
      this.traces = node("div", {});
      this.element = node("div", { class: "panel s" + group.style },
        node("div", { class: "panel-head" }, node("b", { class: "name-of" }, group.label), this.said),
        this.svg, this.chips, this.bar, this.traces);
    }
    load() {
      const seed = this.group.seeds[Math.min(state.seed, this.group.seeds.length - 1)];
      const episodes = seed.tasks[state.task] || [];
      this.seed = seed;
      this.episode = episodes[Math.min(state.episode, episodes.length - 1)];
      this.points = this.episode ? unpack(this.episode) : [];
      this.ends.innerHTML = this.episode ? this.episode.ends : "";
      this.whole.setAttribute("d", line(this.points));
      this.rest.setAttribute("d", line(this.points));
      const names = seed.fields.map((field) => field[0]).concat("plain");
      this.ground = Math.min(this.ground, names.length - 1);
      this.chips.replaceChildren(names.length > 1 ? chips("ground", names, this.ground, (i) => { this.ground = i; this.paint(); }) : "");
      this.paint();
      this.traces.replaceChildren(...Object.entries(this.episode ? this.episode.values : {}).map(([name, values]) => this.trace(name, values)));
    }
    paint() {
      const field = this.seed.fields[this.ground];
      this.svg.classList.toggle("plain", !field);
      if (field) this.field.setAttribute("href", "#" + this.seed.prefix + state.task + "-" + this.ground);
      else this.field.setAttribute("href", "");
      const stroke = field ? "" : "var(--c)";
      this.done.style.stroke = this.rest.style.stroke = stroke;
      this.whole.style.display = field ? "" : "none";
      const ramp = node("i", { style: "background:linear-gradient(90deg," + data.ramp.join(",") + ")" });
      this.bar.replaceChildren(...(field ? [minus(field[1]), ramp, minus(field[2]), node("span", {}, field[0] + "(s, goal)")] : []));
    }
    trace(name, values) {
      const points = values.map((v, i) => [(300 * i) / Math.max(values.length - 1, 1), 38 - (v * 34) / 100]);
      return node("div", { class: "trace cell" }, name + " along the path",
        node("svg", { viewBox: "0 0 300 40", role: "img", "aria-label": name + " along the path" },
          node("path", { d: line(points) }), node("line", { class: "cursor", y1: 0, y2: 40 })));
    }
    get length() { return Math.max(this.points.length - 1, 0); }
    draw(step) {
      if (!this.episode) { this.said.textContent = "no episode recorded"; return; }
      const at = Math.min(step, this.length), here = this.points[at];
      this.done.setAttribute("d", line(this.points.slice(0, at + 1)));
      this.agent.setAttribute("cx", here[0]); this.agent.setAttribute("cy", here[1]);
      const subgoal = this.episode.subgoals.filter((s) => s[0] <= at).pop();
      const shown = subgoal ? "" : "none";
      this.aim.style.display = this.now.style.display = shown;
      if (subgoal) {
        const [x, y] = [subgoal[1] / 10, subgoal[2] / 10];
        this.aim.setAttribute("transform", `translate(${x} ${y})`);
        this.now.setAttribute("d", line([here, [x, y]]));
      }
      const over = at === this.length;
      this.said.textContent = over ? (this.episode.won ? "reached the goal at step " : "did not arrive, step ") + this.length
        : subgoal ? "subgoal of step " + subgoal[0] : "";
      for (const cursor of this.traces.querySelectorAll(".cursor")) {
        const x = (300 * at) / Math.max(this.length - 1, 1);
        cursor.setAttribute("x1", Math.min(x, 300)); cursor.setAttribute("x2", Math.min(x, 300));
      }
    }
  }

  const panels = data.groups.map((group) => new Panel(group));
  const longest = (of) => Math.max(1, ...panels.map(of));
  const slider = node("input", { type: "range", min: 0, value: 0, "aria-label": "step" });
  const output = node("output", {});
  const play = node("button", { type: "button" }, "Play");
  const top = node("div", { class: "controls" }), bottom = node("div", { class: "controls" });
  bottom.style.margin = "14px 0 0";
  bottom.append(node("div", { class: "time" }, play, slider, output));

  function controls() {
    const tasks = data.groups[0].tasks;
    const seeds = data.groups.reduce((most, g) => (g.seeds.length > most.length ? g.seeds : most), []);
    const episodes = longest((p) => Math.max(...p.group.seeds.map((s) => (s.tasks[state.task] || []).length)));
    top.replaceChildren(chips("task", tasks.map((t) => t.replace("task", "")), tasks.indexOf(state.task), (i) => { state.task = tasks[i]; load(); }));
    if (seeds.length > 1) top.append(chips("seed", seeds.map((s) => s.seed), state.seed, (i) => { state.seed = i; load(); }));
    if (episodes > 1) top.append(chips("episode", [...Array(episodes).keys()].map((i) => i + 1), Math.min(state.episode, episodes - 1), (i) => { state.episode = i; load(); }));
  }
  function load() {
    panels.forEach((panel) => panel.load());
    slider.max = longest((panel) => panel.length);
    controls();
    go(Math.round(0.4 * Math.min(...panels.map((panel) => panel.length || Infinity), slider.max)));
  }
  function go(step) {
    state.step = Math.max(0, Math.min(step, Number(slider.max)));
    slider.value = state.step;
    output.textContent = "step " + Math.round(state.step);
    panels.forEach((panel) => panel.draw(Math.round(state.step)));
  }
  function frame() {
    if (!state.playing) return;
    const speed = Math.max(Number(slider.max) / 480, 0.25);
    go(state.step + speed);
    if (state.step >= Number(slider.max)) stop(); else requestAnimationFrame(frame);
  }
  function stop() { state.playing = false; play.textContent = "Play"; }
  play.onclick = () => {
    if (state.playing) return stop();
    if (state.step >= Number(slider.max)) go(0);
    state.playing = true; play.textContent = "Pause";
    requestAnimationFrame(frame);
  };
  slider.oninput = () => { stop(); go(Number(slider.value)); };
  for (const button of document.querySelectorAll(".pick")) {
    button.onclick = () => {
      state.task = button.dataset.task; state.episode = 0; load();
      root.scrollIntoView({ behavior: "smooth", block: "nearest" });
    };
  }
  root.append(top, node("div", { class: "panels" }, ...panels.map((panel) => panel.element)), bottom);
  root.hidden = false;
  load();
})();
