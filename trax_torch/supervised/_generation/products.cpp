// Products of a few rows by weights of 8 or 4 bits: y = (a q') * scale, a and q integers.
//
// A loop multiplies bytes, of which the weights have no sign: they are q + 128, or q + 8, and sums
// begin with what makes up for it. Vectors are of 32 bytes, as GCC and Clang have them on any
// processor; of torch no more is used than what it promises to keep, its stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace {

using torch::stable::Tensor;

typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef float Floats __attribute__((vector_size(32)));

constexpr int64_t kWidth = sizeof(Bytes);
constexpr float kSteps = 63;  // two products of 63 and 255 are the most that 16 bits hold, in AVX2
constexpr int64_t kOutputs = 32;  // whose weights stay in a cache while rows go by
constexpr int64_t kForAThread = 1 << 18;  // products

template <class Vector = Bytes>
inline Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

// Adds to each sum four products, of numbers without sign, u, and with, s.
inline Ints plus_products(Ints sums, Bytes u, Bytes s) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return (Ints)_mm256_dpbusd_epi32((__m256i)sums, (__m256i)u, (__m256i)s);
#elif defined(__AVX2__)
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)u, (__m256i)s);
  return sums + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  for (int64_t i = 0; i < kWidth; ++i) sums[i / 4] += int32_t{u[i]} * static_cast<int8_t>(s[i]);
  return sums;
#endif
}

// The sum of each of N <= 8 vectors.
template <int N>
inline void sums_of(const Ints* v, int32_t* out) {
#ifdef __AVX2__
  const auto pairs = [&](int i) {
    const __m256i first = (__m256i)v[i < N ? i : 0], second = (__m256i)v[i + 1 < N ? i + 1 : 0];
    return _mm256_hadd_epi32(first, second);
  };
  const auto fours = [&](int i) { return _mm256_hadd_epi32(pairs(i), pairs(i + 2)); };
  const __m256i low = fours(0), high = N > 4 ? fours(4) : low;
  const __m256i halves = _mm256_permute2x128_si256(low, high, 0x20);
  const Ints all = (Ints)_mm256_add_epi32(halves, _mm256_permute2x128_si256(low, high, 0x31));
  for (int i = 0; i < N; ++i) out[i] = all[i];
#else
  for (int i = 0; i < N; ++i) {
    out[i] = 0;
    for (int j = 0; j < 8; ++j) out[i] += v[i][j];
  }
#endif
}

inline float sum_of(Floats v) {
  return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
}

// Rows of activations as integers: `size` times `a` is what they were, to within half of `size`.
struct Rows {
  int64_t n, d, stride;
  std::vector<int8_t> a;    // (n, d and zeros up to a multiple of 32)
  std::vector<float> size;  // NaN for a row in which something is no number, or infinite

  explicit Rows(const Tensor& x)
      : d(x.size(x.dim() - 1)), stride((d + kWidth - 1) / kWidth * kWidth) {
    n = x.numel() / std::max<int64_t>(d, 1);
    a.resize(n * stride);
    size.resize(n);
    std::vector<float> row(stride);
    for (int64_t r = 0; r < n; ++r) {
      std::memcpy(row.data(), static_cast<const float*>(x.data_ptr()) + r * d, d * sizeof(float));
      round(row, r);
    }
  }

  void round(const std::vector<float>& row, int64_t r) {
    Floats least = {}, most = {};
    Ints are_numbers = Ints{} - 1;
    for (int64_t k = 0; k < stride; k += 8) {
      const Floats x = load<Floats>(&row[k]);
      least = x < least ? x : least;
      most = x > most ? x : most;
      are_numbers &= (x <= FLT_MAX) & (x >= -FLT_MAX);
    }
    float largest = 0;
    bool is_bad = false;
    for (int i = 0; i < 8; ++i) {
      largest = std::max({largest, most[i], -least[i]});
      is_bad |= !are_numbers[i];
    }
    size[r] = is_bad ? std::numeric_limits<float>::quiet_NaN() : largest / kSteps;
    if (is_bad || largest == 0) return;  // its integers are 0
    for (int64_t k = 0; k < stride; k += 8) {
      // Added to a number this large, what is behind the point is rounded away.
      const Floats rounded = load<Floats>(&row[k]) / largest * kSteps + 0x1.8p23f;
      const Ints whole = (Ints)rounded - (Ints)(Floats{} + 0x1.8p23f);
      for (int i = 0; i < 8; ++i) a[r * stride + k + i] = static_cast<int8_t>(whole[i]);
    }
  }
};

