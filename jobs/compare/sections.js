// The report's sections from the statements down to the curves, each drawn once.
function headline() {
  const runs = data.runs.length > 1 ? ` Runs: ${data.runs.join(", ")}.` : "";
  byId("about").textContent = `Intervals are at ${100 * data.confidence} %. Of one run they come from resampling tasks; `
    + `from three seeds of a method on they are over seeds and tasks.${runs}`;
  for (const line of data.statements) {
    const kind = line.startsWith("Established") ? "yes" : line.startsWith("Not") ? "no" : null;
    const [, start, rest] = /^((?:Established|Not established|Nothing can be established|Not like for like):)?([^]*)$/.exec(line);
    byId("statements").append(make("li", { class: kind }, start ? make("strong", {}, start) : "", rest));
  }
  const names = ["greedy", ...Object.keys(Object.values(data.entries[0].models)[0]).filter((name) => /^pass@/.test(name))];
  const several = data.entries.some((entry) => Object.values(entry.models).some((values) => values.runs));
  byId("table").append(table({ names: ["Benchmark", "Mode", "Model", "Tasks", ...(several ? ["Runs", "sd of runs"] : []), ...names.map((n) => n === "greedy" ? "greedy pass@1" : n)], text: 3 },
    data.entries.flatMap((entry) => Object.entries(entry.models).map(([model, values]) =>
      [entry.view, entry.mode, model, String(entry.tasks),
        ...(several ? [String(values.runs?.number ?? 1), values.runs ? percent(values.runs.sd) : "–"] : []),
        ...names.map((name) => values[name] ? ends(values[name]) : "–")]))));
  const count = (x) => Number.isInteger(x) ? String(x) : x.toFixed(1);
  byId("pairs").append(table(
    { names: ["Benchmark", "Mode", "Pair", "Over", "Difference", "p", "after Holm", "Established", "Won", "Lost", "p of greedy"], text: 4 },
    data.entries.flatMap((entry) => entry.pairs.map((pair) => [entry.view, entry.mode, `${pair.old} → ${pair.new}`,
      { weights: "tasks", methods: "seeds and tasks", two: "tasks (two seeds)", few: "too few tasks" }[pair.over],
      ends(pair.difference, signed), pValue(pair.p), pValue(pair.p_holm),
      make("td", { class: pair.established ? "yes" : null }, pair.established ? "yes" : "no"),
      count(pair.greedy.won), count(pair.greedy.lost), pValue(pair.greedy.p)]))));
}

function bars(entry) {
  const names = Object.keys(entry.models), left = 110, width = 320, row = 30, bottom = names.length * row + 8;
  const x = (value) => left + width * value;
  const svg = canvas(left + width + 60, bottom + 24, `Mean pass@1 on ${entry.view}, ${entry.mode}`);
  for (let tick = 0; tick <= 100; tick += 25) {
    svg.append(draw("path", { d: `M${x(tick / 100)} 4V${bottom}`, class: "axis" }),
      draw("text", { x: x(tick / 100), y: bottom + 16, "text-anchor": "middle", class: "soft" }, tick));
  }
  names.forEach((name, i) => {
    const { mean, low, high } = entry.models[name]["pass@1"], y = 8 + i * row, middle = y + 10;
    svg.append(draw("text", { x: left - 8, y: middle + 4, "text-anchor": "end" }, clip(name, 15)),
      draw("rect", { x: left, y, width: width * mean, height: 20, rx: 2, class: "bar" }),
      draw("path", { class: "interval", d: `M${x(low)} ${middle - 5}v10m0 -5H${x(high)}m0 -5v10` }),
      draw("text", { x: x(Math.max(mean, high)) + 6, y: middle + 4 }, percent(mean)));
  });
  return make("div", {}, make("h3", {}, `${entry.view}, ${entry.mode}`), svg);
}

