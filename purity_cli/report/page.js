'use strict';
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const of = (control) => document.getElementById(control.dataset.for);
const rowsOf = (table) => [...table.tBodies[0].rows];

/* A cell's number to its last digit, or its text; null sorts last. */
function worth(cell) {
  if (cell.dataset.value !== undefined) {
    const value = Number(cell.dataset.value);
    return Number.isNaN(value) ? null : value;
  }
  return cell.classList.contains('n') ? null : cell.textContent.trim().toLowerCase() || null;
}

function sort(table, at) {
  const heads = [...table.tHead.rows[0].cells], number = heads[at].classList.contains('n');
  const before = heads[at].getAttribute('aria-sort');
  const up = before ? before === 'descending' : !number;
  heads.forEach((head, i) => i === at ? head.setAttribute('aria-sort', up ? 'ascending' : 'descending') : head.removeAttribute('aria-sort'));
  const keyed = rowsOf(table).map((row) => [worth(row.cells[at]), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === 'number' ? a - b : a.localeCompare(b, 'en', {numeric: true});
    return up ? order : -order;
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}
for (const table of all('table.sorted'))
  all('thead button', table).forEach((button, at) => button.addEventListener('click', () => sort(table, at)));

function find(input) {
  const words = input.value.toLowerCase().split(/\s+/), rows = rowsOf(of(input));
  for (const row of rows) {
    const said = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => said.includes(word));
    const link = row.querySelector('th a');
    if (link) document.getElementById(link.hash.slice(1)).hidden = row.hidden;
  }
  const shown = rows.filter((row) => !row.hidden).length;
  document.querySelector(`output[data-for="${input.dataset.for}"]`).value = input.value.trim() ? `${shown} of ${rows.length}` : '';
  all('figure.plot').filter((one) => of(one) === of(input)).forEach((one) => one.dispatchEvent(new Event('draw')));
}
for (const input of all('input[type=search]')) {
  input.addEventListener('input', () => find(input));
  if (input.value) find(input);
}

for (const box of all('.choose input')) {
  const choose = () => { for (const row of of(box).rows) row.cells[Number(box.value)].classList.toggle('off', !box.checked); };
  box.addEventListener('change', choose);
  choose();
}

/* Round numbers for an axis. */
function ticks(from, to) {
  const rough = (to - from) / 5, base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * base).find((size) => size >= rough), found = [];
  for (let at = Math.ceil(from / step); at * step <= to; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

function axis(values, errors, start, stop) {
  const positive = values.every((value) => value > 0), log = positive && Math.max(...values) > 30 * Math.min(...values);
  const scale = log ? Math.log10 : (value) => value;
  let low = Math.min(...values.map((value, i) => scale(value - (log ? 0 : errors[i])))), high = Math.max(...values.map((value, i) => scale(value + (log ? 0 : errors[i]))));
  const pad = (high - low || Math.abs(high) || 1) * 0.08;
  [low, high] = [low - pad, high + pad];
  const powers = [1, 2, 5].flatMap((digit) => [...Array(40).keys()].map((power) => digit * 10 ** (power - 20)));
  const marks = log ? powers.filter((value) => scale(value) >= low && scale(value) <= high) : ticks(low, high);
  return {at: (value) => start + (stop - start) * (scale(value) - low) / (high - low), marks};
}

/* Any two columns of a table against each other, of one group of its rows. */
for (const figure of all('figure.plot')) {
  const told = JSON.parse(figure.querySelector('script').textContent), table = of(figure);
  const rows = rowsOf(table), heads = [...table.tHead.rows[0].cells], svg = figure.querySelector('svg');
  const [across, up, group] = ['x', 'y', 'group'].map((name) => figure.querySelector(`select.${name}`));
  const add = (name, about, text = '', parent = svg) => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(about)) element.setAttribute(key, value);
    element.textContent = text;
    return parent.appendChild(element);
  };
  for (const [at, head] of heads.entries())
    if (rows.some((row) => row.cells[at].dataset.value))
      for (const select of [across, up]) select.add(new Option(head.textContent, at));
  const place = (key) => heads.findIndex((head) => head.dataset.key === key);
  [across.value, up.value] = [place(told.x), place(told.y)];
  const count = (name) => told.groups.filter((other) => other === name).length;
  for (const name of [...new Set(told.groups)].sort((a, b) => count(b) - count(a))) group.add(new Option(name, name));
  group.parentElement.hidden = group.options.length < 2;

  function draw() {
    const [x, y] = [Number(across.value), Number(up.value)];
    const number = (row, at) => Number(row.cells[at].dataset.value || NaN), error = (row, at) => 1.96 * (Number(row.cells[at].dataset.error) || 0);
    const known = rows.filter((row, i) => told.groups[i] === group.value && Number.isFinite(number(row, x)) && Number.isFinite(number(row, y)));
    svg.replaceChildren();
    const keys = [x, y].map((at) => heads[at].dataset.key), said = told.said[group.value] || {};
    figure.querySelector('figcaption').textContent = said[keys.join('\n')] || said[[keys[1], keys[0]].join('\n')] ||
      `n = ${known.length}: too few or too alike to correlate.`;
    svg.setAttribute('aria-label', `${heads[y].textContent} against ${heads[x].textContent} of ${known.length} results; bars are 95 % intervals`);
    if (!known.length) return;
    const [h, v] = [axis(known.map((row) => number(row, x)), known.map((row) => error(row, x)), 58, 708), axis(known.map((row) => number(row, y)), known.map((row) => error(row, y)), 350, 12)];
    for (const mark of v.marks) { add('path', {class: 'grid', d: `M58 ${v.at(mark)}H708`}); add('text', {x: 52, y: v.at(mark) + 4, 'text-anchor': 'end'}, mark.toLocaleString('en')); }
    for (const mark of h.marks) { add('path', {class: 'grid', d: `M${h.at(mark)} 350v5`}); add('text', {x: h.at(mark), y: 369, 'text-anchor': 'middle'}, mark.toLocaleString('en')); }
    add('text', {x: 383, y: 392, 'text-anchor': 'middle', class: 'label'}, heads[x].textContent);
    add('text', {x: 6, y: 8, class: 'label', 'dominant-baseline': 'middle'}, heads[y].textContent);
    const taken = known.map((row) => [h.at(number(row, x)) - 5, v.at(number(row, y)) - 5, 10, 10]);
    for (const row of known) {
      const [cx, cy, dx, dy] = [h.at(number(row, x)), v.at(number(row, y)), error(row, x), error(row, y)];
      const one = add('g', {class: row.hidden ? 's0 dim' : 's0'}), name = row.cells[0].textContent.trim();
      if (dy) add('path', {class: 'bar', d: `M${cx} ${v.at(number(row, y) - dy)}V${v.at(number(row, y) + dy)}`}, '', one);
      if (dx) add('path', {class: 'bar', d: `M${h.at(number(row, x) - dx)} ${cy}H${h.at(number(row, x) + dx)}`}, '', one);
      add('path', {class: 'dot', d: `M${cx} ${cy}h0`}, '', one);
      if (row.cells[y].classList.contains('starved') || row.cells[x].classList.contains('starved')) add('path', {class: 'hollow', d: `M${cx} ${cy}h0`}, '', one);
      add('title', {}, `${name}: ${row.cells[x].textContent.trim()}, ${row.cells[y].textContent.trim()}`, add('circle', {cx, cy, r: 8}, '', one));
      if (known.length > 60 || row.hidden) continue;
      const short = name.length > 34 ? `${name.slice(0, 33)}…` : name, wide = short.length * 6.2;
      const places = [[8, 4], [-wide - 8, 4], [-wide / 2, -9], [-wide / 2, 18], [8, -9], [8, 17], [-wide - 8, -9], [-wide - 8, 17]];
      const free = places.map(([a, b]) => [cx + a, cy + b - 9, wide, 12]).find(([a, b, w, t]) => a > 58 && a + w < 716 && b > 0 && b + t < 350 &&
        taken.every(([c, d, u, s]) => a > c + u || c > a + w || b > d + s || d > b + t));
      if (free) { taken.push(free); add('text', {x: free[0], y: free[1] + 9, class: 'name'}, short, one); }
    }
  }
  for (const select of [across, up, group]) select.addEventListener('change', draw);
  figure.addEventListener('draw', draw);
  figure.hidden = false;
  draw();
}

/* Who follows a link to a folded part sees it; on paper all are open, unless they are many. */
const open = () => { const part = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1))); if (part && part.tagName === 'DETAILS') { part.open = true; part.scrollIntoView(); } };
addEventListener('hashchange', open);
open();
addEventListener('beforeprint', () => { const panels = all('details.panel'); if (panels.length <= 24) panels.forEach((one) => { one.open = true; }); });
