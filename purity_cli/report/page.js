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

/* An element of SVG in another. */
function add(parent, name, about, text = '') {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(about)) element.setAttribute(key, value);
  element.textContent = text;
  return parent.appendChild(element);
}

/* Where values with their intervals stand between two places, and round numbers; far apart on a logarithmic scale. */
function axis(spans, start, stop, canBeLog = true) {
  const values = spans.flat(), log = canBeLog && Math.min(...values) > 0 && Math.max(...values) > 30 * Math.min(...values);
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

/* F, from 0 to 1, against anything: points are [x, F, error, biased low]. */
function lines(svg, data) {
  const [width, height] = data.wide ? [560, 300] : [340, 200], [start, stop, top, floor] = [30, width - 10, 22, height - 34];
  const named = data.lines.length > 1, spans = data.lines.flatMap((line) => line.points.map(([x]) => [x]));
  svg.setAttribute('viewBox', `0 0 ${width} ${height + (named ? 15 * data.lines.length : 0)}`);
  svg.setAttribute('class', 'chart');
  const h = axis(data.ticks ? data.ticks.map(([x]) => [x]) : spans.length ? spans : [[0], [1]], start, stop, data.x === 'epoch');
  const v = (y) => floor - (floor - top) * Math.min(Math.max(y, 0), 1);
  for (const y of [0, 0.25, 0.5, 0.75, 1]) {
    add(svg, 'path', {class: 'grid', d: `M${start} ${v(y)}H${stop}`});
    add(svg, 'text', {x: start - 5, y: v(y) + 3.5, 'text-anchor': 'end'}, String(y));
  }
  for (const [x, name] of data.ticks || h.marks.map((mark) => [mark, mark.toLocaleString('en')])) {
    add(svg, 'text', {x: h.at(x), y: floor + 13, 'text-anchor': 'middle'}, name);
  }
  add(svg, 'text', {x: (start + stop) / 2, y: floor + 28, 'text-anchor': 'middle', class: 'label'}, data.x);
  add(svg, 'text', {x: 0, y: 10, class: 'label'}, 'F');
  const dots = (group, kind, points) => add(group, 'path', {class: kind, d: points.map(([x, y]) => `M${h.at(x)} ${v(y)}h0`).join('')});
  data.lines.forEach(({name, points}, i) => {
    const group = add(svg, 'g', {class: `s${i % 7} d${i % 4} m${i % 2}`});
    if (data.bars) {
      add(group, 'path', {class: 'bar', d: points.map(([x, y, e]) => `M${h.at(x)} ${v(y - e)}V${v(y + e)}`).join('')});
    } else if (points.length > 1) {
      const over = points.map(([x, y, e]) => `${h.at(x)} ${v(y + e)}`), under = points.map(([x, y, e]) => `${h.at(x)} ${v(y - e)}`);
      add(group, 'path', {class: 'band', d: `M${over.concat(under.reverse()).join('L')}Z`});
    }
    if (points.length) add(group, 'path', {class: 'line', d: `M${points.map(([x, y]) => `${h.at(x)} ${v(y)}`).join('L')}`});
    dots(group, 'dot', points);
    dots(group, 'hollow', points.filter((point) => point[3]));
    for (const [x, y, e, low] of points) {
      const about = `${name} ${x}: F = ${y.toFixed(3)} ± ${e.toFixed(3)}${low ? ', biased low' : ''}`;
      add(add(group, 'circle', {cx: h.at(x), cy: v(y), r: 7}), 'title', {}, about.trim());
    }
    if (!named) return;
    const y = height + 15 * i + 6, legend = add(svg, 'g', {class: group.getAttribute('class')});
    add(legend, 'path', {class: 'line', d: `M${start} ${y - 4}h26`});
    add(legend, 'path', {class: 'dot', d: `M${start + 13} ${y - 4}h0`});
    add(svg, 'text', {x: start + 34, y}, name.length > 48 ? `${name.slice(0, 47)}…` : name);
  });
}

/* A bar for each channel, as high as its share of all firings; pointing names it, pressing lists all. */
function channels(svg, {counts}, figure) {
  const [width, floor, top] = [220, 74, 6], total = counts.reduce((a, b) => a + b, 0), most = Math.max(...counts), step = width / counts.length;
  const share = (count) => total ? `${(100 * count / total).toPrecision(2)} %` : '0 %';
  svg.setAttribute('viewBox', `0 0 ${width} 92`);
  svg.setAttribute('class', 'chart');
  const up = (count) => floor - (floor - top) * count / most;
  if (total) {
    add(svg, 'path', {class: 'bars', d: counts.map((count, i) => count ? `M${i * step} ${floor}V${up(count)}h${step}V${floor}` : '').join('')});
    add(svg, 'path', {class: 'even', d: `M0 ${up(total / counts.length)}H${width}`});
  }
  add(svg, 'path', {class: 'axis', d: `M0 ${floor}H${width}`});
  const mark = add(svg, 'path', {class: 'mark', d: ''}), said = add(svg, 'text', {x: 0, y: 88}, '');
  const rest = total ? `${counts.length} channels, highest ${share(most)}` : `${counts.length} channels, nothing fires`;
  said.textContent = rest;
  svg.onmousemove = (event) => {
    const box = svg.getBoundingClientRect(), i = Math.min(counts.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * counts.length)));
    mark.setAttribute('d', `M${(i + 0.5) * step} ${top}V${floor}`);
    said.textContent = `channel ${i}: ${counts[i].toLocaleString('en')} firings, ${share(counts[i])}`;
  };
  svg.onmouseleave = () => { mark.setAttribute('d', ''); said.textContent = rest; };
  const list = document.createElement('ol'), details = document.createElement('details'), summary = document.createElement('summary');
  summary.textContent = 'All channels';
  details.append(summary, list);
  details.ontoggle = () => {
    if (list.children.length) return;
    const order = counts.map((count, i) => [count, i]).sort(([a, i], [b, j]) => b - a || i - j);
    list.append(...order.map(([count, i]) => {
      const item = document.createElement('li');
      item.textContent = `${i}: ${count ? `${count.toLocaleString('en')}, ${share(count)}` : 'dead'}`;
      return item;
    }));
  };
  svg.onclick = () => { details.open = !details.open; };
  figure.append(details);
}