function forest(entry) {
  if (!entry.pairs.length) return null;
  const left = 130, width = 300, row = 26, bottom = entry.pairs.length * row + 6;
  const most = Math.max(0.02, ...entry.pairs.flatMap(({ difference: d }) => [Math.abs(d.low), Math.abs(d.high)]));
  const x = (value) => left + width * (0.5 + value / most / 2);
  const svg = canvas(left + width + 60, bottom + 24, `Differences on ${entry.view}, ${entry.mode}`);
  for (const tick of [-most, 0, most]) {
    svg.append(draw("path", { d: `M${x(tick)} 2V${bottom}`, class: "axis", "stroke-width": tick ? 1 : 2 }),
      draw("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle", class: "soft" }, tick ? signed(tick) : "0"));
  }
  entry.pairs.forEach((pair, i) => {
    const { mean, low, high } = pair.difference, y = 15 + i * row;
    const paint = !pair.established ? "var(--soft)" : mean > 0 ? "var(--green)" : "var(--red)";
    svg.append(draw("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, `${clip(pair.old, 9)} → ${clip(pair.new, 9)}`),
      draw("path", { d: `M${x(low)} ${y}H${x(high)}`, stroke: paint, "stroke-width": 2.5, class: "difference" }),
      draw("circle", { cx: x(mean), cy: y, r: 4.5, fill: paint }),
      draw("text", { x: left + width + 8, y: y + 4 }, signed(mean)));
  });
  return make("div", {}, make("h3", {}, `${entry.view}, ${entry.mode}`), svg);
}

function power(points = "2") {
  const rows = data.entries.flatMap((entry) => entry.pairs.filter((pair) => pair.needed).map((pair) => [entry, pair]));
  byId("power").hidden = !rows.length;
  if (!rows.length) return;
  byId("points").replaceChildren(select("A difference of", Object.keys(rows[0][1].needed), points, power), "points");
  const cell = (value, now) => value === null ? "–" : `${value}${now === undefined ? "" : ` (now ${now})`}`;
  byId("needed").replaceChildren(table({ names: ["Benchmark", "Mode", "Pair", "seen now, points", "seeds", "samples a task", "tasks"], text: 3 },
    rows.map(([entry, pair]) => [entry.view, entry.mode, `${pair.old} → ${pair.new}`, percent(pair.detectable),
      pair.over === "methods" ? cell(pair.needed[points].seeds, pair.scatter.seeds) : "of these weights",
      cell(pair.needed[points].samples, pair.scatter.samples_a_task), cell(pair.needed[points].tasks, pair.tasks)])));
}

function failures() {
  const parts = ["greedy", "sampled"];
  const shares = data.entries.flatMap((entry) => Object.values(entry.failures).flatMap((model) => parts.flatMap((part) => Object.entries(model[part]))));
  const sums = new Map();
  for (const [kind, share] of shares) sums.set(kind, (sums.get(kind) ?? 0) + share);
  sums.delete("passed");
  const kinds = ["passed", ...[...sums].sort((a, b) => b[1] - a[1]).map(([kind]) => kind)];
  byId("kinds").append(...kinds.map((kind, i) => make("span", {}, make("i", { style: `background: ${colour(i)}` }), kind.replaceAll("_", " "))));
  for (const entry of data.entries) {
    const rows = Object.entries(entry.failures).flatMap(([model, found]) => parts.filter((part) => Object.keys(found[part]).length).map((part) => [`${clip(model, 12)} ${part}`, found[part]]));
    const left = 140, width = 320, svg = canvas(left + width + 8, rows.length * 22 + 6, `How answers fail on ${entry.view}, ${entry.mode}`);
    rows.forEach(([label, found], i) => {
      const y = 4 + i * 22;
      let start = left;
      svg.append(draw("text", { x: left - 8, y: y + 13, "text-anchor": "end" }, label));
      kinds.forEach((kind, k) => {
        const share = found[kind] ?? 0;
        if (!share) return;
        const piece = draw("rect", { x: start, y, width: width * share, height: 16, fill: colour(k), class: "share" });
        piece.append(draw("title", {}, `${label}: ${kind.replaceAll("_", " ")} ${percent(share)} %`));
        svg.append(piece);
        start += width * share;
      });
    });
    byId("fails").append(make("div", {}, make("h3", {}, `${entry.view}, ${entry.mode}`), svg));
  }
}

