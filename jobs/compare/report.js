"use strict";
// Everything shown is put into the page as text, never as HTML: a model's answer cannot become part of the program.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const percent = (x) => (100 * x).toFixed(1);
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(100 * x).toFixed(1);
const pValue = (p) => (p === undefined || p === null ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const colour = (i) => `var(--k${i % 8})`;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function draw(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function canvas(width, height, title) {
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  svg.append(draw("title", {}, title));
  return svg;
}

function table(head, rows) {
  const cells = (tag, row) => row.map((cell, i) => cell instanceof Node && /^T[DH]$/.test(cell.tagName)
    ? cell : make(tag, { class: i < head.text ? "text" : null }, cell));
  return make("table", {}, make("thead", {}, make("tr", {}, ...cells("th", head.names))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells("td", row)))));
}

function select(label, options, value, onchange) {
  return make("label", {}, label + " ", make("select", { onchange: (event) => onchange(event.target.value) },
    ...options.map((option) => make("option", { value: option, selected: option === value }, option))));
}

function ends(interval, format = percent) {
  return make("span", {}, format(interval.mean), make("span", { class: "ends" }, `${format(interval.low)} to ${format(interval.high)}`));
}

function clip(text, most) {
  return text.length > most ? text.slice(0, most - 1) + "…" : text;
}

function badge(outcome) {
  return make("span", { class: outcome === "passed" ? "badge passed" : "badge" }, outcome.replaceAll("_", " "));
}

function answer(text) {
  // Reasoning and tags are set apart; the pieces are text nodes.
  const node = make("pre", {});
  let inside = false;
  for (const piece of text.split(/(<\/?(?:START_WORKING_OUT|END_WORKING_OUT|SOLUTION)>)/i)) {
    const tag = /^<\/?(START_WORKING_OUT|END_WORKING_OUT|SOLUTION)>$/i.exec(piece);
    if (tag) inside = tag[1].toUpperCase() === "START_WORKING_OUT";
    const shown = inside && !tag ? piece.trim() : piece;
    if (shown) node.append(make("span", { class: tag ? "tag" : inside ? "think" : null }, shown));
  }
  return node;
}
