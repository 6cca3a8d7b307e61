/* The inner loops of the block codecs and of the grid. `plain.py` says the same in numpy, bit for bit.

   Each loop is written so that gcc makes SIMD code of it without -ffast-math: the largest magnitude is found on the
   integer view of the floats, which orders alike; sums are of integers; rounding to the nearest integer, ties to even,
   is one addition. Compile with -ffp-contract=off: a fused multiply-add rounds once where the others round twice.

   Data of a peer may lie anywhere: scales are copied in and out byte by byte. Little-endian machines only. */

#include <stdint.h>
#include <string.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__) && !defined(ONE_TARGET)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif
#define EXPORT __attribute__((visibility("default"))) CLONES
#define INLINE static inline __attribute__((always_inline))

enum { BLOCK8 = 1024, BLOCK4 = 128, BLOCK2 = 256, LARGEST8 = 127, LARGEST4 = 7, LIMIT = 32767 };
enum { PEAK_END = 0x7f000000 };   /* 2**127: what is that large is refused */
enum { PEAK_BEGIN = 0x0d800000 }; /* 2**-100: what is smaller counts as zero, so that no reciprocal overflows */
enum { MOST = 0x71800000 };       /* 2**100: larger sums are cut off there */
enum { INFINITE = 0x7f800000 };

/* Which source this is: a library that was built from another one is not loaded. */
#ifndef SOURCE_DIGEST
#define SOURCE_DIGEST ""
#endif
__attribute__((visibility("default"))) const char *source_digest(void) { return SOURCE_DIGEST; }

/* ---- floats as integers ------------------------------------------------------------------------------------ */

INLINE int32_t magnitude(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits & 0x7fffffff;
}

INLINE float float_of(int32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

INLINE int32_t peak_f32(const float *x, long n) {
    int32_t peak = 0;
    for (long i = 0; i < n; i++) {
        int32_t m = magnitude(x[i]);
        peak = m > peak ? m : peak;
    }
    return peak;
}

/* Ask for what is needed next: a block of float32 is a page of memory, and no processor looks ahead past its end. */
INLINE void fetch(const void *data, long size) {
    for (long i = 0; i < size; i += 64) __builtin_prefetch((const char *)data + i);
}

INLINE int32_t peak_i16(const int16_t *x, long n) {
    int16_t high = 0, low = 0;
    for (long i = 0; i < n; i++) {
        high = x[i] > high ? x[i] : high;
        low = x[i] < low ? x[i] : low;
    }
    return high > -(int32_t)low ? high : -(int32_t)low;
}

/* 1.5 * 2**23 pushes the fraction out of the mantissa: the nearest integer, ties to even, for |x| < 2**22. */
INLINE int32_t nearest(float x) {
    float sum = x + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &sum, 4);
    return bits - 0x4b400000;
}

INLINE int32_t within(int32_t x, int32_t limit) { return x > limit ? limit : x < -limit ? -limit : x; }

/* ---- one block: signed steps (8 and 4 bits) ---------------------------------------------------------------- */

#define STEPS(x, n, inverse, noise, q, largest)                                                  \
    if (noise)                                                                                   \
        for (long i = 0; i < (n); i++) {                                                         \
            float dither = ((float)(noise)[i] - 32767.5f) * (1.0f / 65536.0f);                   \
            (q)[i] = (int8_t)within(nearest((float)(x)[i] * (inverse) + dither), largest);       \
        }                                                                                        \
    else                                                                                         \
        for (long i = 0; i < (n); i++) (q)[i] = (int8_t)nearest((float)(x)[i] * (inverse));

INLINE int steps_f32(const float *x, long n, uint8_t *scale, int8_t *q, int32_t largest, const uint16_t *noise) {
    int32_t peak = peak_f32(x, n);
    if (peak >= PEAK_END) return 1;
    float step = 0, inverse = 0;
    if (peak >= PEAK_BEGIN) {
        step = float_of(peak) / (float)largest;
        inverse = (float)largest / float_of(peak);
    }
    memcpy(scale, &step, 4);
    STEPS(x, n, inverse, noise, q, largest)
    return 0;
}

