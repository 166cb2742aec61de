'use strict';
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const of = (control) => document.getElementById(control.dataset.for);
const rowsOf = (table) => [...table.tBodies[0].rows];
const headsOf = (table) => [...table.tHead.rows[0].cells];

/* A cell's number to its last digit, or its text; null, which sorts last, where there is neither. */
function worth(cell) {
  if (!cell.classList.contains('n')) return cell.textContent.trim().toLowerCase() || null;
  const value = Number(cell.dataset.value || NaN);
  return Number.isNaN(value) ? null : value;
}

function sort(table, at) {
  const head = headsOf(table)[at], before = head.getAttribute('aria-sort');
  const up = before ? before === 'descending' : !head.classList.contains('n');
  headsOf(table).forEach((one) => one.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const keyed = rowsOf(table).map((row) => [worth(row.cells[at]), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === 'number' ? a - b : a.localeCompare(b, 'en', {numeric: true});
    return up ? order : -order;
  });
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}
for (const table of all('table.sorted')) all('thead button', table).forEach((button, at) => { button.onclick = () => sort(table, at); });

function find(input) {
  const words = input.value.toLowerCase().split(/\s+/), rows = rowsOf(of(input));
  for (const row of rows) {
    const said = row.textContent.toLowerCase(), link = row.querySelector('th a');
    row.hidden = !words.every((word) => said.includes(word));
    if (link) document.getElementById(link.hash.slice(1)).closest('details').hidden = row.hidden;
  }
  const shown = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  document.querySelector(`output[data-for="${input.dataset.for}"]`).value = input.value.trim() ? shown : '';
  all(`figure.plot[data-for="${input.dataset.for}"]`).forEach((one) => one.dispatchEvent(new Event('draw')));
}
for (const input of all('input[type=search]')) input.oninput = () => find(input);

for (const box of all('.choose input')) {
  const choose = () => { for (const row of of(box).rows) row.cells[Number(box.value)].classList.toggle('off', !box.checked); };
  box.onchange = choose;
  choose(); // a browser keeps what was ticked before the page was loaded again
}

/* Where values with their intervals stand between two places, and round numbers; far apart on a logarithmic scale. */
function axis(spans, start, stop) {
  const values = spans.flat(), log = Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values);
  const scale = log ? Math.log10 : (value) => value;
  const [low, high] = [Math.min(...values), Math.max(...values)].map(scale), pad = 0.08 * (high - low || Math.abs(high) || 1);
  const [from, to] = [low - pad, high + pad], base = 10 ** Math.floor(Math.log10((to - from) / 7));
  const step = [1, 2, 5, 10].map((factor) => factor * base).find((size) => size >= (to - from) / 7);
  const marks = log
    ? [...Array(40).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** (power - 20)))
    : [...Array(12).keys()].map((i) => Number(((Math.ceil(from / step) + i) * step).toPrecision(12)));
  return {
    at: (value) => start + (stop - start) * (scale(value) - from) / (to - from),
    marks: marks.filter((value) => scale(value) >= from && scale(value) <= to),
  };
}

