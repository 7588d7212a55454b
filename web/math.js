// The part of TeX that models write, as MathML. What is not understood is shown as it stands.
const NS = 'http://www.w3.org/1998/Math/MathML';
const make = (name, ...children) => {
  const node = document.createElementNS(NS, name);
  node.append(...children);
  return node;
};

const GREEK = 'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigmaf sigma tau upsilon phi chi psi omega'.split(' ');
const SYMBOLS = { cdot: '·', times: '×', div: '÷', pm: '±', mp: '∓', leq: '≤', le: '≤', geq: '≥', ge: '≥', neq: '≠', ne: '≠', approx: '≈', equiv: '≡', sim: '∼', propto: '∝',
  infty: '∞', partial: '∂', nabla: '∇', in: '∈', notin: '∉', subset: '⊂', subseteq: '⊆', cup: '∪', cap: '∩', emptyset: '∅', forall: '∀', exists: '∃', to: '→', rightarrow: '→', Rightarrow: '⇒',
  leftarrow: '←', Leftarrow: '⇐', leftrightarrow: '↔', Leftrightarrow: '⇔', implies: '⇒', iff: '⇔', mapsto: '↦', ldots: '…', cdots: '⋯', dots: '…', vdots: '⋮', ddots: '⋱', circ: '∘', ast: '∗', star: '⋆',
  oplus: '⊕', otimes: '⊗', wedge: '∧', land: '∧', vee: '∨', lor: '∨', neg: '¬', lnot: '¬', mid: '∣', parallel: '∥', perp: '⊥', angle: '∠', ell: 'ℓ', hbar: 'ℏ', Re: 'ℜ', Im: 'ℑ', langle: '⟨', rangle: '⟩',
  lfloor: '⌊', rfloor: '⌋', lceil: '⌈', rceil: '⌉', ll: '≪', gg: '≫', prime: '′', degree: '°', quad: '\u2003', qquad: '\u2003\u2003', ',': '\u2009', ';': '\u2005', ':': '\u2005', '!': '', ' ': ' ',
  '{': '{', '}': '}', '%': '%', '$': '$', '#': '#', '&': '&', _: '_', '|': '‖', backslash: '\\', varepsilon: 'ε', vartheta: 'ϑ', varphi: 'φ', therefore: '∴', because: '∵', setminus: '∖' };
const LARGE = { sum: '∑', prod: '∏', int: '∫', iint: '∬', oint: '∮', bigcup: '⋃', bigcap: '⋂' };
const NAMES = 'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp max min sup inf lim arg det dim ker deg gcd Pr mod argmax argmin'.split(' ');
const LIMITS = new Set(['sum', 'prod', 'lim', 'max', 'min', 'sup', 'inf', 'argmax', 'argmin', 'bigcup', 'bigcap']);
const ACCENTS = { hat: '^', widehat: '^', bar: '¯', overline: '¯', tilde: '~', widetilde: '~', vec: '→', dot: '˙', ddot: '¨' };
const DOUBLE = { R: 'ℝ', N: 'ℕ', Z: 'ℤ', Q: 'ℚ', C: 'ℂ', E: '𝔼', P: 'ℙ' };

class Reader {
  constructor(text) {
    this.tokens = text.match(/\\[a-zA-Z]+|\\[^a-zA-Z]|[0-9]+(?:\.[0-9]+)?|\s+|[^]/gu) ?? [];
    this.at = 0;
  }
  skip() {
    while (/^\s/.test(this.tokens[this.at] ?? 'x')) ++this.at;
  }
  peek() {
    this.skip();
    return this.tokens[this.at];
  }
  next() {
    const token = this.peek();
    ++this.at;
    return token;
  }
  // The text of a {group}, as it stands.
  raw() {
    if (this.peek() !== '{') return this.next() ?? '';
    let depth = 0, text = '';
    do {
      const token = this.tokens[this.at++];
      if (token === undefined) break;
      depth += token === '{' ? 1 : token === '}' ? -1 : 0;
      text += token;
    } while (depth > 0);
    return text.slice(1, -1);
  }
}

const row = (nodes) => nodes.length === 1 ? nodes[0] : make('mrow', ...nodes);

function group(reader) {
  if (reader.peek() !== '{') return atom(reader) ?? make('mrow');
  reader.next();
  const inner = sequence(reader, (token) => token === '}');
  reader.next();
  return row(inner);
}

function sequence(reader, ends) {
  const nodes = [];
  for (let token = reader.peek(); token !== undefined && !ends(token); token = reader.peek()) {
    const before = reader.at, node = scripts(reader);
    if (node) nodes.push(node);
    if (reader.at === before) ++reader.at;  // a stray }
  }
  return nodes;
}

