// The chat page: a conversation in memory, sent whole with every turn.
import { markdown } from './markdown.js';

const root = new URL('../', import.meta.url);  // works under any path prefix
const $ = (id) => document.getElementById(id);
const NUMBERS = ['temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'max_tokens', 'seed'];
const STORED = [...NUMBERS, 'system', 'thinking'];

let turns = [];  // {role, content, reasoning, calls, speed, error}
let model = { id: '', chat: true };
let running = null;  // AbortController of the reply under way

const make = (name, className, ...children) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
};

function button(text, action) {
  const node = make('button', '', text);
  node.type = 'button';
  node.addEventListener('click', action);
  return node;
}

function headers() {
  const key = $('key').value;
  return { 'Content-Type': 'application/json', ...(key && { Authorization: `Bearer ${key}` }) };
}

function body() {
  const fields = { model: model.id, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) {
    if ($(name).value !== '') fields[name] = Number($(name).value);
  }
  const said = turns.filter((turn) => turn.content || turn.role === 'user');
  if (!model.chat) {  // a base model goes on with the text
    return { ...fields, prompt: $('system').value + said.map((turn) => turn.content).join(''), max_tokens: fields.max_tokens ?? 512 };
  }
  if ($('thinking').value) fields.thinking = { type: $('thinking').value };
  const messages = said.map(({ role, content }) => ({ role, content }));
  if ($('system').value) messages.unshift({ role: 'system', content: $('system').value });
  return { ...fields, messages };
}

// Server-sent events of a response, parsed.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      if (event.startsWith('data: ') && event !== 'data: [DONE]') yield JSON.parse(event.slice(6));
    }
  }
}

function take(turn, choice) {
  if (!choice) return;
  const delta = choice.delta ?? { content: choice.text };
  turn.content += delta.content ?? '';
  turn.reasoning += delta.reasoning_content ?? '';
  for (const call of delta.tool_calls ?? []) {
    turn.calls[call.index] ??= { name: '', arguments: '' };
    turn.calls[call.index].name += call.function.name ?? '';
    turn.calls[call.index].arguments += call.function.arguments ?? '';
  }
  if (choice.finish_reason) turn.finish = choice.finish_reason;
}

