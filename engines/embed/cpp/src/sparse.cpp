#include "sparse.hpp"

#include <algorithm>

namespace lhanet {

bool Sparse::is_identity() const {
    for (std::size_t row = 0; row < rows(); ++row) {
        if (begins[row + 1] != row + 1 || columns[row] != row || values[row] != 1.0) {
            return false;
        }
    }
    return true;
}

void RowBuilder::add(std::size_t column, double value) { row_.push_back({column, value}); }

void RowBuilder::finish_row() {
    std::stable_sort(row_.begin(), row_.end(), [](const Entry& a, const Entry& b) { return a.column < b.column; });
    for (std::size_t at = 0; at < row_.size();) {
        const std::size_t column = row_[at].column;
        double sum = row_[at].value;
        for (++at; at < row_.size() && row_[at].column == column; ++at) {
            sum += row_[at].value;
        }
        if (sum != 0) {
            matrix.columns.push_back(column);
            matrix.values.push_back(sum);
        }
    }
    matrix.begins.push_back(matrix.columns.size());
    row_.clear();
}

Sparse product(const Sparse& left, const Sparse& right, std::size_t columns) {
    Sparse result;
    std::vector<double> sums(columns, 0.0);
    std::vector<bool> is_met(columns, false);
    std::vector<std::size_t> met;
    for (std::size_t row = 0; row < left.rows(); ++row) {
        for (std::size_t at = left.begins[row]; at < left.begins[row + 1]; ++at) {
            const std::size_t middle = left.columns[at];
            for (std::size_t to = right.begins[middle]; to < right.begins[middle + 1]; ++to) {
                const std::size_t column = right.columns[to];
                sums[column] += left.values[at] * right.values[to];
                if (!is_met[column]) {
                    is_met[column] = true;
                    met.push_back(column);
                }
            }
        }
        for (auto column = met.rbegin(); column != met.rend(); ++column) {
            if (sums[*column] != 0) {
                result.columns.push_back(*column);
                result.values.push_back(sums[*column]);
            }
            sums[*column] = 0;
            is_met[*column] = false;
        }
        met.clear();
        result.begins.push_back(result.columns.size());
    }
    return result;
}

}  // namespace lhanet
