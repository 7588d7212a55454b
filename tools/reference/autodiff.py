"""Reverse-mode differentiation over float64 NumPy arrays: just what the reference model needs."""
from __future__ import annotations

import numpy as np


class Var:
    """An array and how it came about. `parents` holds (Var, vjp): vjp maps d(out) to what it adds to d(parent)."""

    __slots__ = ("value", "parents", "tracked", "grad")
    __array_ufunc__ = None  # array * Var must reach Var.__rmul__

    def __init__(self, value, parents=(), tracked=False):
        self.value = np.asarray(value, dtype=np.float64)
        self.parents = [(p, vjp) for p, vjp in parents if p.tracked]
        self.tracked = tracked or bool(self.parents)
        self.grad = None

    @property
    def shape(self):
        return self.value.shape

    def __add__(self, other):
        b = as_var(other)
        return Var(self.value + b.value, [(self, lambda g: fold(g, self.shape)), (b, lambda g: fold(g, b.shape))])

    def __mul__(self, other):
        b = as_var(other)
        return Var(self.value * b.value, [(self, lambda g: fold(g * b.value, self.shape)),
                                          (b, lambda g: fold(g * self.value, b.shape))])

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -as_var(other)

    def __truediv__(self, other):
        return self * as_var(other) ** -1.0

    def __pow__(self, power: float):
        return Var(self.value ** power, [(self, lambda g: g * power * self.value ** (power - 1.0))])

    def __matmul__(self, other):
        a, b = self, other
        return Var(a.value @ b.value, [(a, lambda g: fold(g @ np.swapaxes(b.value, -1, -2), a.shape)),
                                       (b, lambda g: fold(np.swapaxes(a.value, -1, -2) @ g, b.shape))])

    def __getitem__(self, key):
        def vjp(g):
            out = np.zeros(self.shape)
            np.add.at(out, key, g)  # a key may name an element twice
            return out
        return Var(self.value[key], [(self, vjp)])

    def sum(self, axis=None, keepdims=False):
        def vjp(g):
            return np.broadcast_to(g if keepdims or axis is None else np.expand_dims(g, axis), self.shape)
        return Var(self.value.sum(axis=axis, keepdims=keepdims), [(self, vjp)])

    def mean(self, axis=None, keepdims=False):
        total = self.sum(axis, keepdims)
        return total * (total.value.size / self.value.size)

    def reshape(self, *shape):
        return Var(self.value.reshape(shape), [(self, lambda g: g.reshape(self.shape))])

    def transpose(self, *axes):
        return Var(self.value.transpose(axes), [(self, lambda g: g.transpose(np.argsort(axes)))])

    @property
    def T(self):
        return self.transpose(*reversed(range(self.value.ndim)))


def as_var(x) -> Var:
    return x if isinstance(x, Var) else Var(x)


def fold(g, shape):
    """Sums a gradient over the axes along which its operand was broadcast."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape)))) if g.ndim > len(shape) else g
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=axes, keepdims=True) if axes else g


def concat(parts, axis=-1) -> Var:
    edges = np.cumsum([0] + [p.shape[axis] for p in parts])
    cut = lambda a, b: lambda g: np.take(g, np.arange(a, b), axis=axis)
    return Var(np.concatenate([p.value for p in parts], axis=axis),
               [(p, cut(a, b)) for p, a, b in zip(parts, edges, edges[1:])])


def scatter_rows(y: Var, rows, count: int) -> Var:
    """[len(rows), h] -> [count, h] with y added at `rows`."""
    out = np.zeros((count,) + y.shape[1:])
    np.add.at(out, rows, y.value)
    return Var(out, [(y, lambda g: g[rows])])


def sigmoid(x: Var) -> Var:
    s = 0.5 * (1.0 + np.tanh(0.5 * x.value))
    return Var(s, [(x, lambda g: g * s * (1.0 - s))])


def silu(x: Var) -> Var:
    return x * sigmoid(x)


def log_softmax(x: Var) -> Var:
    """Over the last axis."""
    z = x.value - x.value.max(axis=-1, keepdims=True)
    y = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return Var(y, [(x, lambda g: g - np.exp(y) * g.sum(axis=-1, keepdims=True))])


def softmax(x: Var) -> Var:
    """Over the last axis; entries of -inf get probability and gradient 0."""
    e = np.exp(x.value - x.value.max(axis=-1, keepdims=True))
    p = e / e.sum(axis=-1, keepdims=True)
    return Var(p, [(x, lambda g: p * (g - (g * p).sum(axis=-1, keepdims=True)))])


def backward(root: Var) -> None:
    """Fills `grad` of every tracked Var that the scalar `root` depends on."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((p, False) for p, _ in node.parents)
    root.grad = np.ones(root.shape)
    for node in reversed(order):
        for parent, vjp in node.parents:
            g = vjp(node.grad)
            parent.grad = g if parent.grad is None else parent.grad + g
        if node.parents:
            node.grad = None