INLINE int steps_i16(const int16_t *x, long n, uint8_t *scale, int8_t *q, int32_t largest, const uint16_t *noise) {
    uint16_t step = (uint16_t)((peak_i16(x, n) + largest - 1) / largest);
    float inverse = step ? 1.0f / (float)step : 0;
    memcpy(scale, &step, 2);
    STEPS(x, n, inverse, noise, q, largest)
    return 0;
}

/* Byte j of a block of 2h elements holds elements j and j + h; what is missing at the end is zero. */
INLINE void pack4(const int8_t *q, long h, uint8_t *codes) {
    for (long j = 0; j < h; j++) codes[j] = (uint8_t)((q[j] & 15) | ((uint8_t)q[j + h] << 4));
}

INLINE void unpack4(const uint8_t *codes, long h, int8_t *q) {
    for (long j = 0; j < h; j++) {
        q[j] = (int8_t)((int8_t)(uint8_t)(codes[j] << 4) >> 4);
        q[j + h] = (int8_t)((int8_t)codes[j] >> 4);
    }
}

/* ---- one block: two magnitudes and a sign (2 bits) --------------------------------------------------------- */

INLINE void codes2(const int32_t *m, const uint8_t *negative, long h, int32_t threshold, uint8_t *codes) {
    for (long j = 0; j < h; j++) {
        int32_t code = 0;
        for (long k = 3; k >= 0; k--) code = code << 2 | (m[j + k * h] > threshold) << 1 | negative[j + k * h];
        codes[j] = (uint8_t)code;
    }
}

/* Split magnitudes at 1.4 times their mean; return the sums and counts of the two sides. */
INLINE int32_t split(const int32_t *m, long n, int32_t *low_sum, int32_t *high_sum, int32_t *num_high) {
    int32_t sum = 0, high = 0, count = 0;
    for (long i = 0; i < n; i++) sum += m[i];
    int32_t threshold = 7 * sum / (5 * (int32_t)n);
    for (long i = 0; i < n; i++) {
        int32_t is_high = m[i] > threshold;
        high += is_high ? m[i] : 0;
        count += is_high;
    }
    *low_sum = sum - high, *high_sum = high, *num_high = count;
    return threshold;
}

INLINE int levels_f32(const float *x, long n, uint8_t *scale, uint8_t *codes) {
    int32_t m[BLOCK2], peak = peak_f32(x, n), low_sum, high_sum, num_high;
    uint8_t negative[BLOCK2];
    long h = (n + 3) / 4;
    if (peak >= PEAK_END) return 1;
    float unit = 0, inverse = 0, levels[2];
    if (peak >= PEAK_BEGIN) {
        unit = float_of(peak) / (float)LIMIT;
        inverse = (float)LIMIT / float_of(peak);
    }
    for (long i = 0; i < n; i++) {
        m[i] = nearest(float_of(magnitude(x[i])) * inverse);
        negative[i] = x[i] < 0;
    }
    for (long i = n; i < 4 * h; i++) m[i] = negative[i] = 0;
    int32_t threshold = split(m, n, &low_sum, &high_sum, &num_high);
    levels[0] = (float)low_sum / (float)(n - num_high) * unit;
    levels[1] = num_high ? (float)high_sum / (float)num_high * unit : levels[0];
    memcpy(scale, levels, 8);
    codes2(m, negative, h, threshold, codes);
    return 0;
}