// Weights (n, d) of 8 bits, a scale for each output.
struct Of8Bits {
  const uint8_t* q;
  const float* scale;
  int64_t n, d;
  std::vector<int32_t> begin;  // of a row's sums

  Of8Bits(const Tensor& q, const Tensor& scale, Rows& rows)
      : q(static_cast<const uint8_t*>(q.data_ptr())),
        scale(static_cast<const float*>(scale.data_ptr())),
        n(q.size(0)),
        d(q.size(1)),
        begin(rows.n) {
    for (int64_t r = 0; r < rows.n; ++r)
      for (int64_t k = 0; k < d; ++k) begin[r] -= 128 * rows.a[r * rows.stride + k];
  }

  // y (rows, n) of R rows from the r-th on, and O outputs from the o-th on.
  template <int R, int O>
  void multiply(const Rows& rows, int64_t r, int64_t o, float* y) const {
    const Bytes flip = Bytes{} + 0x80;
    const uint8_t* w = q + o * d;
    const int8_t* a = &rows.a[r * rows.stride];
    Ints sums[R * O] = {};
    const auto add = [&](int j, Bytes weights, int64_t k) {
      for (int i = 0; i < R; ++i)
        sums[i * O + j] =
            plus_products(sums[i * O + j], weights ^ flip, load(a + i * rows.stride + k));
    };
    int64_t k = 0;
    for (; k + kWidth <= d; k += kWidth)
      for (int j = 0; j < O; ++j) add(j, load(w + j * d + k), k);
    for (int j = 0; k < d && j < O; ++j) {
      uint8_t rest[kWidth] = {};
      std::memcpy(rest, w + j * d + k, d - k);
      add(j, load(rest), k);
    }
    int32_t totals[R * O];
    sums_of<R * O>(sums, totals);
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < O; ++j)
        y[(r + i) * n + o + j] =
            (totals[i * O + j] + begin[r + i]) * (rows.size[r + i] * scale[o + j]);
  }
};

// Weights (n, d) of 4 bits, a scale for each group, of 64, 128 or 256; see groups.py.
struct Of4Bits {
  const uint8_t* q;
  const float* scale;
  int64_t n, d, n_groups;
  std::vector<int32_t> begin;  // (rows, groups)

  Of4Bits(const Tensor& q, const Tensor& scale, Rows& rows)
      : q(static_cast<const uint8_t*>(q.data_ptr())),
        scale(static_cast<const float*>(scale.data_ptr())),
        n(q.size(0)),
        d(2 * q.size(1)),
        n_groups(scale.size(1)),
        begin(rows.n * n_groups) {
    const int64_t n_each = d / n_groups, n_words = n_each / 8;
    std::vector<int8_t> ordered(n_each);
    for (int64_t i = 0; i < rows.n * n_groups; ++i) {
      int8_t* a = &rows.a[i * n_each];
      for (int64_t k = 0; k < n_each; ++k) begin[i] -= 8 * a[k];
      // As their weights come: the lower halves of 32 bytes, then the higher ones.
      for (int64_t b = 0; b < 4; ++b)
        for (int64_t j = 0; j < n_words; ++j) {
          const int64_t byte = 4 * j + b, to = byte + byte / kWidth * kWidth;
          ordered[to] = a[2 * b * n_words + j];
          ordered[to + kWidth] = a[(2 * b + 1) * n_words + j];
        }
      std::copy(ordered.begin(), ordered.end(), a);
    }
  }