function groups() {
  for (const entry of data.entries) {
    for (const [by, rows] of Object.entries(entry.groups)) {
      const models = Object.keys(entry.models);
      byId("bygroup").append(make("div", {}, make("h3", {}, `${entry.view}, ${entry.mode}, by ${by}`), make("div", { class: "scroll grid" },
        table({ names: [by, "tasks", ...models], text: 1 }, rows.map((group) => [clip(group.name, 60), String(group.tasks), ...models.map((model) => {
          const rate = group.models[model];
          return make("td", { class: group.tasks < 6 ? "few" : null, style: `background: rgba(var(--rate), ${(0.5 * rate.mean).toFixed(2)})` }, ends(rate));
        })])))));
    }
  }
  byId("groups").hidden = !byId("bygroup").childElementCount;
}

function span(numbers) {
  const low = numbers.reduce((a, b) => Math.min(a, b)), high = numbers.reduce((a, b) => Math.max(a, b));
  if (low !== high) return [low, high];
  const margin = Math.max(1, Math.abs(low) / 2);
  return [low - margin, high + margin];
}

function curve(title, lines) {
  // lines: [label, steps, values]; a value that is null is a gap. Halves are taken before the difference, which could overflow.
  const points = lines.flatMap(([, steps, values]) => steps.map((step, i) => [step, values[i]])).filter(([, value]) => value !== null);
  if (!points.length) return null;
  const width = 300, height = 120, left = 58, top = 8;
  const share = (v, [low, high]) => (v / 2 - low / 2) / (high / 2 - low / 2);
  const xs = span(points.map((p) => p[0])), ys = span(points.map((p) => p[1]));
  const x = (v) => (left + width * share(v, xs)).toFixed(1), y = (v) => (top + height - height * share(v, ys)).toFixed(1);
  const svg = canvas(left + width + 12, height + 34, title);
  const short = (v) => String(Number(v.toPrecision(3)));
  svg.append(draw("path", { d: `M${left} ${top}V${top + height}H${left + width}`, class: "axis" }),
    draw("text", { x: left - 6, y: top + 10, "text-anchor": "end", class: "soft" }, short(ys[1])),
    draw("text", { x: left - 6, y: top + height, "text-anchor": "end", class: "soft" }, short(ys[0])),
    draw("text", { x: left, y: top + height + 18, class: "soft" }, short(xs[0])),
    draw("text", { x: left + width, y: top + height + 18, "text-anchor": "end", class: "soft" }, short(xs[1])));
  lines.forEach(([, steps, values], i) => {
    const paint = lines.length > 1 ? colour(i) : "var(--blue)";
    let path = "", before = null;
    steps.forEach((step, j) => {
      if (values[j] === null) { before = null; return; }
      path += `${before === null ? "M" : "L"}${x(step)} ${y(values[j])}`;
      if (before === null && (values[j + 1] ?? null) === null) svg.append(draw("circle", { cx: x(step), cy: y(values[j]), r: 2, fill: paint }));
      before = step;
    });
    if (path) svg.append(draw("path", { class: "curve", style: `stroke: ${paint}`, d: path }));
  });
  const named = lines.filter(([label]) => label);
  return make("div", {}, make("h3", {}, title), svg, named.length ? make("div", { class: "legend" },
    ...lines.map(([label], i) => make("span", { title: label }, make("i", { style: `background: ${colour(i)}` }), label.length > 36 ? "…" + label.slice(-35) : label))) : null);
}

function curves() {
  const charts = new Map();
  for (const { name, label, columns } of data.curves) {
    for (const [column, values] of Object.entries(columns)) {
      if (column === "step") continue;
      const title = `${name}: ${column}`;
      charts.set(title, [...(charts.get(title) ?? []), [label, columns.step, values]]);
    }
  }
  for (const [title, lines] of charts) {
    const chart = curve(title, lines);
    if (chart) byId("charts").append(chart);
  }
  byId("gaps").append(...data.gaps.map((gap) => make("li", {}, gap)));
  if (!byId("charts").childElementCount) byId("charts").append(make("p", { class: "note" }, "None were given."));
}