/* Charts are drawn when they can first be seen. */
function drawIn(part) {
  for (const figure of all('figure.lines, figure.channels', part)) {
    const svg = figure.querySelector('svg'), panel = figure.closest('details.panel');
    if (svg.children.length || (panel && !panel.open)) continue;
    const data = JSON.parse(figure.querySelector('script').textContent);
    ({lines, channels})[data.kind](svg, data, figure);
  }
}
for (const panel of all('details.panel')) panel.addEventListener('toggle', () => drawIn(panel));
drawIn(document);

/* Any two columns of a table against each other, of one group of its rows. */
function plot(figure) {
  const told = JSON.parse(figure.querySelector('script').textContent), table = of(figure), rows = rowsOf(table), heads = headsOf(table);
  const svg = figure.querySelector('svg'), [across, up, group] = ['x', 'y', 'group'].map((name) => figure.querySelector(`select.${name}`));
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
    const rho = ((told.rho[group.value] || {})[keys[0]] || {})[keys[1]], end = Math.max(300, Math.min(720, svg.clientWidth)) - 12;
    figure.querySelector('figcaption').textContent = rho === undefined
      ? `n = ${points.length}: too few or too alike to correlate.`
      : `${names[1]} and ${names[0]}: Spearman's rank correlation ${rho.toFixed(2)}, n = ${points.length}.`;
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
addEventListener('beforeprint', () => { const panels = all('details.panel'); if (panels.length <= 24) panels.forEach((one) => { one.open = true; drawIn(one); }); });
