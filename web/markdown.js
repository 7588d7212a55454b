// Markdown to DOM nodes. Nothing is ever parsed as HTML, so a model's words cannot become code.
import { mathNode } from './math.js';

const make = (name, ...children) => {
  const node = document.createElement(name);
  node.append(...children);
  return node;
};

const INLINE = [
  [/^`+/, (text) => {
    const ticks = /^`+/.exec(text)[0];
    const end = text.indexOf(ticks, ticks.length);
    return end < 0 ? null : [make('code', text.slice(ticks.length, end).trim()), end + ticks.length];
  }],
  [/^\\\(/, (text) => between(text, '\\(', '\\)', (tex) => mathNode(tex, false))],
  [/^\$(?=[^\s$])/, (text) => {
    const found = /^\$([^$\n]*[^\s$\\])\$(?!\d)/.exec(text);
    return found && [mathNode(found[1], false), found[0].length];
  }],
  [/^(\*\*|__)(?=\S)/, (text) => between(text, text.slice(0, 2), text.slice(0, 2), (inner) => make('strong', ...inline(inner)))],
  [/^~~(?=\S)/, (text) => between(text, '~~', '~~', (inner) => make('del', ...inline(inner)))],
  [/^[*_](?=\S)/, (text, before) => {
    if (text[0] === '_' && /\w$/.test(before)) return null;  // snake_case
    return between(text, text[0], text[0], (inner) => make('em', ...inline(inner)));
  }],
  [/^\[/, (text) => {
    const found = /^\[([^\]]*)\]\(([^()\s]*)\)/.exec(text);
    if (!found || !/^(https?:|mailto:|#)/i.test(found[2])) return null;
    const link = make('a', ...inline(found[1]));
    link.href = found[2];
    link.rel = 'noopener noreferrer';
    link.target = '_blank';
    return [link, found[0].length];
  }],
  [/^\\[\\`*_{}[\]()#+\-.!|~$]/, (text) => [text[1], 2]],
];

function between(text, open, close, build) {
  const end = text.indexOf(close, open.length);
  if (end <= open.length || /\s/.test(text[end - 1]) && open === close) return null;
  return [build(text.slice(open.length, end)), end + close.length];
}

function inline(text) {
  const nodes = [];
  let plain = '';
  for (let at = 0; at < text.length;) {
    const rest = text.slice(at);
    let found = null;
    for (const [pattern, read] of INLINE) {
      if (pattern.test(rest) && (found = read(rest, plain))) break;
    }
    if (!found) {
      plain += text[at++];
      continue;
    }
    if (plain) nodes.push(plain);
    plain = '';
    nodes.push(found[0]);
    at += found[1];
  }
  if (plain) nodes.push(plain);
  return nodes;
}

const lines = (text) => text.split('\n').flatMap((line, i) => i ? [make('br'), ...inline(line)] : inline(line));

function list(items, ordered, start) {
  const node = make(ordered ? 'ol' : 'ul', ...items.map((item) => make('li', ...blocks(item))));
  if (ordered && start !== 1) node.start = start;
  return node;
}

const cells = (row) => row.trim().replace(/^\||\|$/g, '').split('|').map((cell) => cell.trim());

// One block at the front of the lines: [node, lines it took].
function block(rows) {
  const first = rows[0];
  let found;
  if ((found = /^\s*(```+|~~~+)\s*(\S*)/.exec(first))) {
    let end = rows.findIndex((row, i) => i > 0 && row.trim().startsWith(found[1]));
    if (end < 0) end = rows.length;
    return [make('pre', make('code', rows.slice(1, end).join('\n'))), end + 1];
  }
  if ((found = /^\s*(\$\$|\\\[)/.exec(first))) {
    const close = found[1] === '$$' ? '$$' : '\\]';
    const text = rows.join('\n'), begin = text.indexOf(found[1]) + 2, end = text.indexOf(close, begin);
    if (end > 0) return [mathNode(text.slice(begin, end), true), text.slice(0, end).split('\n').length];
  }
  if ((found = /^(#{1,4})\s+(.*)/.exec(first))) return [make(`h${found[1].length}`, ...inline(found[2])), 1];
  if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(first)) return [make('hr'), 1];
  if (/^\s*>/.test(first)) {
    let end = rows.findIndex((row) => !/^\s*>/.test(row));
    if (end < 0) end = rows.length;
    return [make('blockquote', ...blocks(rows.slice(0, end).map((row) => row.replace(/^\s*> ?/, '')))), end];
  }
  if (rows.length > 1 && first.includes('|') && /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/.test(rows[1]) && rows[1].includes('-')) {
    let end = rows.findIndex((row, i) => i > 1 && !row.includes('|'));
    if (end < 0) end = rows.length;
    const row = (text, kind) => make('tr', ...cells(text).map((cell) => make(kind, ...inline(cell))));
    return [make('table', make('thead', row(first, 'th')), make('tbody', ...rows.slice(2, end).map((text) => row(text, 'td')))), end];
  }
  if ((found = /^(\s*)([-*+]|\d{1,9}[.)])\s+/.exec(first))) return readList(rows, found);
  let end = rows.findIndex((row, i) => i > 0 && (!row.trim() || /^(\s*(```|~~~|>|\$\$|\\\[)|#{1,4}\s|\s*([-*+]|\d{1,9}[.)])\s)/.test(row)));
  if (end < 0) end = rows.length;
  return [make('p', ...lines(rows.slice(0, end).join('\n'))), end];
}

function readList(rows, found) {
  const ordered = /\d/.test(found[2]), indent = found[1].length, items = [];
  let at = 0;
  while (at < rows.length) {
    const item = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)/.exec(rows[at]);
    if (item && item[1].length <= indent + 1 && /\d/.test(item[2]) === ordered) {
      items.push([item[3]]);
    } else if (items.length && /^\s{2,}\S/.test(rows[at])) {
      items.at(-1).push(rows[at].replace(/^\s{1,4}/, ''));
    } else if (items.length && !rows[at].trim() && /^(\s{2,}\S|\s*([-*+]|\d{1,9}[.)])\s)/.test(rows[at + 1] ?? '')) {
      items.at(-1).push('');
    } else {
      break;
    }
    ++at;
  }
  return [list(items, ordered, parseInt(found[2], 10)), at];
}

function blocks(rows) {
  const nodes = [];
  for (let at = 0; at < rows.length;) {
    if (!rows[at].trim()) {
      ++at;
      continue;
    }
    const [node, taken] = block(rows.slice(at));
    nodes.push(node);
    at += Math.max(taken, 1);
  }
  return nodes;
}

export const markdown = (text) => blocks(text.replace(/\r/g, '').split('\n'));
