// Memory ops of ReferenceOps; included by reference_ops.cpp only.
#pragma once

#include <cstring>

#include "reference/reference_ops.h"

namespace fathom {

template <class T>
Buffer ReferenceOps<T>::allocate(int64_t bytes) {
    return Buffer::host(bytes);
}

template <class T>
void ReferenceOps<T>::write(const Tensor& device, const void* host) {
    check(device.contiguous(), "write: not contiguous");
    if (device.size() > 0) std::memcpy(device.data, host, static_cast<size_t>(device.bytes()));
}

template <class T>
void ReferenceOps<T>::read_back(void* host, const Tensor& device) {
    check(device.contiguous(), "read_back: not contiguous");
    if (device.size() > 0) std::memcpy(host, device.data, static_cast<size_t>(device.bytes()));
}

template <class T>
void ReferenceOps<T>::fill(const Tensor& y, double value) {
    Values<T> out(y);
    for (T& element : out.data) element = T(value);
    out.store(y);
}

template <class T>
void ReferenceOps<T>::copy(const Tensor& y, const Tensor& x) {
    Values<T>(x).store(y);
}

template <class T>
void ReferenceOps<T>::add(const Tensor& y, const Tensor& a, const Tensor& b) {
    Values<T> sum(a);
    const Values<T> other(b);
    check(sum.shape == other.shape, "add: shapes differ");
    for (size_t i = 0; i < sum.data.size(); ++i) sum.data[i] += other.data[i];
    sum.store(y);
}

template <class T>
void ReferenceOps<T>::add_bias(const Tensor& y, const Tensor& bias) {
    Values<T> out(y);
    const Values<T> b(bias);
    check(b.dim(0) == out.dim(1), "add_bias: shapes differ");
    for (int64_t i = 0; i < out.dim(0); ++i)
        for (int64_t j = 0; j < out.dim(1); ++j) out(i, j) += b(j);
    out.store(y);
}

template <class T>
void ReferenceOps<T>::add_bias_backward(const Tensor& dbias, const Tensor& dy) {
    Values<T> db(dbias);
    const Values<T> g(dy);
    check(db.dim(0) == g.dim(1), "add_bias_backward: shapes differ");
    for (int64_t i = 0; i < g.dim(0); ++i)
        for (int64_t j = 0; j < g.dim(1); ++j) db(j) += g(i, j);
    db.store(dbias);
}

template <class T>
void ReferenceOps<T>::sum_heads(const Tensor& y, const Tensor& x) {
    const Values<T> in(x);  // [n, h, d]
    Values<T> sum(in.dim(0), in.dim(2));
    for (int64_t i = 0; i < in.dim(0); ++i)
        for (int64_t j = 0; j < in.dim(1); ++j)
            for (int64_t c = 0; c < in.dim(2); ++c) sum(i, c) += in(i, j, c);
    sum.store(y);
}

template <class T>
void ReferenceOps<T>::gather_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    const Values<int64_t> index(rows);
    for (int64_t i = 0; i < index.dim(0); ++i) Values<T>(x.slice(0, index(i), index(i) + 1)).store(y.slice(0, i, i + 1));
}

template <class T>
void ReferenceOps<T>::gather_rows_backward(const Tensor& dx, const Tensor& dy, const Tensor& rows) {
    const Values<int64_t> index(rows);
    const Values<T> g(dy);
    Values<T> sum(dx);
    for (int64_t i = 0; i < index.dim(0); ++i)
        for (int64_t c = 0; c < g.dim(1); ++c) sum(index(i), c) += g(i, c);
    sum.store(dx);
}

template <class T>
void ReferenceOps<T>::scatter_rows(const Tensor& y, const Tensor& x, const Tensor& rows) {
    const Values<int64_t> index(rows);
    for (int64_t i = 0; i < index.dim(0); ++i) Values<T>(x.slice(0, i, i + 1)).store(y.slice(0, index(i), index(i) + 1));
}

}  // namespace fathom