INLINE int levels_i16(const int16_t *x, long n, uint8_t *scale, uint8_t *codes) {
    int32_t m[BLOCK2], low_sum, high_sum, num_high;
    uint8_t negative[BLOCK2];
    uint16_t levels[2];
    long h = (n + 3) / 4;
    for (long i = 0; i < n; i++) {
        m[i] = x[i] < 0 ? -(int32_t)x[i] : x[i];
        negative[i] = x[i] < 0;
    }
    for (long i = n; i < 4 * h; i++) m[i] = negative[i] = 0;
    int32_t threshold = split(m, n, &low_sum, &high_sum, &num_high), num_low = (int32_t)n - num_high;
    levels[0] = (uint16_t)within((2 * low_sum + num_low) / (2 * num_low), LIMIT);
    levels[1] = num_high ? (uint16_t)within((2 * high_sum + num_high) / (2 * num_high), LIMIT) : levels[0];
    memcpy(scale, levels, 4);
    codes2(m, negative, h, threshold, codes);
    return 0;
}

#define LEVELS2(T, name)                                                             \
    INLINE void name(const uint8_t *scale, const uint8_t *codes, long h, T *out) {   \
        T levels[2];                                                                 \
        memcpy(levels, scale, sizeof levels);                                        \
        T low = levels[0], high = levels[1];                                         \
        for (long k = 0; k < 4; k++)                                                 \
            for (long j = 0; j < h; j++) {                                           \
                int32_t code = codes[j] >> (2 * k);                                  \
                T level = code & 2 ? high : low;                                     \
                out[k * h + j] = (T)(code & 1 ? -level : level);                     \
            }                                                                        \
    }
LEVELS2(float, levels2_f32)
LEVELS2(int16_t, levels2_i16)

/* ---- whole arrays ------------------------------------------------------------------------------------------ */

/* The last block may be shorter. `constant` lets the compiler see the length of all others. */
#define BLOCKS(size, work)                                        \
    for (long start = 0; start < count; start += (size)) {        \
        if (count - start >= (size)) {                            \
            const long n = (size);                                \
            work                                                  \
        } else {                                                  \
            const long n = count - start;                         \
            work                                                  \
        }                                                         \
    }

#define QUANTISE(T, type, scale_bytes)                                                                              \
    EXPORT int quantise8_##type(const T *x, long count, uint8_t *scales, uint8_t *codes, const uint16_t *noise) {  \
        int bad = 0;                                                                                                \
        BLOCKS(BLOCK8, {                                                                                            \
            fetch(x + start + n, n * (long)sizeof(T));                                                              \
            bad |= steps_##type(x + start, n, scales, (int8_t *)codes + start, LARGEST8,                            \
                                noise ? noise + start : 0);                                                         \
            scales += scale_bytes;                                                                                  \
        })                                                                                                          \
        return bad;                                                                                                 \
    }                                                                                                               \
    EXPORT int quantise4_##type(const T *x, long count, uint8_t *scales, uint8_t *codes, const uint16_t *noise) {  \
        int bad = 0;                                                                                                \
        int8_t q[BLOCK4];                                                                                           \
        BLOCKS(BLOCK4, {                                                                                            \
            if (n & 1) q[n] = 0;                                                                                    \
            bad |= steps_##type(x + start, n, scales, q, LARGEST4, noise ? noise + start : 0);                      \
            pack4(q, (n + 1) / 2, codes + start / 2);                                                               \
            scales += scale_bytes;                                                                                  \
        })                                                                                                          \
        return bad;                                                                                                 \
    }                                                                                                               \
    EXPORT int quantise2_##type(const T *x, long count, uint8_t *scales, uint8_t *codes, const uint16_t *noise) {  \
        int bad = 0;                                                                                                \
        (void)noise;                                                                                                \
        BLOCKS(BLOCK2, {                                                                                            \
            bad |= levels_##type(x + start, n, scales, codes + start / 4);                                          \
            scales += 2 * scale_bytes;                                                                              \
        })                                                                                                          \
        return bad;                                                                                                 \
    }
QUANTISE(float, f32, 4)
QUANTISE(int16_t, i16, 2)

/* Each body sees `decoded`, the value of element i of the block at `start`; base and out may be the same array. */
#define EACH(n, body)                              \
    _Pragma("GCC ivdep") for (long i = 0; i < (n); i++) { body }