function speedLine(usage, began, first, last) {
  const tokens = usage.completion_tokens, seconds = (last - first) / 1000;
  const rate = tokens > 1 && seconds > 0 ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s · ` : '';
  return `${rate}${tokens} tokens · first after ${((first - began) / 1000).toFixed(2)} s · prompt ${usage.prompt_tokens}, ${usage.prompt_cache_hit_tokens} from the cache`;
}

async function reply() {
  const request = body();
  const turn = { role: 'assistant', content: '', reasoning: '', calls: [] };
  turns.push(turn);
  running = new AbortController();
  render();
  const began = performance.now();
  let first = 0, last = 0, usage = null;
  try {
    const path = model.chat ? 'v1/chat/completions' : 'v1/completions';
    const response = await fetch(new URL(path, root), { method: 'POST', headers: headers(), body: JSON.stringify(request), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      if (!event.choices?.length) continue;
      last = performance.now();
      first ||= last;
      take(turn, event.choices[0]);
      schedule();
    }
    if (usage) turn.speed = speedLine(usage, began, first, last);
  } catch (error) {
    if (error.name !== 'AbortError') turn.error = error.message;
    else turn.speed = 'stopped';
  }
  running = null;
  render();
}

let scheduled = false;
function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    renderTurn(turns.length - 1);
    follow();
  });
}

function follow() {
  const log = $('log');
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 200) log.scrollTop = log.scrollHeight;
}

function renderText(turn) {
  if (turn.role === 'user') return [make('div', 'text', turn.content)];
  const nodes = [];
  if (turn.reasoning) {
    const fold = make('details', 'thinking', make('summary', '', turn.content ? 'Thought' : 'Thinking…'), ...markdown(turn.reasoning));
    fold.open = turn.open ?? !turn.content;
    fold.addEventListener('toggle', () => { turn.open = fold.open; });
    nodes.push(fold);
  }
  if (turn.content) nodes.push(model.chat ? make('div', 'text', ...markdown(turn.content)) : make('div', 'text plain', turn.content));
  for (const call of turn.calls) nodes.push(make('div', 'call', `${call.name}(${call.arguments})`));
  if (turn.error) nodes.push(make('p', 'error', turn.error));
  if (!nodes.length && running) nodes.push(make('p', 'quiet', '…'));
  return nodes;
}

function tools(turn, index) {
  if (running) return [];
  const bar = make('div', 'tools');
  if (turn.role === 'user') {
    bar.append(button('Edit', () => edit(index)));
  } else {
    if (index === turns.length - 1) bar.append(button('Regenerate', () => { turns.pop(); reply(); }));
    if (navigator.clipboard) bar.append(button('Copy', () => navigator.clipboard.writeText(turn.content)));
    if (turn.speed) bar.append(make('span', 'quiet speed', turn.finish === 'length' ? `${turn.speed} · cut at the limit` : turn.speed));
  }
  return [bar];
}

function renderTurn(index) {
  const turn = turns[index], article = make('article', turn.role, ...renderText(turn), ...tools(turn, index));
  const old = $('log').children[index];
  if (old) old.replaceWith(article);
  else $('log').append(article);
}

function render() {
  $('log').replaceChildren();
  turns.forEach((_, index) => renderTurn(index));
  $('send').hidden = running !== null;
  $('stop').hidden = running === null;
  $('log').scrollTop = $('log').scrollHeight;
}

function edit(index) {
  const area = make('textarea', '');
  area.value = turns[index].content;
  area.rows = Math.min(12, area.value.split('\n').length + 1);
  area.setAttribute('aria-label', 'Edit message');
  const save = () => {
    turns = [...turns.slice(0, index), { role: 'user', content: area.value }];
    reply();
  };
  area.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') render();
    if (event.key === 'Enter' && !event.shiftKey) event.preventDefault(), save();
  });
  const bar = make('div', 'tools', button('Send', save), button('Cancel', render));
  $('log').children[index].replaceChildren(area, bar);
  area.focus();
}

function send(event) {
  event.preventDefault();
  const text = $('input').value;
  if (running || (!text.trim() && model.chat)) return;
  if (text) turns.push({ role: 'user', content: text });
  $('input').value = '';
  grow();
  reply();
}

function grow() {
  $('input').rows = Math.min(10, $('input').value.split('\n').length);
}

function exportChat() {
  const file = new Blob([JSON.stringify({ model: model.id, system: $('system').value, messages: turns }, null, 2)], { type: 'application/json' });
  const link = make('a', '');
  link.href = URL.createObjectURL(file);
  link.download = 'chat.json';
  link.click();
  URL.revokeObjectURL(link.href);
}

function keys(event) {
  if (event.key === 'Escape' && running) running.abort();
  const lastUser = turns.findLastIndex((turn) => turn.role === 'user');
  if (event.key === 'ArrowUp' && event.target === $('input') && !$('input').value && !running && lastUser >= 0) {
    event.preventDefault();
    edit(lastUser);
  }
}

function store() {
  for (const name of STORED) localStorage.setItem(`fathom.${name}`, $(name).value);
}

function theme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  document.documentElement.dataset.theme = dark ? 'light' : 'dark';
  localStorage.setItem('fathom.theme', document.documentElement.dataset.theme);
}

async function start() {
  const stored = localStorage.getItem('fathom.theme');
  if (stored) document.documentElement.dataset.theme = stored;
  for (const name of STORED) {
    $(name).value = localStorage.getItem(`fathom.${name}`) ?? '';
    $(name).addEventListener('change', store);
  }
  $('form').addEventListener('submit', send);
  $('stop').addEventListener('click', () => running?.abort());
  $('new').addEventListener('click', () => { running?.abort(); turns = []; render(); $('input').focus(); });
  $('export').addEventListener('click', exportChat);
  $('theme').addEventListener('click', theme);
  $('settings-toggle').addEventListener('click', () => {
    $('settings').hidden = !$('settings').hidden;
    $('settings-toggle').setAttribute('aria-expanded', String(!$('settings').hidden));
  });
  $('input').addEventListener('input', grow);
  $('input').addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) send(event);
  });
  document.addEventListener('keydown', keys);
  $('key').addEventListener('change', loadModel);
  await loadModel();
}

async function loadModel() {
  try {
    const list = await (await fetch(new URL('v1/models', root), { headers: headers() })).json();
    if (list.error) throw new Error(list.error.message);
    model = list.data[0];
    $('model').textContent = `${model.id} · ${model.max_model_len} tokens`;
    $('hint').hidden = model.chat;
    $('input').placeholder = model.chat ? 'Message' : 'Once upon a time';
  } catch (error) {
    $('model').textContent = error.message;
  }
}

start();