/* Any two columns of a table against each other, of one group of its rows. */
function plot(figure) {
  const told = JSON.parse(figure.querySelector('script').textContent), table = of(figure), rows = rowsOf(table), heads = headsOf(table);
  const svg = figure.querySelector('svg'), [across, up, group] = ['x', 'y', 'group'].map((name) => figure.querySelector(`select.${name}`));
  const add = (parent, name, about, text = '') => {
    const element = document.createElementNS('http://www.w3.org/2000/svg', name);
    for (const [key, value] of Object.entries(about)) element.setAttribute(key, value);
    element.textContent = text;
    return parent.appendChild(element);
  };
  heads.forEach((head, at) => {
    if (rows.some((row) => row.cells[at].dataset.value)) for (const select of [across, up]) select.add(new Option(head.textContent, at));
  });
  [across.value, up.value] = [told.x, told.y].map((key) => heads.findIndex((head) => head.dataset.key === key));
  const count = (name) => told.groups.filter((other) => other === name).length;
  for (const name of [...new Set(told.groups)].sort((a, b) => count(b) - count(a))) group.add(new Option(name, name));
  group.parentElement.hidden = group.options.length < 2;

  function draw() {
    const at = [Number(across.value), Number(up.value)], names = at.map((i) => heads[i].textContent), keys = at.map((i) => heads[i].dataset.key);
    const points = rows.filter((row, i) => told.groups[i] === group.value).map((row) => ({row, cells: at.map((i) => row.cells[i])}))
      .filter((one) => one.cells.every((cell) => Number.isFinite(Number(cell.dataset.value || NaN))));
    const said = told.said[group.value] || {}, end = Math.max(300, Math.min(720, svg.clientWidth)) - 12;
    figure.querySelector('figcaption').textContent = said[keys.join('\n')] || said[[...keys].reverse().join('\n')] ||
      `n = ${points.length}: too few or too alike to correlate.`;
    svg.replaceChildren();
    svg.setAttribute('viewBox', `0 0 ${end + 12} 400`);
    svg.setAttribute('aria-label', `${names[1]} against ${names[0]} of ${points.length} results, with 95 % intervals`);
    if (!points.length) return;
    for (const one of points) one.spans = one.cells.map((cell) => [-1.96, 0, 1.96].map((by) => Number(cell.dataset.value) + by * (Number(cell.dataset.error) || 0)));
    const h = axis(points.map((one) => one.spans[0]), 58, end), v = axis(points.map((one) => one.spans[1]), 350, 14);
    for (const mark of v.marks) { add(svg, 'path', {class: 'grid', d: `M58 ${v.at(mark)}H${end}`}); add(svg, 'text', {x: 52, y: v.at(mark) + 4, 'text-anchor': 'end'}, mark.toLocaleString('en')); }
    for (const mark of h.marks) { add(svg, 'path', {class: 'grid', d: `M${h.at(mark)} 350v5`}); add(svg, 'text', {x: h.at(mark), y: 369, 'text-anchor': 'middle'}, mark.toLocaleString('en')); }
    add(svg, 'text', {x: (58 + end) / 2, y: 392, 'text-anchor': 'middle', class: 'label'}, names[0]);
    add(svg, 'text', {x: 0, y: 9, class: 'label'}, names[1]);
    const taken = points.map((one) => [h.at(one.spans[0][1]) - 6, v.at(one.spans[1][1]) - 6, 12, 12]);
    for (const {row, cells, spans} of points) {
      const name = row.cells[0].textContent.trim();
      const [[left, x, right], [low, y, high]] = [spans[0].map(h.at), spans[1].map(v.at)], one = add(svg, 'g', {class: row.hidden ? 's0 dim' : 's0'});
      add(one, 'path', {class: 'bar', d: `M${x} ${low}V${high}M${left} ${y}H${right}`});
      add(one, 'path', {class: 'dot', d: `M${x} ${y}h0`});
      if (cells.some((cell) => cell.classList.contains('starved'))) add(one, 'path', {class: 'hollow', d: `M${x} ${y}h0`});
      add(add(one, 'circle', {cx: x, cy: y, r: 8}), 'title', {}, `${name}: ${cells.map((cell) => cell.textContent.trim()).join(', ')}`);
      const short = name.length > 34 ? `${name.slice(0, 33)}…` : name, long = short.length * 6.2;
      const places = [[8, -5], [-long - 8, -5], [8, 14], [-long - 8, 14], [-long / 2, -9], [-long / 2, 18], [8, 4], [-long - 8, 4]].map(([a, b]) => [x + a, y + b - 9, long, 12]);
      const free = !row.hidden && points.length <= 60 && places.find(([a, b, w, t]) => a > 58 && a + w < end + 12 && b > 10 && b + t < 350 &&
        taken.every(([c, d, u, s]) => a > c + u || c > a + w || b > d + s || d > b + t));
      if (free) { taken.push(free); add(one, 'text', {x: free[0], y: free[1] + 9, class: 'name'}, short); }
    }
  }
  figure.onchange = draw;
  figure.addEventListener('draw', draw);
  addEventListener('resize', draw);
  figure.hidden = false;
  draw();
}
all('figure.plot').forEach(plot);

/* On paper all parts are open, unless they are many. */
addEventListener('beforeprint', () => { const panels = all('details.panel'); if (panels.length <= 24) panels.forEach((one) => { one.open = true; }); });