INLINE float step_at(const uint8_t *scales, long block) {
    float step;
    memcpy(&step, scales + 4 * block, 4);
    return step;
}

#define DEQUANTISE_F32(name, body)                                                                                    \
    EXPORT void name##8_f32(const uint8_t *scales, const uint8_t *codes, long count, const float *base, float *out) { \
        (void)base;                                                                                                   \
        BLOCKS(BLOCK8, {                                                                                              \
            float step;                                                                                               \
            memcpy(&step, scales, 4);                                                                                 \
            const int8_t *q = (const int8_t *)codes + start;                                                          \
            EACH(n, float decoded = (float)q[i] * step; body)                                                         \
            scales += 4;                                                                                              \
        })                                                                                                            \
    }                                                                                                                 \
    EXPORT void name##4_f32(const uint8_t *scales, const uint8_t *codes, long count, const float *base, float *out) { \
        (void)base;                                                                                                   \
        int8_t q[BLOCK4];                                                                                             \
        BLOCKS(BLOCK4, {                                                                                              \
            float step;                                                                                               \
            memcpy(&step, scales, 4);                                                                                 \
            unpack4(codes + start / 2, (n + 1) / 2, q);                                                               \
            EACH(n, float decoded = (float)q[i] * step; body)                                                         \
            scales += 4;                                                                                              \
        })                                                                                                            \
    }                                                                                                                 \
    EXPORT void name##2_f32(const uint8_t *scales, const uint8_t *codes, long count, const float *base, float *out) { \
        (void)base;                                                                                                   \
        float values[BLOCK2];                                                                                         \
        BLOCKS(BLOCK2, {                                                                                              \
            levels2_f32(scales, codes + start / 4, (n + 3) / 4, values);                                              \
            EACH(n, float decoded = values[i]; body)                                                                  \
            scales += 8;                                                                                              \
        })                                                                                                            \
    }
DEQUANTISE_F32(dequantise, out[start + i] = decoded;)
DEQUANTISE_F32(dequantise_add, out[start + i] = base[start + i] + decoded;)

EXPORT void dequantise8_i16(const uint8_t *scales, const uint8_t *codes, long count, const void *base, int16_t *out) {
    (void)base;
    BLOCKS(BLOCK8, {
        uint16_t step;
        memcpy(&step, scales, 2);
        const int8_t *q = (const int8_t *)codes + start;
        for (long i = 0; i < n; i++) out[start + i] = (int16_t)within(q[i] * (int32_t)step, LIMIT);
        scales += 2;
    })
}

EXPORT void dequantise4_i16(const uint8_t *scales, const uint8_t *codes, long count, const void *base, int16_t *out) {
    (void)base;
    int8_t q[BLOCK4];
    BLOCKS(BLOCK4, {
        uint16_t step;
        memcpy(&step, scales, 2);
        unpack4(codes + start / 2, (n + 1) / 2, q);
        for (long i = 0; i < n; i++) out[start + i] = (int16_t)within(q[i] * (int32_t)step, LIMIT);
        scales += 2;
    })
}

EXPORT void dequantise2_i16(const uint8_t *scales, const uint8_t *codes, long count, const void *base, int16_t *out) {
    (void)base;
    int16_t values[BLOCK2];
    BLOCKS(BLOCK2, {
        levels2_i16(scales, codes + start / 4, (n + 3) / 4, values);
        for (long i = 0; i < n; i++) out[start + i] = values[i];
        scales += 4;
    })
}

/* Of scales: for floats, as integers, of which a negative one or what is not finite is above all that are in range. */
#define LARGEST(name, word_t)                                     \
    EXPORT uint32_t name(const uint8_t *scales, long count) {     \
        word_t largest = 0, word;                                 \
        for (long i = 0; i < count; i++) {                        \
            memcpy(&word, scales + sizeof word * i, sizeof word); \
            largest = word > largest ? word : largest;            \
        }                                                         \
        return largest;                                           \
    }