function scripts(reader) {
  const token = reader.peek();
  let base = token === '_' || token === '^' ? make('mrow') : atom(reader);
  let below, above;
  for (let next = reader.peek(); next === '_' || next === '^' || next === "'"; next = reader.peek()) {
    reader.next();
    if (next === '_') below = group(reader);
    else if (next === '^') above = group(reader);
    else above = make('mo', '′');
  }
  if (!below && !above) return base;
  base ??= make('mrow');
  const limits = LIMITS.has(token?.slice(1));
  if (below && above) return make(limits ? 'munderover' : 'msubsup', base, below, above);
  return below ? make(limits ? 'munder' : 'msub', base, below) : make(limits ? 'mover' : 'msup', base, above);
}

function fence(reader) {
  const open = reader.next();
  const inner = sequence(reader, (token) => token === '\\right');
  reader.next();
  const close = reader.next();
  const side = (token) => token === '.' || token === undefined ? [] : [make('mo', SYMBOLS[token.slice(1)] ?? token)];
  return make('mrow', ...side(open), ...inner, ...side(close));
}

function table(reader) {
  const kind = reader.raw();
  if (kind === 'array') reader.raw();
  const rows = [[]];
  while (reader.peek() !== undefined && reader.peek() !== '\\end') {
    const cell = sequence(reader, (token) => token === '&' || token === '\\\\' || token === '\\end');
    rows.at(-1).push(make('mtd', ...cell));
    const separator = reader.peek();
    if (separator === '&' || separator === '\\\\') reader.next();
    if (separator === '\\\\') rows.push([]);
  }
  reader.next();
  reader.raw();
  const body = make('mtable', ...rows.filter((cells) => cells.length).map((cells) => make('mtr', ...cells)));
  const sides = { pmatrix: '()', bmatrix: '[]', vmatrix: '||', cases: '{' }[kind] ?? '';
  return make('mrow', ...[...sides.slice(0, 1)].map((s) => make('mo', s)), body, ...[...sides.slice(1)].map((s) => make('mo', s)));
}

function command(reader, name) {
  if (name === 'frac' || name === 'dfrac' || name === 'tfrac') return make('mfrac', group(reader), group(reader));
  if (name === 'binom') return make('mrow', make('mo', '('), make('mtable', make('mtr', make('mtd', group(reader))), make('mtr', make('mtd', group(reader)))), make('mo', ')'));
  if (name === 'sqrt') {
    if (reader.peek() !== '[') return make('msqrt', group(reader));
    reader.next();
    const degree = row(sequence(reader, (token) => token === ']'));
    reader.next();
    return make('mroot', group(reader), degree);
  }
  if (name === 'left') return fence(reader);
  if (name === 'begin') return table(reader);
  if (name in ACCENTS) return make('mover', group(reader), make('mo', ACCENTS[name]));
  if (name === 'boxed') return make('mrow', make('mo', '▢'), group(reader));
  if (name === 'mathbb') return make('mi', [...reader.raw()].map((c) => DOUBLE[c] ?? c).join(''));
  if (['text', 'textbf', 'textit', 'mathrm', 'operatorname', 'mathbf', 'mathcal', 'mathit', 'mathsf', 'boldsymbol'].includes(name)) {
    const plain = name.startsWith('text') || name === 'mathrm' || name === 'operatorname';
    const text = reader.raw();
    return plain ? make('mtext', text) : make('mi', text);
  }
  if (['displaystyle', 'textstyle', 'big', 'Big', 'bigg', 'Bigg', 'bigl', 'bigr', 'limits', 'nonumber'].includes(name)) return null;
  if (name in LARGE) return make('mo', LARGE[name]);
  if (NAMES.includes(name)) return make('mi', name);
  const greek = GREEK.indexOf(name), upper = GREEK.indexOf(name.toLowerCase());
  if (greek >= 0) return make('mi', String.fromCodePoint(0x3B1 + greek));
  if (upper >= 0 && name[0] < 'a') return make('mi', String.fromCodePoint(0x391 + upper));
  if (name in SYMBOLS) return make('mo', SYMBOLS[name]);
  return make('mtext', `\\${name}`);
}

function atom(reader) {
  const token = reader.peek();
  if (token === undefined || token === '}') return null;
  if (token === '{') return group(reader);
  reader.next();
  if (token[0] === '\\') return command(reader, token.slice(1));
  if (/^[0-9]/.test(token)) return make('mn', token);
  return make(/^\p{L}/u.test(token) ? 'mi' : 'mo', token === '-' ? '−' : token);
}

export function mathNode(tex, display) {
  const math = make('math');
  if (display) math.setAttribute('display', 'block');
  math.append(make('mrow', ...sequence(new Reader(tex), () => false)));
  math.setAttribute('aria-label', tex);
  return math;
}
