// Sparse matrices of doubles, as few operations as blending takes, in SciPy's order of summation.
#pragma once

#include <cstddef>
#include <vector>

namespace lhanet {

/// A matrix by its rows: row r has `columns[at]` and `values[at]` for `at` from begins[r] to begins[r + 1].
struct Sparse {
    std::vector<std::size_t> begins{0};
    std::vector<std::size_t> columns;
    std::vector<double> values;

    std::size_t rows() const { return begins.size() - 1; }

    /// Whether a product with it gives the other factor.
    bool is_identity() const;
};

/// Builds a matrix row by row: what is given for one place is summed up, and columns stand in order.
class RowBuilder {
public:
    void add(std::size_t column, double value);
    /// End a row; places whose sum is 0 are left out.
    void finish_row();
    Sparse matrix;

private:
    struct Entry {
        std::size_t column;
        double value;
    };
    std::vector<Entry> row_;
};

/// The product left @ right, where `right` has `columns` columns.
///
/// A row's entries stand in the reverse of the order in which they were met, as in SciPy's product of CSR matrices:
/// sums over them are rounded alike.
Sparse product(const Sparse& left, const Sparse& right, std::size_t columns);

/// out[i] = the sum over entries of row `row` of value * in[column * stride + i], summed in the row's order.
template <typename T>
void combine_row(
    const Sparse& matrix, std::size_t row, const T* in, std::size_t stride, std::size_t count, double* out) {
    const std::size_t end = matrix.begins[row + 1];
    std::size_t at = matrix.begins[row];
    const auto value = [&](std::size_t entry) { return matrix.values[entry]; };
    const auto from = [&](std::size_t entry) { return in + matrix.columns[entry] * stride; };
    // Two terms at a time, in order: a pass over memory for every pair.
    if (end - at >= 2) {
        const double a = value(at), b = value(at + 1);
        const T *x = from(at), *y = from(at + 1);
        for (std::size_t i = 0; i < count; ++i) {
            out[i] = a * static_cast<double>(x[i]) + b * static_cast<double>(y[i]);
        }
        at += 2;
    } else if (end > at) {
        const double a = value(at);
        const T* x = from(at);
        for (std::size_t i = 0; i < count; ++i) {
            out[i] = a * static_cast<double>(x[i]);
        }
        ++at;
    } else {
        for (std::size_t i = 0; i < count; ++i) {
            out[i] = 0;
        }
    }
    for (; end - at >= 2; at += 2) {
        const double a = value(at), b = value(at + 1);
        const T *x = from(at), *y = from(at + 1);
        for (std::size_t i = 0; i < count; ++i) {
            out[i] = out[i] + a * static_cast<double>(x[i]) + b * static_cast<double>(y[i]);
        }
    }
    if (at < end) {
        const double a = value(at);
        const T* x = from(at);
        for (std::size_t i = 0; i < count; ++i) {
            out[i] += a * static_cast<double>(x[i]);
        }
    }
}

}  // namespace lhanet