LARGEST(largest_f32, uint32_t)
LARGEST(largest_i16, uint16_t)

/* Past the caches, which need not fetch first what is overwritten: a third faster where they do not hold the whole. */
INLINE void store_past_cache(float *out, const float *block, long n) {
#ifdef __SSE__
    for (long i = 0; i < n; i += 4) _mm_stream_ps(out + i, _mm_load_ps(block + i));
#else
    memcpy(out, block, n * sizeof *out);
#endif
}

EXPORT void dequantise8_f32_past_cache(const uint8_t *scales, const uint8_t *codes, long count, float *out) {
    _Alignas(64) float block[BLOCK8];
    BLOCKS(BLOCK8, {
        float step = step_at(scales, start / BLOCK8);
        const int8_t *q = (const int8_t *)codes + start;
        for (long i = 0; i < n; i++) block[i] = (float)q[i] * step;
        if (n == BLOCK8 && (uintptr_t)out % 16 == 0)
            store_past_cache(out + start, block, n);
        else
            memcpy(out + start, block, n * sizeof *out);
    })
#ifdef __SSE__
    _mm_sfence();
#endif
}

/* ---- sums -------------------------------------------------------------------------------------------------- */

/* What is added up, and then encoded with 8 bits: ((own + owed) weight + what the others' encodings say) / divisor. */
struct sum {
    const float *own;
    const float *owed;            /* or 0 */
    const uint8_t *const *others; /* their encodings: the scales of all blocks, then the codes */
    float *lost;                  /* or 0: where goes what the encoding loses, over `share` */
    int32_t num_others;
    int32_t cuts_off;             /* sums past 2**100 become that, what is no number becomes 0 */
    float weight, divisor, share;
};

/* A power of two is multiplied by its inverse, which is the same and faster. */
INLINE void divide(float *x, long n, float divisor) {
    if (divisor == 1) return;
    if ((magnitude(divisor) & 0x7fffff) == 0)
        for (long i = 0; i < n; i++) x[i] *= 1 / divisor;
    else
        for (long i = 0; i < n; i++) x[i] /= divisor;
}

INLINE void cut_off(float *x, long n) {
    if (peak_f32(x, n) < MOST) return;
    for (long i = 0; i < n; i++) {
        float most = x[i] < 0 ? -0x1p100f : 0x1p100f;
        x[i] = magnitude(x[i]) > INFINITE ? 0 : magnitude(x[i]) > MOST ? most : x[i];
    }
}

INLINE int sum_block(const struct sum *sum, long start, long n, long scales_bytes, uint8_t *scale, int8_t *q) {
    _Alignas(64) float x[BLOCK8];
    const float *own = sum->own + start;
    fetch(own + n, 4 * n);
    if (sum->owed)
        for (long i = 0; i < n; i++) x[i] = (own[i] + sum->owed[start + i]) * sum->weight;
    else
        for (long i = 0; i < n; i++) x[i] = own[i] * sum->weight;
    for (int32_t other = 0; other < sum->num_others; other++) {
        const uint8_t *encoding = sum->others[other];
        const int8_t *codes = (const int8_t *)encoding + scales_bytes + start;
        float step = step_at(encoding, start / BLOCK8);
        for (long i = 0; i < n; i++) x[i] += (float)codes[i] * step;
        __asm__("" : "+r"(other)); /* one after the other: gcc would take two at once, element by element */
    }
    divide(x, n, sum->divisor);
    if (sum->cuts_off) cut_off(x, n);
    if (steps_f32(x, n, scale, q, LARGEST8, 0)) return 1;
    if (sum->lost) {
        float step = step_at(scale, 0), *lost = sum->lost + start;
        for (long i = 0; i < n; i++) lost[i] = x[i] - (float)q[i] * step;
        divide(lost, n, sum->share);
    }
    return 0;
}

