// GRPO's completions: one group at a time, the completions of a task at a step.
const paged = { task: "all", show: "all groups", at: 0 };
const PASSED = (row) => row.status === "passed";

function page() {
  const logged = data.completions;
  byId("completions").hidden = !logged;
  if (!logged) return;
  const filters = {
    "all groups": () => true,
    "some pass, some fail": (rows) => rows.some(PASSED) && !rows.every(PASSED),
    "none pass": (rows) => !rows.some(PASSED),
    "all pass": (rows) => rows.every(PASSED),
  };
  const groups = logged.groups.filter((group) => (paged.task === "all" || group.task === paged.task) && filters[paged.show](group.rows));
  paged.at = Math.max(0, Math.min(paged.at, groups.length - 1));
  const go = (step) => () => { paged.at += step; page(); };
  const names = ["all", ...new Set(logged.groups.map((group) => group.task))];
  const here = groups[paged.at];
  byId("pager").replaceChildren(
    select("Task", names, paged.task, (task) => { Object.assign(paged, { task, at: 0 }); page(); }),
    select("Show", Object.keys(filters), paged.show, (show) => { Object.assign(paged, { show, at: 0 }); page(); }),
    make("button", { onclick: go(-1), disabled: !paged.at, id: "previous" }, "‹ Previous"),
    make("button", { onclick: go(1), disabled: paged.at >= groups.length - 1, id: "next" }, "Next ›"),
    make("span", { class: "note", id: "where" }, here ? `${paged.at + 1} of ${groups.length} groups: step ${here.step}, ${here.task}, ${here.rows.filter(PASSED).length} of ${here.rows.length} pass` : "No such group."));
  if (!here) return byId("group").replaceChildren();
  const prompt = Object.hasOwn(logged.prompts, here.task) ? logged.prompts[here.task] : null;
  const number = (value) => typeof value === "number" ? String(Number(value.toFixed(3))) : value === null || value === undefined ? "–" : String(value);
  byId("group").replaceChildren(prompt === null ? "" : make("pre", {}, prompt), make("div", { class: "wrap" }, ...here.rows.map((row) => make("div", { class: "card completion" },
    badge(row.status || "no verdict"),
    make("table", {}, make("tbody", {}, ...logged.columns.map((column, i) => make("tr", {}, make("th", { class: "text" }, column.replaceAll("_", " ")), make("td", {}, number(row.values[i])))))),
    answer(row.text)))));
}

// The browser below: what is chosen, and the functions that show it.
const chosen = { view: null, old: null, new: null, filter: "all", find: "", task: null, sample: 0 };
const places = new Map(Object.entries(data.benchmarks).flatMap(([benchmark, { views }]) => views.map((view, i) => [view, { benchmark, i }])));
chosen.view = [...places.keys()][0];
const passes = (row) => Boolean(row[6][places.get(chosen.view).i]);

function rate(rows) {
  const drawn = rows.filter((row) => row[0] > 0);
  return drawn.length ? drawn.filter(passes).length / drawn.length : 0;
}
const greedy = (rows) => rows.some((row) => row[0] === 0 && passes(row));

function pairUp(names) {
  const mode = (name) => name.split(" ").pop();
  const wanted = names.find((name) => name === "grpo cot") ?? names.at(-1);
  chosen.new = names.includes(chosen.new) ? chosen.new : wanted;
  chosen.old = names.includes(chosen.old) ? chosen.old
    : names.find((name) => name === "sft cot" && name !== chosen.new) ?? names.find((name) => name !== chosen.new && mode(name) === mode(chosen.new)) ?? names[0];
}

function visible(id, samples) {
  if (!id.toLowerCase().includes(chosen.find)) return false;
  const before = greedy(samples[chosen.old][id]), after = greedy(samples[chosen.new][id]);
  return chosen.filter === "all" || (chosen.filter === "fixed" ? after && !before : before && !after);
}