  template <int R, int O>
  void multiply(const Rows& rows, int64_t r, int64_t o, float* y) const {
    for (int j = 0; j < O; ++j) multiply<R>(rows, r, o + j, y);
  }

  template <int R>
  void multiply(const Rows& rows, int64_t r, int64_t o, float* y) const {
    const Bytes flip = (Bytes)(Ints{} + std::numeric_limits<int32_t>::min());
    const uint8_t* w = q + o * (d / 2);
    const uint8_t* end = w;
    const int8_t* a = &rows.a[r * rows.stride];
    Floats sums[R] = {};
    for (int64_t g = 0; g < n_groups; ++g) {
      Ints of_group[R];
      for (int i = 0; i < R; ++i) of_group[i] = Ints{begin[(r + i) * n_groups + g]};
      for (end += d / n_groups / 2; w < end; w += kWidth, a += 2 * kWidth) {
        const Bytes both = load(w) ^ flip;
        for (int i = 0; i < R; ++i) {
          const int8_t* low = a + i * rows.stride;
          of_group[i] = plus_products(of_group[i], both & 15, load(low));
          of_group[i] = plus_products(of_group[i], both >> 4, load(low + kWidth));
        }
      }
      for (int i = 0; i < R; ++i)
        sums[i] += __builtin_convertvector(of_group[i], Floats) * scale[o * n_groups + g];
    }
    for (int i = 0; i < R; ++i) y[(r + i) * n + o] = sum_of(sums[i]) * rows.size[r + i];
  }
};

// R rows, in so many outputs at a time that their sums fit in registers.
template <int R, class Weights>
void multiply(const Weights& weights, const Rows& rows, int64_t r, int64_t o, int64_t end, float* y) {
  constexpr int kAtOnce = R == 1 ? 8 : R == 2 ? 4 : 2;
  for (; o + kAtOnce <= end; o += kAtOnce) weights.template multiply<R, kAtOnce>(rows, r, o, y);
  for (; o < end; ++o) weights.template multiply<R, 1>(rows, r, o, y);
}

template <class Weights>
void multiply(const Weights& weights, const Rows& rows, int64_t begin, int64_t end, float* y) {
  for (int64_t o = begin; o < end; o += kOutputs)
    for (int64_t r = 0, last = std::min(o + kOutputs, end); r < rows.n; r += 4) switch (rows.n - r) {
        case 1: multiply<1>(weights, rows, r, o, last, y); break;
        case 2: multiply<2>(weights, rows, r, o, last, y); break;
        case 3: multiply<3>(weights, rows, r, o, last, y); break;
        default: multiply<4>(weights, rows, r, o, last, y);
      }
}

Tensor in_order(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

template <class Weights>
Tensor linear(Tensor x, Tensor q, Tensor scale) {
  x = in_order(x), q = in_order(q), scale = in_order(scale);
  Rows rows(x);
  const Weights weights(q, scale, rows);
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = weights.n;
  Tensor y = torch::stable::new_empty(x, shape);
  float* out = static_cast<float*>(y.data_ptr());
  const int64_t n_each = kForAThread / std::max<int64_t>(rows.n * weights.d, 1) + 1;
  if (weights.n <= n_each || torch::stable::get_num_threads() == 1)
    multiply(weights, rows, 0, weights.n, out);
  else
    torch::stable::parallel_for(0, weights.n, n_each, [&](int64_t begin, int64_t end) {
      multiply(weights, rows, begin, end, out);
    });
  return y;
}

}  // namespace

// native.py defines them.
STABLE_TORCH_LIBRARY_IMPL(trax_torch, CPU, m) {
  m.impl("int8_linear", TORCH_BOX(&linear<Of8Bits>));
  m.impl("int4_linear", TORCH_BOX(&linear<Of4Bits>));
}