/* 1 if a value is not finite or 2**127 and more. Each block is added up, measured, rounded and done in the L1 cache. */
EXPORT int quantise8_sum(const struct sum *sum, long count, uint8_t *encoding) {
    int bad = 0;
    long scales_bytes = (count + BLOCK8 - 1) / BLOCK8 * 4;
    int8_t *codes = (int8_t *)encoding + scales_bytes;
    BLOCKS(BLOCK8, bad |= sum_block(sum, start, n, scales_bytes, encoding + start / BLOCK8 * 4, codes + start);)
    return bad;
}

/* ---- 16-bit floats ------------------------------------------------------------------------------------------- */

/* Round to the nearest, ties to even; what is larger than the type's largest becomes that. No NaN, no infinity. */
INLINE uint16_t half_of(float x) {
    int32_t bits, m = magnitude(x);
    memcpy(&bits, &x, 4);
    m = m > 0x477fe000 ? 0x477fe000 : m;                                  /* 65504 */
    int32_t normal = (m - (112 << 23) + 0xfff + ((m >> 13) & 1)) >> 13;
    int32_t subnormal = magnitude(float_of(m) + 0.5f) - 0x3f000000;       /* 0.5 has its last bit at 2**-24 */
    return (uint16_t)((m < 0x38800000 ? subnormal : normal) | ((bits >> 16) & 0x8000));
}

INLINE float float_of_half(uint16_t half) {
    float x = float_of((half & 0x7fff) << 13) * 0x1p112f;
    return float_of(magnitude(x) | (int32_t)((uint32_t)(half & 0x8000) << 16));
}

INLINE uint16_t bfloat_of(float x) {
    int32_t bits, m = magnitude(x);
    memcpy(&bits, &x, 4);
    m = m > 0x7f7f0000 ? 0x7f7f0000 : m;
    return (uint16_t)(((m + 0x7fff + ((m >> 16) & 1)) >> 16) | ((bits >> 16) & 0x8000));
}

INLINE float float_of_bfloat(uint16_t bfloat) { return float_of((int32_t)((uint32_t)bfloat << 16)); }

/* The peer's data may lie at an odd address. */
INLINE uint16_t word_at(const uint8_t *data, long i) {
    uint16_t word;
    memcpy(&word, data + 2 * i, 2);
    return word;
}

#define CAST(format)                                                                                       \
    EXPORT void to_##format(const float *restrict x, long count, uint8_t *restrict data) {                 \
        for (long i = 0; i < count; i++) {                                                                 \
            uint16_t word = format##_of(x[i]);                                                             \
            memcpy(data + 2 * i, &word, 2);                                                                \
        }                                                                                                  \
    }                                                                                                      \
    EXPORT void from_##format(const uint8_t *restrict data, long count, float *restrict out) {             \
        for (long i = 0; i < count; i++) out[i] = float_of_##format(word_at(data, i));                     \
    }                                                                                                      \
    EXPORT void add_##format(const uint8_t *data, long count, const float *base, float *out) {             \
        EACH(count, out[i] = base[i] + float_of_##format(word_at(data, i));)                               \
    }
CAST(half)
CAST(bfloat)

/* ---- the grid ---------------------------------------------------------------------------------------------- */

/* update += residual; encoded = that on the grid; 1 if a value is not finite. */
EXPORT int to_grid(float *restrict update, const float *restrict residual, long count, float scale, float largest,
                   int16_t *restrict encoded) {
    int32_t peak = 0;
    for (long i = 0; i < count; i++) {
        float u = update[i] + residual[i];
        int32_t m = magnitude(u);
        peak = m > peak ? m : peak;
        update[i] = u;
        u = u > largest ? largest : u;
        u = u < -largest ? -largest : u;
        encoded[i] = (int16_t)nearest(u * scale);
    }
    return peak >= 0x7f800000;
}

/* lost = wanted - decoded * unit */
EXPORT void from_grid(const float *restrict wanted, const int16_t *restrict decoded, long count, float unit,
                      float *restrict lost) {
    for (long i = 0; i < count; i++) lost[i] = wanted[i] - (float)decoded[i] * unit;
}