function show() {
  const { tasks, samples } = data.benchmarks[places.get(chosen.view).benchmark], names = Object.keys(samples);
  pairUp(names);
  const model = chosen.new.split(" ").slice(0, -1).join(" "), rows = tasks.filter((task) => visible(task.id, samples));
  const choose = (key) => (value) => { chosen[key] = value; show(); };
  const labels = { all: "All tasks", fixed: `${model.toUpperCase()} fixed`, broke: `${model.toUpperCase()} broke` };
  byId("controls").replaceChildren(
    select("Benchmark", [...places.keys()], chosen.view, (value) => {
      if (places.get(value).benchmark !== places.get(chosen.view).benchmark) chosen.task = null;
      choose("view")(value);
    }),
    select("Compare", names, chosen.new, choose("new")), select("with", names, chosen.old, choose("old")),
    ...Object.entries(labels).map(([key, label]) => make("button", { id: key, "aria-pressed": String(chosen.filter === key), onclick: () => choose("filter")(key) }, label)),
    make("span", { class: "note", id: "count" }, `${rows.length} of ${tasks.length} tasks, by the greedy answer`));
  byId("grid").replaceChildren(table({ names: ["Task", ...names], text: 1 }, rows.map((task) => [
    make("button", { onclick: () => { Object.assign(chosen, { task: task.id, sample: 0 }); address(); show(); byId("detail").scrollIntoView(); } }, task.id),
    ...names.map((name) => {
      const share = rate(samples[name][task.id]);
      return make("td", { class: "rate", style: `background: rgba(var(--rate), ${(0.6 * share).toFixed(2)})` },
        `${Math.round(100 * share)} % ${greedy(samples[name][task.id]) ? "✓" : "✗"}`);
    })])));
  rows.forEach((task, i) => byId("grid").querySelectorAll("tbody tr")[i].classList.toggle("open", task.id === chosen.task));
  detail(tasks.find((task) => task.id === chosen.task), samples);
}

function detail(task, samples) {
  if (!task) return byId("detail").replaceChildren(chosen.task === null ? "" : make("p", { class: "note" }, `There is no task ${clip(chosen.task, 200)} here.`));
  const numbers = [...new Set(Object.values(samples).flatMap((rows) => rows[task.id].map((row) => row[0])))].sort((a, b) => a - b);
  const buttons = numbers.map((i) => make("button", { "aria-pressed": String(i === chosen.sample),
    onclick: () => { chosen.sample = i; show(); } }, i ? String(i) : "greedy"));
  const cards = Object.entries(samples).map(([name, rows]) => {
    const row = rows[task.id].find((candidate) => candidate[0] === chosen.sample);
    if (!row) return make("div", { class: "card" }, make("h3", {}, name), "No such sample.");
    const [, text, outcome, passed, total, error] = row;
    const shown = passes(row) ? "passed" : outcome === "passed" ? "failed" : outcome;
    return make("div", { class: "card" }, make("h3", {}, name), badge(shown),
      total ? ` ${passed} of ${total} tests ` : "", error ? make("div", { class: "error" }, error) : null, answer(text));
  });
  const fold = (title, text) => make("details", {}, make("summary", {}, title), make("pre", {}, text));
  const about = Object.entries(task.about).map(([key, value]) => `${key}: ${value}`).join(" · ");
  byId("detail").replaceChildren(make("h2", {}, task.id), make("p", { class: "note" }, about), make("pre", {}, task.prompt), fold("Tests", task.tests),
    fold("Reference solution", task.reference), make("div", { class: "controls" }, "Sample", ...buttons),
    make("div", { class: "side" }, ...cards));
}

// Links: #BENCHMARK/TASK. What follows the # may be anything, a lone % too; what leads nowhere opens nothing.
function decoded(text) {
  return text.replace(/(?:%[0-9a-f]{2})+/gi, (codes) => { try { return decodeURIComponent(codes); } catch { return codes; } });
}

function address() {
  const { benchmark } = places.get(chosen.view);
  try { history.replaceState(null, "", `#${benchmark}/${encodeURI(chosen.task).replaceAll("#", "%23")}`); } catch { /* half of a surrogate pair has no address */ }
}

function open() {
  const raw = location.hash.slice(1);
  const found = [decoded(raw), raw].flatMap((text) => Object.entries(data.benchmarks).filter(([name]) => text === name || text.startsWith(name + "/"))
    .map(([name, { views, tasks }]) => ({ view: views[0], task: text.slice(name.length + 1) || null, known: tasks.some((task) => task.id === text.slice(name.length + 1)) })));
  const best = found.find((one) => one.known) ?? found[0];
  if (best) Object.assign(chosen, { view: best.view, task: best.task, sample: 0 });
  show();
  if (best) byId(best.known ? "detail" : "tasks").scrollIntoView();
}

headline();
byId("bars").append(...data.entries.map(bars));
byId("forest").append(...data.entries.map(forest).filter((chart) => chart !== null));
power();
failures();
groups();
curves();
page();
for (const section of document.querySelectorAll("section")) {
  if (!section.hidden) byId("nav").append(make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
}
byId("find").oninput = (event) => { chosen.find = event.target.value.toLowerCase(); show(); };
byId("completions").onkeydown = (event) => {
  const step = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
  if (step && !/^(SELECT|INPUT)$/.test(event.target.tagName)) { byId(step).click(); byId(step).focus(); }
};
window.addEventListener("hashchange", open);
open();
