// The dashboard: asks the server once a second.
const root = new URL('../', import.meta.url);
const $ = (id) => document.getElementById(id);
const make = (name, className = '') => Object.assign(document.createElement(name), { className });
let before = null;

const time = (seconds) => seconds < 1 ? `${+(seconds * 1000).toPrecision(3)} ms` : `${+seconds.toPrecision(3)} s`;

function histogram(id, { bounds, counts, sum, count }) {
  const first = Math.max(0, counts.findIndex((n) => n > 0)), last = counts.findLastIndex((n) => n > 0);
  const most = Math.max(1, ...counts);
  $(id).replaceChildren(...counts.slice(first, last + 1).map((n, i) => {
    const bar = make('i');
    bar.style.height = `${100 * n / most}%`;
    bar.title = `up to ${time(bounds[first + i] ?? Infinity)}: ${n}`;
    return bar;
  }));
  const axis = $(id).nextElementSibling;
  axis.replaceChildren(...[time(first > 0 ? bounds[first - 1] : 0), count ? `mean ${time(sum / count)}` : 'nothing yet', time(bounds[Math.max(last, 0)] ?? bounds.at(-1))]
    .map((text) => Object.assign(make('span'), { textContent: text })));
}

function heat(layers) {
  $('experts').replaceChildren(...layers.map((loads) => {
    const row = make('div', 'heat'), most = Math.max(1, ...loads);
    row.style.gridTemplateColumns = `repeat(${loads.length}, 1fr)`;
    row.append(...loads.map((load, expert) => {
      const cell = make('i');
      cell.style.opacity = 0.08 + 0.92 * load / most;
      cell.title = `expert ${expert}: ${load} tokens`;
      return cell;
    }));
    return row;
  }));
}

async function refresh() {
  try {
    const now = await (await fetch(new URL('dash.json', root))).json();
    $('model').textContent = now.model;
    $('running').textContent = now.running;
    $('waiting').textContent = now.waiting;
    $('cache').textContent = now.blocks ? `${(100 * now.used_blocks / now.blocks).toFixed(1)} %` : '–';
    $('hits').textContent = now.prompt_tokens ? `${(100 * now.cached_tokens / now.prompt_tokens).toFixed(1)} %` : '–';
    $('requests').textContent = now.requests;
    if (before) $('rate').textContent = ((now.answer_rows - before.answer_rows) / (now.time - before.time)).toFixed(1);
    before = now;
    histogram('ttft', now.time_to_first_token);
    histogram('tpot', now.time_between_tokens);
    heat(now.expert_load);
  } catch (error) {
    $('model').textContent = `no answer: ${error.message}`;
  }
  setTimeout(refresh, 1000);
}

refresh();
