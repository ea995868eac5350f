/* Products of signs: a sign is a bit (1 for +1), and with 64 of them in a word
 *     sum_k a_k b_k = K - 2 popcount(a xor b)
 * (XNOR-Net, Rastegari et al. 2016). Bits past K are 0 on both sides and count nothing.
 */
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* float x[count] -> ceil(count / 64) words; a bit is 1 where x >= 0. */
void xnor_pack(const float *x, size_t count, uint64_t *words)
{
    size_t full = count / 64;
    for (size_t w = 0; w < full; w++, x += 64) {
        uint64_t bits = 0;
#if defined(__AVX2__)
        const __m256 zero = _mm256_setzero_ps();
        for (int j = 0; j < 8; j++) {
            __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * j), zero, _CMP_GE_OQ);
            bits |= (uint64_t)(uint32_t)_mm256_movemask_ps(above) << (8 * j);
        }
#else
        for (int j = 0; j < 64; j++)
            bits |= (uint64_t)(x[j] >= 0.0f) << j;
#endif
        words[w] = bits;
    }
    if (count % 64) {
        uint64_t bits = 0;
        for (size_t j = 0; j < count % 64; j++)
            bits |= (uint64_t)(x[j] >= 0.0f) << j;
        words[full] = bits;
    }
}

static uint64_t differing(const uint64_t *a, const uint64_t *b, size_t words)
{
    uint64_t total = 0, other = 0;
    size_t w = 0;
    for (; w + 2 <= words; w += 2) {
        total += (uint64_t)__builtin_popcountll(a[w] ^ b[w]);
        other += (uint64_t)__builtin_popcountll(a[w + 1] ^ b[w + 1]);
    }
    if (w < words)
        total += (uint64_t)__builtin_popcountll(a[w] ^ b[w]);
    return total + other;
}

/* y[rows] = weights[rows][count] times x[count], all packed. */
void xnor_gemv(const uint64_t *weights, const uint64_t *x, size_t rows, size_t count, int32_t *y)
{
    size_t words = (count + 63) / 64;
    for (size_t r = 0; r < rows; r++, weights += words)
        y[r] = (int32_t)count - 2 * (int32_t)differing(weights, x, words);
}

/* The same from floats; scratch: room for the packed signs of x. */
void xnor_layer(const uint64_t *weights, const float *x, size_t rows, size_t count, uint64_t *scratch, int32_t *y)
{
    xnor_pack(x, count, scratch);
    xnor_gemv(weights, scratch, rows, count, y);
}
