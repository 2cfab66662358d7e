/* Proximal operators on CPUs, in place, in one pass over memory.
 *
 * The plain forms in `proximal/` and `penalties/` say what is computed; here it is said how. Nothing of Python or torch
 * is included: `native.py` calls the exported functions at the end with pointers, which it has checked.
 *
 * Elements are moved in chunks that stay in a processor's first cache: a penalty is a short list of operations, each a
 * loop over the chunk, which compilers turn into vectors. Groups are moved in blocks that stay in its second cache: the
 * sums over a group, the iterations of its secular equation and the write all happen there.
 *
 * Sums are added up in vectors of 64 bytes on every machine, so that they do not depend on how long its registers are.
 * No product is contracted with a sum: elements agree with the plain form bit for bit where that uses arithmetic alone.
 *
 * The file includes itself once for each type that is computed in, T. bfloat16 and float16 are computed in float.
 */
#ifndef T

#define _POSIX_C_SOURCE 200809L
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline)) /* one copy of it compiles in less time */

#if defined(__AVX512F__) && !defined(__clang__)
#define HAS_SHUFFLE 1
#define SHUFFLE __builtin_shuffle /* one instruction for lanes of two vectors of 64 bytes */
#else
#define HAS_SHUFFLE 0
#define SHUFFLE(one, other, lanes) (one) /* not called */
#endif
#define UNROLL _Pragma("GCC unroll 16") /* so that the loop around becomes one over vectors */

enum { CHUNK = 1024 };       /* elements that are moved at a time */
enum { LANES = 1024 };       /* columns, at most, that are added up side by side */
enum { NARROW = 64 };        /* the same, where more is computed of elements than their squares: four vectors */
enum { BLOCK = 1024 };       /* groups, at most, that are solved together */
enum { TALL = 16 };          /* rows of a tensor that is read row by row, not column by column, in a metric */
enum { PIECE = 1 << 14 };    /* elements in a task of its own */
enum { SERIAL = 1 << 15 };   /* elements below which one thread does all */
enum { NEAR = 1 << 12 };     /* elements of a block whose groups are long rows: the first cache holds them */
enum { FAR = 1 << 17 };      /* elements of a block at most, unless one vector of columns has more: the second cache */
enum { FARTHEST = 1 << 20 }; /* elements of a block that are kept; a larger one is read again in each iteration */
enum { NEWTON_ITERATIONS = 12 };

enum { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 }; /* types of tensors */
enum { ELEMENTS, GROUPS, COUPLED };           /* forms of a call */

/* Operations of a program; a and b are their numbers. */
enum {
    SOFT,       /* threshold step * a */
    DIVIDE,     /* by 1 + step * a */
    RIDGE,      /* by 1 + step * a, the step as well */
    HUBER, FIRM, CLIPPED, LOG, /* strength a; b is delta, gamma, the a of SCAD, epsilon */
    HARD,                      /* threshold sqrt(2 step a) */
    HALF, TWO_THIRDS,          /* strength a of |y|^(1/2), of |y|^(2/3) */
    WEIGH,      /* steps times the job's tensor */
    POSITIVE,   /* no element below 0, where a step is not 0 */
    BOUNDED,    /* from here on steps are numbers of the computed type, and 0 where they are not above 0 */
    CLAMP,      /* between a and b, where a step is not 0 */
    KEEP,       /* keeps the elements for COUNT */
    COUNT,      /* 0 where the objective is not lowered by a; the penalty costs b |y| + c y^2 */
    LEAVE, RETURN /* the distance to the job's tensor in place of the elements, and back */
};

typedef struct { int64_t code; double a, b, c; } Op;

typedef struct { double lr, eps, correction; } Step;

/* One tensor: (batch, outer, slices, inner) in the order of memory, where batch and slices tell groups apart. */
typedef struct {
    void *w;
    const void *moment;    /* NULL: the step is the number lr; else lr / (sqrt(moment / correction) + eps) */
    const void *extra;     /* weights, or a reference, of each element */
    const int64_t *order;  /* slices by their group's number; NULL: each slice is the group of its own number */
    const int64_t *starts; /* where in `order` each group begins, one more than there are groups */
    int64_t batch, outer, slices, inner;
    Step step;
    double weight;
    int32_t type, moment_type, extra_type;
    int32_t begin;        /* the group of slice 0, without an `order` */
    int64_t block, tasks; /* groups in a task, and tasks up to this job and with it; set in a call */
} Job;

typedef struct { /* of a tensor */
    const int64_t *sizes; /* and strides after them */
    int64_t dim;
    int32_t type, spare; /* as torch numbers them */
} Shape;

typedef struct { /* for tensors: see `native_tensors.c` */
    const Shape *shapes;
    const void *const *tensors; /* of Python */
    void **found;
    int64_t count;
} Search;

typedef struct {
    Job *jobs;
    void *const *ws; /* what changes from call to call, of each job */
    const void *const *moments; /* NULL: no job has one */
    const Search *searches[2];  /* for both, before all else; NULL: somebody has found them */
    const Step *steps;
    const Op *ops, *norm_ops; /* of elements; of norms in a plain metric */
    const double *weights;    /* of the penalty of each coupled group */
    const int64_t *blocks;    /* where each block of coupled groups begins, and where the last ends */
    double linear, quadratic; /* what norms are penalized in a metric, times weights */
    int64_t count, op_count, norm_op_count, block_count;
    int32_t form, wide, metric, threads;
    int32_t exact; /* steps of elements bit for bit, where a penalty would enlarge what is rounded otherwise */
    int32_t alike; /* whether the first step is that of all jobs */
} Call;

typedef struct { /* zeros that are held: see `native_zeros.c` */
    void *w;
    const void *grad;
    void *sums[2]; /* the running sum of gradients, and room for the next one; they take turns */
    uint8_t *mask;
    double *room; /* for two numbers of each group; NULL: elements are held, each by itself */
    int64_t batch, outer, slices, inner;
    double weights[2];                       /* of all gradients in each running sum */
    double share, sign;                      /* of one gradient in the next sum; its sign */
    double slope, group_slope, group_weight; /* what holds an element, < 0 for nothing; what holds a group */
    double most;                             /* larger averages count as 0 */
    int64_t place, size, tasks;              /* which of the parameters this is; elements; tasks up to it and with it */
    int32_t type, grad_type;
} Held;

typedef struct {
    Held *held;
    void *const *ws;          /* parameters, by their place */
    const void *const *grads; /* of each that is held */
    const Search *searches[2]; /* for both, as above; only the first before zeros are restored */
    int64_t count;
    int32_t turn, wide, threads, spare; /* which of two sums is the running one */
} Holding;

typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);
static Parallel parallel;

typedef struct {
    void (*task)(const void *, int64_t);
    const void *given;
    int64_t count, next;
} Work;

static void work_on(void *given) {
    Work *work = given;
    int64_t index;
    while ((index = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->count) work->task(work->given, index);
}

/* Runs all tasks, which share nothing that is written, in the threads that torch uses itself. */
static void run_tasks(void (*task)(const void *, int64_t), const void *given, int64_t count, int64_t size,
                      int threads) {
    Work work = {task, given, count, 0};
    int many = parallel && threads > 1 && count > 1 && size >= SERIAL;
    many ? parallel(work_on, &work, (unsigned)threads, 0) : work_on(&work);
}

INLINE int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }
INLINE int64_t most(int64_t one, int64_t other) { return one > other ? one : other; }
INLINE int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }
static int64_t size_of(const Job *job) { return job->batch * job->outer * job->slices * job->inner; }

typedef union { float x; uint32_t bits; } Word;

INLINE uint32_t bits_of(float x) { return ((Word){.x = x}).bits; }
INLINE float from_bits(uint32_t bits) { return ((Word){.bits = bits}).x; }
INLINE float from_bfloat16(uint16_t x) { return from_bits((uint32_t)x << 16); }

INLINE uint16_t to_bfloat16(float x) { /* to the nearest, ties to even */
    uint32_t bits = bits_of(x);
    uint16_t rounded = (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    return x == x ? rounded : 0x7FC0;
}

/* The exponent is moved by a product of floats, which also makes subnormal numbers normal. */
INLINE float from_float16(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, size = (uint32_t)(x & 0x7FFF) << 13;
    float normal = from_bits(size + (112u << 23)), tiny = from_bits(size + (113u << 23)) - from_bits(113u << 23);
    float finite = size >> 23 ? normal : tiny;
    return from_bits(sign | (size >= 0x0F800000u ? size + (224u << 23) : bits_of(finite)));
}

INLINE uint16_t to_float16(float x) { /* to the nearest, ties to even */
    uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000, size = bits & 0x7FFFFFFF;
    uint32_t normal = (size - (112u << 23) + 0x0FFF + ((size >> 13) & 1)) >> 13;
    uint32_t tiny = bits_of(from_bits(size) + 0.5f) - bits_of(0.5f); /* the sum rounds to multiples of 2^-24 */
    uint32_t finite = size < (113u << 23) ? tiny : normal;
    return (uint16_t)(sign | (size > 0x7F800000u ? 0x7E00 : size >= 0x477FF000u ? 0x7C00 : finite));
}

/* Finds the job that a task is of, as jobs count tasks up, and leaves its number within the job. */
#define FIND_JOB(jobs, count, index, place)           \
    for (int64_t high = (count) - 1; place < high;) { \
        int64_t middle = (place + high) / 2;          \
        (jobs)[middle].tasks <= (index) ? (place = middle + 1) : (high = middle); \
    }                                                 \
    if (place) (index) -= (jobs)[(place) - 1].tasks

#define SQRT(x) _Generic((x), float: sqrtf, double: sqrt)(x)
#define ABS(x) _Generic((x), float: fabsf, double: fabs)(x)
#define FMAX(x, y) _Generic((x), float: fmaxf, double: fmax)(x, y)
#define COPYSIGN(x, y) _Generic((x), float: copysignf, double: copysign)(x, y)
#define OF_T(of_float, of_double) (sizeof(T) == 4 ? (of_float) : (of_double))
#define OWN OF_T(FLOAT32, FLOAT64)
#define TINY ((T)OF_T(FLT_MIN, DBL_MIN))
#define MOST ((T)OF_T(FLT_MAX, DBL_MAX))
#define LARGEST ((T)OF_T(1e19, 1e150)) /* of which the square does not overflow */
#define AT_REST ((T)OF_T(1.7263349e-4, 7.450580596923828e-9)) /* half the root of epsilon: squared, it is lost */
#define SHARE ((T)OF_T(1e-9, 1e-30))
#define MANTISSA OF_T(23, 52)                               /* bits */
#define HALF_ROOT ((I)OF_T(0x3F3504F3, 0x3FE6A09E667F3BCD)) /* bits of sqrt(1/2) */

/* What follows is written in names of the type T. */
#define V NAME(V)
#define VI NAME(VI)
#define L ((int64_t)(64 / sizeof(T)))
#define Loose NAME(Loose)
#define AT(pointer) (*(const V *)(pointer)) /* all that is read so lies at multiples of 64 bytes */
#define PUT(pointer) (*(V *)(pointer))
/* Picks `one` where the mask is -1, and `other` where it is 0. */
#define PICK(mask, one, other) (V)(((VI)(one) & (mask)) | ((VI)(other) & ~(mask)))
#define LIES_ALONG(job) ((job)->inner >= 8 * L) /* slices are read one after the other */
/* Elements are scaled where they are, so that nothing has to be kept of them. */
#define PLAIN(call, job) (!(call)->metric && !(call)->op_count && (job)->type == OWN)
#define State NAME(State)
#define Block NAME(Block)
#define Strip NAME(Strip)
#define EACH(values, value) \
    do { const T *restrict u = values; for (int64_t i = 0; i < n; i++) x[i] = value; } while (0)
#define EACH_OF(kind, tensor, statement)       \
    do { kind *own = (kind *)(tensor) + at;    \
         for (int64_t i = 0, place = 0; i < n; i++, place += stride) statement; } while (0)

#define T float
#define I int32_t
#define NAME(name) name##_float
#include "native.c"
#undef T
#undef I
#undef NAME
#define T double
#define I int64_t
#define NAME(name) name##_double
#include "native.c"

/* Takes what starts a team of threads, as GOMP_parallel does; NULL: one thread does all. */
EXPORT void shrinkage_use_threads(Parallel given) { parallel = given; }

#include "native_ranking.c"

/* The size of each struct, by which a caller sees that it means the same. */
EXPORT int64_t shrinkage_size(int which) {
    return which == 0 ? sizeof(Op) : which == 1 ? sizeof(Job) : which == 2 ? sizeof(Call)
         : which == 3 ? sizeof(Held) : which == 4 ? sizeof(Holding) : which == 5 ? sizeof(Search)
         : sizeof(Ranked);
}

#include "native_tensors.c"

INLINE int all_found(const Search *const *searches, int count) {
    for (int i = 0; i < count; i++)
        if (searches[i] && !shrinkage_find(searches[i])) return 0;
    return 1;
}

/* Moves all tensors of a call to their proximal points, and returns 1; 0, and nothing is done, if one is not found. */
EXPORT int shrinkage_prox(Call *call) {
    if (!all_found(call->searches, 2)) return 0;
    (call->wide ? prox_double : prox_float)(call);
    return 1;
}

#undef T
#include "native_zeros.c"

#else /* what there is once for each T */

typedef T NAME(V) __attribute__((vector_size(64)));
typedef I NAME(VI) __attribute__((vector_size(64)));
typedef T NAME(Loose) __attribute__((vector_size(64), aligned(sizeof(T)))); /* anywhere in memory */

NOINLINE void NAME(load)(T *to, const void *from, int type, int64_t at, int64_t stride, int64_t n) {
    if (type == OWN && stride == 1)
        memcpy(to, (const T *)from + at, (size_t)n * sizeof(T));
    else if (type == OWN)
        EACH_OF(const T, from, to[i] = own[place]);
    else if (type == BFLOAT16)
        EACH_OF(const uint16_t, from, to[i] = from_bfloat16(own[place]));
    else
        EACH_OF(const uint16_t, from, to[i] = from_float16(own[place]));
}

NOINLINE void NAME(store)(const T *from, void *to, int type, int64_t at, int64_t stride, int64_t n) {
    if (type == OWN && stride == 1)
        memcpy((T *)to + at, from, (size_t)n * sizeof(T));
    else if (type == OWN)
        EACH_OF(T, to, own[place] = from[i]);
    else if (type == BFLOAT16)
        EACH_OF(uint16_t, to, own[place] = to_bfloat16((float)from[i]));
    else
        EACH_OF(uint16_t, to, own[place] = to_float16((float)from[i]));
}

/* sqrt(v / correction) + eps, and 1 where v is exactly 0, of rows that lie `next` apart, to d, which may be v. A
 * product takes a third of the time of a division, and its root is another number in the last place. */
NOINLINE void NAME(denominators)(T *d, const T *v, int64_t rows, int64_t n, int64_t next,
                                 int64_t ahead, const Step *step, int exact) {
    T eps = (T)step->eps, correction = (T)step->correction, scale = exact ? 1 : (T)(1 / sqrt(step->correction));
    for (int64_t r = 0; r < rows; r++, d += n, v += next)
        for (int64_t at = 0, end; at < n; at = end) {
            const T *from = exact ? d : v;
            end = least(at + NARROW, n);
            for (int64_t i = at; ahead && i < end; i += L) __builtin_prefetch(v + ahead + i);
            for (int64_t i = at; exact && i < end; i++) d[i] = v[i] / correction;
            for (int64_t i = at; i < end; i++) {
                T root = SQRT(from[i]) * scale + eps;
                root = root > MOST ? MOST : root; /* NaN stays */
                d[i] = from[i] == 0 ? (T)1 : root;
            }
        }
}

typedef struct {
    T *x, *s;      /* elements, and their steps; s is NULL as long as the step is a number */
    double number; /* the step, then */
    int grouped;   /* whether elements are of groups */
    int rounded;   /* whether it is a number of type T, of which products are rounded at once */
    int64_t n;
    const T *extra; /* of each element */
    T *steps;       /* room for s */
    T *kept, *left; /* elements that an operation comes back to */
} NAME(State);

/* more + step * strength of all elements, to u; `more` is 0 or 1. */
NOINLINE void NAME(products)(const State *state, T more, double strength, T *restrict u) {
    if (state->s) {
        for (int64_t i = 0; i < state->n; i++) u[i] = more + state->s[i] * (T)strength;
        return;
    }
    T product = state->rounded ? more + (T)state->number * (T)strength : (T)(more + state->number * strength);
    for (int64_t i = 0; i < state->n; i++) u[i] = product;
}

/* The steps themselves: those of each element, or the number to u. */
static const T *NAME(steps)(const State *state, T *u) {
    if (state->s) return state->s;
    for (int64_t i = 0; i < state->n; i++) u[i] = (T)state->number;
    return u;
}

/* Comparisons are written so that a threshold of NaN gives NaN, as a clamp by NaN does. */
INLINE T NAME(soft)(T x, T u) {
    T inside = x > u ? u : x;
    inside = x < -u ? -u : inside;
    return u >= 0 ? x - inside : (T)NAN;
}

INLINE T NAME(hard)(T x, T u) { return ABS(x) <= u ? 0 : x; }

INLINE T NAME(huber)(T x, T u, T delta) { return ABS(x) <= u + delta ? x * (delta / (u + delta)) : x - COPYSIGN(u, x); }

INLINE T NAME(firm)(T x, T s, T strength, T end, T gamma) {
    T size = ABS(x), convex = s < gamma;
    T line = x - COPYSIGN(s, x) * (end - size) / (convex ? gamma - s : 1);
    T threshold = strength * (convex ? s : SQRT(s * gamma));
    T y = convex && size <= end ? line : x;
    return size <= threshold ? 0 : y;
}

INLINE T NAME(clipped)(T x, T s, T strength, T end, T a_less, T a_more) {
    T size = ABS(x);
    int convex = s < a_less;
    T line = x - COPYSIGN(s, x) * (end - size) / (convex ? a_less - s : 1);
    T y = size <= end ? line : x;
    T end_of_soft = strength * (convex ? 1 + s : (a_more + s) / 2);
    y = size <= end_of_soft ? NAME(soft)(x, s * strength) : y;
    return s > a_more ? NAME(hard)(x, strength * SQRT(s * a_more)) : y;
}

INLINE T NAME(placed)(T x, T size, int zero, int unchanged) {
    T y = zero ? 0 : COPYSIGN(size, x);
    return unchanged || !(ABS(x) <= MOST) ? x : y;
}

/* log(1 + z) for z >= 0, to some roundings: z = 2^e m - 1, m next to 1, and log(m) = 2 artanh((m - 1) / (m + 1)). */
INLINE T NAME(log1p)(T z) {
    T t = 1 + z, m, sum = 0;
    I bits, exponent;
    memcpy(&bits, &t, sizeof(T));
    exponent = (bits - HALF_ROOT) >> MANTISSA;
    bits -= (I)((uint64_t)exponent << MANTISSA);
    memcpy(&m, &bits, sizeof(T));
    T s = (m - 1) / (m + 1), square = s * s;
    UNROLL for (int k = OF_T(6, 11); k > 0; k--) sum = sum * square + (T)2 / (2 * k - 1);
    T rest = (z - (t - 1)) / t; /* what 1 + z has lost */
    T log = (T)exponent * (T)0.69314718055994531 + sum * s + rest;
    return z <= MOST ? log : z;
}

INLINE T NAME(logsum)(T x, T u, T epsilon) {
    T size = ABS(x), shifted = size + epsilon, least_ = 2 * SQRT(u), inside = shifted - least_;
    T root = SQRT(inside < 0 ? 0 : inside) * SQRT(shifted + least_);
    T y = size - 2 * u / (shifted + root);
    y = y < 0 ? 0 : y;
    T gain = (T)0.5 * y * (2 * size - y) - u * NAME(log1p)(y / epsilon);
    return NAME(placed)(x, y, shifted < least_ || gain <= 0, u == 0);
}

/* z = sqrt(y) is the largest root of z^3 - |x| z + u / 2, which Newton's method reaches from above. */
INLINE T NAME(half)(T x, T u) {
    T size = ABS(x), z = SQRT(size), half = u / 2;
    UNROLL for (int k = 0; k < OF_T(5, 6); k++) {
        T square = z * z, slope = 3 * square - size;
        T moved = z - (z * (square - size) + half) / slope;
        z = slope > 0 && moved > 0 && moved <= MOST ? moved : z; /* an infinite product is of a large |x|, its root */
    }
    T y = size - half / z;
    return NAME(placed)(x, y, size * SQRT(size) <= (T)1.8371173070873836 * u, u == 0);
}

/* c = y^(1/3) is the largest root of c^4 - |x| c + 2 u / 3. A first guess of it comes from a third of the exponent. */
INLINE T NAME(two_thirds)(T x, T u) {
    T size = ABS(x), part = u * (T)(2.0 / 3.0), c;
    I bits;
    memcpy(&bits, &size, sizeof(T));
    bits = bits / 3 + (I)OF_T(709958130, 3071306043645493248);
    memcpy(&c, &bits, sizeof(T));
    UNROLL for (int k = 0; k < OF_T(6, 7); k++) {
        T cube = c * c * c, slope = 4 * cube - size;
        T moved = c - c * ((cube - size + part / c) / slope);
        c = slope > 0 && moved > 0 && moved <= MOST ? moved : c;
    }
    T root = SQRT(SQRT(part)), y = size - part / c;
    return NAME(placed)(x, y, size <= 2 * root * root * root, u == 0);
}

static void NAME(count)(State *state, const Op *op, T *restrict u) {
    T *restrict x = state->x, price = (T)op->a, linear = (T)op->b, square = (T)op->c;
    const T *s = NAME(steps)(state, u), *kept = state->kept;
    for (int64_t i = 0; i < state->n; i++) {
        T y = x[i], gain = ((T)0.5 * y / s[i]) * (2 * kept[i] - y) - (linear * ABS(y) + square * (y * y));
        x[i] = gain < price && s[i] > 0 && ABS(kept[i]) <= MOST ? 0 : y;
    }
}

static void NAME(ridge)(State *state, double strength, T *restrict u) {
    NAME(products)(state, 1, strength, u);
    for (int64_t i = 0; i < state->n; i++) state->x[i] /= u[i];
    for (int64_t i = 0; state->s && i < state->n; i++) state->s[i] /= u[i];
    if (state->rounded)
        state->number = (T)state->number / (1 + (T)state->number * (T)strength);
    else
        state->number /= 1 + state->number * strength;
}

static void NAME(bound)(State *state) {
    if (!state->s) state->number = (T)state->number > 0 ? (T)state->number : 0, state->rounded = 1;
    for (int64_t i = 0; state->s && !state->grouped && i < state->n; i++) /* NaN shows in all of a group */
        state->s[i] = state->s[i] > 0 ? state->s[i] : 0;
}

static void NAME(weigh)(State *state) {
    const T *weights = state->extra;
    const T *before = NAME(steps)(state, state->steps);
    for (int64_t i = 0; i < state->n; i++) state->steps[i] = before[i] * weights[i];
    state->s = state->steps;
}

static void NAME(leave)(State *state) {
    for (int64_t i = 0; i < state->n; i++) {
        state->left[i] = state->x[i];
        state->x[i] -= state->extra[i];
        state->kept[i] = state->x[i];
    }
}

static void NAME(come_back)(State *state) {
    for (int64_t i = 0; i < state->n; i++) {
        T moved = state->extra[i] + state->x[i];
        state->x[i] = state->x[i] == state->kept[i] ? state->left[i] : moved;
    }
}

static void NAME(apply)(const Op *op, State *state, T *room) {
    T *restrict x = state->x, a = (T)op->a, b = (T)op->b;
    T end = (T)(op->b * op->a), less = (T)(op->b - 1), more = (T)(op->b + 1);
    int64_t n = state->n;
    switch (op->code) {
        case SOFT: NAME(products)(state, 0, op->a, room); EACH(room, NAME(soft)(x[i], u[i])); return;
        case DIVIDE: NAME(products)(state, 1, op->a, room); EACH(room, x[i] / u[i]); return;
        case RIDGE: NAME(ridge)(state, op->a, room); return;
        case HUBER: EACH(NAME(steps)(state, room), NAME(huber)(x[i], u[i] * a, b)); return;
        case FIRM: EACH(NAME(steps)(state, room), NAME(firm)(x[i], u[i], a, end, b)); return;
        case CLIPPED: EACH(NAME(steps)(state, room), NAME(clipped)(x[i], u[i], a, end, less, more)); return;
        case LOG: NAME(products)(state, 0, op->a, room); EACH(room, NAME(logsum)(x[i], u[i], b)); return;
        case HARD:
            end = (T)sqrt(2 * state->number * op->a);
            if (state->s || state->rounded) EACH(NAME(steps)(state, room), NAME(hard)(x[i], SQRT(2 * u[i] * a)));
            else EACH(room, ((void)u, NAME(hard)(x[i], end)));
            return;
        case HALF: NAME(products)(state, 0, op->a, room); EACH(room, NAME(half)(x[i], u[i])); return;
        case TWO_THIRDS: NAME(products)(state, 0, op->a, room); EACH(room, NAME(two_thirds)(x[i], u[i])); return;
        case WEIGH: NAME(weigh)(state); return;
        case BOUNDED: NAME(bound)(state); return;
        case POSITIVE: EACH(NAME(steps)(state, room), x[i] < 0 && u[i] > 0 ? 0 : x[i]); return;
        case CLAMP: EACH(NAME(steps)(state, room), u[i] > 0 ? (x[i] < a ? a : x[i] > b ? b : x[i]) : x[i]); return;
        case KEEP: memcpy(state->kept, x, (size_t)n * sizeof(T)); return;
        case COUNT: NAME(count)(state, op, room); return;
        case LEAVE: NAME(leave)(state); return;
        case RETURN: NAME(come_back)(state); return;
    }
}

NOINLINE void NAME(run)(const Op *ops, int64_t count, State *state) {
    T room[CHUNK], steps[CHUNK], kept[CHUNK], left[CHUNK];
    state->steps = steps, state->kept = kept, state->left = left;
    for (int64_t i = 0; i < count; i++) NAME(apply)(ops + i, state, room);
    state->steps = state->kept = state->left = NULL;
}

/* A soft threshold, and a division if there is one: what is used most, in one loop. In a metric memory is read while
 * roots are computed. */
INLINE void NAME(shrink)(T *restrict w, const T *restrict moment, int64_t n, const Step *step, double l1, double l2,
                         int metric, int divides) {
    T lr = (T)step->lr, eps = (T)step->eps, scale = (T)(1 / sqrt(step->correction)), a = (T)l1, b = (T)l2;
    T threshold = (T)(step->lr * l1), divisor = (T)(1 + step->lr * l2);
    for (int64_t i = 0; i < n; i++) {
        T root = metric ? SQRT(moment[i]) * scale + eps : 1;
        root = root > MOST ? MOST : root;
        T s = metric ? lr / (moment[i] == 0 ? (T)1 : root) : 1;
        T y = NAME(soft)(w[i], metric ? s * a : threshold);
        w[i] = divides ? y / (metric ? 1 + s * b : divisor) : y;
    }
}

/* Does that where a call does nothing else, to numbers of this type, and returns whether it has. */
static int NAME(shrinks)(const Call *call, const Job *job, int64_t from, int64_t n) {
    const Op *ops = call->ops;
    int divides = call->op_count == 2 && ops[1].code == DIVIDE, metric = job->moment != NULL;
    if (job->type != OWN || (metric && job->moment_type != OWN)) return 0;
    if (call->op_count != 1 + divides || ops->code != SOFT) return 0;
    T *w = (T *)job->w + from;
    const T *moment = metric ? (const T *)job->moment + from : NULL;
    double l1 = ops->a, l2 = divides ? ops[1].a : 0;
    if (metric)
        divides ? NAME(shrink)(w, moment, n, &job->step, l1, l2, 1, 1)
                : NAME(shrink)(w, moment, n, &job->step, l1, l2, 1, 0);
    else
        divides ? NAME(shrink)(w, moment, n, &job->step, l1, l2, 0, 1)
                : NAME(shrink)(w, moment, n, &job->step, l1, l2, 0, 0);
    return 1;
}

static void NAME(elements)(const Call *call, const Job *job, int64_t from, int64_t to) {
    if (NAME(shrinks)(call, job, from, to - from)) return;
    T own[CHUNK], steps[CHUNK], extra[CHUNK];
    for (int64_t at = from; at < to; at += CHUNK) {
        int64_t n = least(CHUNK, to - at);
        State state = {.number = job->step.lr, .n = n, .extra = extra};
        state.x = job->type == OWN ? (T *)job->w + at : own;
        if (job->type != OWN) NAME(load)(own, job->w, job->type, at, 1, n);
        if (job->extra) NAME(load)(extra, job->extra, job->extra_type, at, 1, n);
        if (job->moment) {
            T lr = (T)job->step.lr;
            NAME(load)(steps, job->moment, job->moment_type, at, 1, n);
            NAME(denominators)(steps, steps, 1, n, n, 0, &job->step, call->exact);
            if (call->exact)
                for (int64_t i = 0; i < n; i++) steps[i] = 1 / steps[i] * lr;
            else
                for (int64_t i = 0; i < n; i++) steps[i] = lr / steps[i];
            state.s = steps;
        }
        NAME(run)(call->ops, call->op_count, &state);
        if (job->type != OWN) NAME(store)(own, job->w, job->type, at, 1, n);
    }
}

/* Groups
 *
 * The slices of a group lie along memory or across it. A strip is what is read at a time: one slice that lies along, in
 * rows of one vector whose lanes all belong to its group; or up to LANES slices side by side, in rows that have a lane
 * for each. Sums are those of lanes, and then of groups.
 */

enum { NAME(SUMS), NAME(TERMS), NAME(WRITE), NAME(MEASURE) }; /* what a pass over a block does */

typedef struct {
    const Call *call;
    const Job *jobs;
    int64_t count, first, groups; /* jobs, and the groups of the block */
    T *cache;                     /* where elements and metrics stay from pass to pass; NULL: nowhere */
    int64_t need, from, to;       /* elements that the cache has to hold; rows of a tensor that are read */
    double total[7][BLOCK + 8];   /* not all in the same lines of a cache */
    T theta[BLOCK], factor[BLOCK];
    T unit[BLOCK], curve[BLOCK], is_free[BLOCK]; /* see `take_parts`; of this job: */
    const Job *of;
    double linear[BLOCK], quadratic[BLOCK];
    uint8_t rests[BLOCK], zero[BLOCK];
} NAME(Block);

typedef struct {
    const Job *job;
    int64_t batch, slice, lanes, width, size; /* lanes of a row, and with those that stand empty; elements of a slice */
    int along, follows;                       /* whether each lane belongs to the group after that of the last */
    int16_t group[LANES]; /* of each lane, within the block; only of the first where they follow */
} NAME(Strip);

/* Elements from..to of one slice, as they follow each other. */
NOINLINE void NAME(move_along)(const Strip *strip, void *tensor, int type, T *x, int64_t from, int64_t to, int write) {
    const Job *job = strip->job;
    int64_t inner = job->inner, stride = inner == 1 ? job->slices : 1, run;
    int64_t o = job->outer == 1 ? 0 : from / inner, i = from - o * inner;
    for (int64_t at = from; at < to; at += run, o++, i = 0) {
        int64_t place = ((strip->batch * job->outer + o) * job->slices + strip->slice) * inner + i;
        run = inner == 1 ? to - at : least(inner - i, to - at);
        if (write)
            NAME(store)(x + at - from, tensor, type, place, stride, run);
        else
            NAME(load)(x + at - from, tensor, type, place, stride, run);
    }
}

/* Turns L by L elements over: in each stage, pairs of rows exchange half of their lanes. */
static void NAME(transpose)(const T *from, int64_t from_next, T *to, int64_t to_next) {
    V tile[L], one, other;
    VI lane;
    UNROLL for (int l = 0; l < L; l++) tile[l] = *(const Loose *)(from + l * from_next), lane[l] = l;
    UNROLL for (int stage = 1; stage < L; stage *= 2) {
        VI upper = (lane & stage) != 0, low = (lane & ~upper) | ((lane + (I)(L - stage)) & upper);
        VI high = ((lane + stage) & ~upper) | ((lane + (I)L) & upper);
        UNROLL for (int l = 0; l < L; l++) {
            if (l & stage) continue;
            one = tile[l], other = tile[l + stage];
            tile[l] = SHUFFLE(one, other, low), tile[l + stage] = SHUFFLE(one, other, high);
        }
    }
    UNROLL for (int l = 0; l < L; l++) *(Loose *)(to + l * to_next) = tile[l];
}

/* Rows from..to of several slices, side by side. */
NOINLINE void NAME(move_across)(const Strip *strip, void *tensor, int type, T *x, int64_t from, int64_t to, int write) {
    const Job *job = strip->job;
    int64_t inner = job->inner, o = inner == 1 ? from : from / inner, i = from - o * inner;
    int64_t width = strip->width, tiled = HAS_SHUFFLE && type == OWN && inner > 1 ? strip->lanes / L * L : 0;
    for (int64_t at = from, rows; at < to; at += rows, x += rows * width, i += rows) {
        if (i == inner) i = 0, o++;
        int64_t place = ((strip->batch * job->outer + o) * job->slices + strip->slice) * inner + i;
        rows = tiled && least(inner - i, to - at) >= L ? L : 1;
        int64_t done = rows == L ? tiled : 0;
        for (int64_t c = 0; c < done; c += L) {
            T *tile = (T *)tensor + place + c * inner;
            NAME(transpose)(write ? x + c : tile, write ? width : inner, write ? tile : x + c, write ? inner : width);
        }
        for (int64_t r = 0; done < strip->lanes && r < rows; r++)
            if (write)
                NAME(store)(x + r * width + done, tensor, type, place + done * inner + r, inner, strip->lanes - done);
            else
                NAME(load)(x + r * width + done, tensor, type, place + done * inner + r, inner, strip->lanes - done);
    }
}

/* Reads or writes rows from..to of a strip; lanes that stand empty hold 0. */
NOINLINE void NAME(move)(const Strip *strip, void *tensor, int type, T *x, int64_t from, int64_t to, int write) {
    int64_t width = strip->width, n = (to - from) * width;
    if (strip->along) {
        int64_t start = from * width, end = least(to * width, strip->size);
        NAME(move_along)(strip, tensor, type, x, start, end, write);
        if (!write)
            for (int64_t i = end - start; i < n; i++) x[i] = 0;
        return;
    }
    if (!write && strip->lanes < width)
        for (int64_t r = 0; r < to - from; r++)
            for (int64_t l = strip->lanes; l < width; l++) x[r * width + l] = 0;
    NAME(move_across)(strip, tensor, type, x, from, to, write);
}

/* How far apart the rows of a strip lie, if they can be read where they are; else 0. */
static int64_t NAME(apart)(const Strip *strip) {
    if (strip->along) return strip->job->outer == 1 ? L : 0;
    return strip->job->inner == 1 && strip->lanes == strip->width ? strip->job->slices : 0;
}

/* Whether columns are read row by row, and their metric is computed anew in each pass, as that takes less time. */
static int NAME(is_tall)(const Call *call, const Job *job) {
    int own = job->type == OWN && job->moment && job->moment_type == OWN;
    return call->metric && own && !call->op_count && job->inner == 1 && job->outer > NARROW && job->slices > NARROW;
}

/* What groups have, for each lane. */
static const T *NAME(of_lanes)(const Strip *strip, const T *of_groups, T *room) {
    if (strip->follows) return of_groups + strip->group[0];
    for (int64_t l = 0; l < strip->width; l++) room[l] = of_groups[strip->group[strip->along ? 0 : l]];
    return room;
}

/* Where row `at` of such a strip begins. */
INLINE T *NAME(place_of)(const Strip *strip, const void *tensor, int64_t at, int64_t next) {
    const Job *job = strip->job;
    return (T *)tensor + (strip->batch * job->outer * job->slices + strip->slice) * job->inner + at * next;
}

INLINE void NAME(add_lanes)(double *sums, V lanes) {
    T each[L] __attribute__((aligned(64)));
    PUT(each) = lanes;
    for (int64_t l = 0; l < L; l++) sums[l] += each[l];
}

/* The sum of the lanes of one vector, in halves. */
INLINE double NAME(sum_of)(const double *sums) {
    double halves[L];
    memcpy(halves, sums, sizeof(halves));
    for (int64_t n = L / 2; n > 0; n /= 2)
        for (int64_t l = 0; l < n; l++) halves[l] += halves[l + n];
    return halves[0];
}

/* Sums of x^2, of eight rows at a time. */
static void NAME(add_sums)(const T *x, int64_t rows, int64_t width, int64_t next, double *sums) {
    for (; rows > 0; rows -= 8, x += 8 * next)
        for (int64_t c = 0; c < width; c += L) {
            V a = {0}, b = {0}, y, z;
            const T *row = x + c;
            for (int64_t r = 0; rows < 8 && r < rows; r++) y = *(const Loose *)(row + r * next), a += y * y;
            UNROLL for (int64_t r = 0; r < 8; r += 2, row += 2 * next) { /* two sums, as one waits for its product */
                if (rows < 8) break;
                __builtin_prefetch(row + 8 * next, 1);
                __builtin_prefetch(row + 9 * next, 1);
                y = *(const Loose *)row, z = *(const Loose *)(row + next);
                a += y * y;
                b += z * z;
            }
            NAME(add_lanes)(sums + c, a + b);
        }
}

/* The sum of squares of numbers that follow each other. */
static double NAME(squares)(const T *x, int64_t n) {
    double sums[L] = {0};
    V rest = {0};
    NAME(add_sums)(x, n / L, L, L, sums);
    for (int64_t i = 0; i < n % L; i++) ((T *)&rest)[i] = x[n / L * L + i];
    NAME(add_lanes)(sums, rest * rest);
    return NAME(sum_of)(sums);
}

/* Takes elements from w, divides them and their steps by 1 + step * quadratic, and turns steps, which are lr / m, into
 * m = 1 / (step * linear) = 1 / t. Adds up x^2, x^2 t, x^2 t^2, (x / t)^2, (x / t)^2 / t, x^2 t^3 and x^2 t^4. */
static void NAME(take_parts)(const Block *block, const Strip *strip, const T *w, int64_t next, int64_t ahead, T *x,
                             T *m, int64_t rows, double *sums, int64_t stride) {
    T room[2][NARROW];
    const T *units = NAME(of_lanes)(strip, block->unit, room[0]);
    const T *curves = NAME(of_lanes)(strip, block->curve, room[1]);
    int64_t width = strip->width;
    int curved = block->call->quadratic != 0;
    for (int64_t c = 0; c < width; c += L) {
        V unit = *(const Loose *)(units + c), curve = *(const Loose *)(curves + c), largest = (V){0} + LARGEST;
        V a = {0}, b = {0}, d = {0}, e = {0}, f = {0}, g = {0}, h = {0};
        for (int64_t r = 0, at = c; r < rows; r++, at += width) {
            V y = *(const Loose *)(w + r * next + c), u = AT(m + at);
            __builtin_prefetch(w + r * next + c + ahead, 1);
            if (curved) {
                V shrunk = u + curve;
                y *= u / shrunk;
                u = shrunk;
            }
            u *= unit;
            u = PICK(u > largest, largest, u); /* NaN stays */
            PUT(x + at) = y;
            PUT(m + at) = u;
            if (!sums) continue;
            V t = 1 / u, q = y * y, z = y * u;
            a += q, q *= t;
            b += q, q *= t;
            d += q, q *= t;
            g += q, q *= t;
            h += q, z *= z;
            e += z, f += z * u;
        }
        V all[7] = {a, b, d, e, f, g, h};
        for (int k = 0; sums && k < 7; k++) NAME(add_lanes)(sums + k * stride + c, all[k]);
    }
}

/* What is left for the penalty of norms: elements in x, and 1 / (step * its strength) in m; adds up their sums. */
static void NAME(read_strip)(const Block *block, const Strip *strip, T *x, T *m, int64_t from, int64_t to, int64_t next,
                             double *sums, int64_t stride) {
    const Job *job = strip->job;
    const Call *call = block->call;
    int64_t width = strip->width, rows = to - from, n = rows * width;
    int64_t ahead = strip->along ? CHUNK : NAME(is_tall)(call, job) ? width : rows * next; /* what is read next */
    int in_place = next && call->metric && !call->op_count && job->type == OWN;
    const T *w = in_place ? NAME(place_of)(strip, job->w, from, next) : x, *v = m;
    if (!in_place) NAME(move)(strip, job->w, job->type, x, from, to, 0);
    if (!call->metric) {
        State state = {.x = x, .number = job->step.lr, .grouped = 1, .n = n};
        if (call->op_count) NAME(run)(call->ops, call->op_count, &state);
        if (sums) NAME(add_sums)(x, rows, width, width, sums);
        return;
    }
    if (!job->moment) {
        for (int64_t i = 0; i < n; i++) m[i] = 1;
    } else if (next && job->moment_type == OWN) {
        v = NAME(place_of)(strip, job->moment, from, next);
        NAME(denominators)(m, v, strip->along ? 1 : rows, strip->along ? n : width, next, ahead, &job->step, 0);
    } else {
        NAME(move)(strip, (void *)job->moment, job->moment_type, m, from, to, 0);
        NAME(denominators)(m, m, 1, n, n, 0, &job->step, 0);
    }
    T lr = (T)job->step.lr;
    if (call->op_count) {
        for (int64_t i = 0; i < n; i++) m[i] = lr / m[i];
        State state = {.x = x, .s = m, .grouped = 1, .n = n};
        NAME(run)(call->ops, call->op_count, &state);
        for (int64_t i = 0; i < n; i++) m[i] = lr / m[i];
    }
    NAME(take_parts)(block, strip, w, in_place ? next : width, in_place ? ahead : 0, x, m, rows, sums, stride);
}

/* Sums of (x / (theta + t))^2 and x^2 / (theta + t)^3. */
static void NAME(add_terms)(const T *theta, const T *x, const T *m, int64_t rows, int64_t width, double *sums,
                            int64_t stride) {
    for (int64_t c = 0; c < width; c += L) {
        V a = {0}, b = {0}, root = *(const Loose *)(theta + c);
        for (int64_t r = 0; r < rows; r++) {
            V u = AT(m + r * width + c), inverse = u / (root * u + 1), y = AT(x + r * width + c) * inverse, q = y * y;
            a += q;
            b += q * inverse;
        }
        NAME(add_lanes)(sums + c, a);
        NAME(add_lanes)(sums + stride + c, b);
    }
}

/* Scales rows that lie `next` apart by the factor of each lane, in a metric by root / (root + t) unless the strength is
 * 0, and writes them to rows that lie `to_next` apart. */
static void NAME(scale)(const Block *block, const Strip *strip, const T *x, int64_t next, const T *m, T *to,
                        int64_t to_next, int64_t rows) {
    T room[2][LANES];
    const T *factors = NAME(of_lanes)(strip, block->factor, room[0]);
    const T *frees = block->call->metric ? NAME(of_lanes)(strip, block->is_free, room[1]) : NULL;
    int64_t width = strip->width, metric = block->call->metric;
    for (int64_t r = 0; !metric && r < rows; r++)
        for (int64_t c = 0; c < width; c += L)
            *(Loose *)(to + r * to_next + c) = *(const Loose *)(x + r * next + c) * *(const Loose *)(factors + c);
    for (int64_t c = 0; metric && c < width; c += L) {
        V factor = *(const Loose *)(factors + c), one = (V){0} + 1;
        VI is_free = *(const Loose *)(frees + c) != 0;
        for (int64_t r = 0; r < rows; r++) {
            V part = factor * AT(m + r * width + c);
            part /= part + 1;
            part = PICK(is_free, one, part);
            *(Loose *)(to + r * to_next + c) = *(const Loose *)(x + r * next + c) * part;
        }
    }
}

/* Does a pass over one strip, chunk by chunk, and returns how many elements of the cache it takes. */
NOINLINE int64_t NAME(pass_strip)(Block *block, const Strip *strip, int pass, T *cache) {
    T own[2 * CHUNK] __attribute__((aligned(64))), room[LANES];
    double own_sums[LANES], *sums = own_sums;
    const Job *job = strip->job;
    const Call *call = block->call;
    int plain = PLAIN(call, job), resting = 1, kinds = pass == NAME(TERMS) ? 2 : call->metric ? 7 : 1;
    int64_t width = strip->width, rows = strip->along ? parts(strip->size, width) : strip->size, stride = width;
    int64_t next = NAME(apart)(strip), by = plain && next ? 64 : (int32_t)CHUNK / (int32_t)width;
    int64_t planes = plain && next && !strip->along ? 0 : NAME(is_tall)(call, job) ? 0 : call->metric ? 2 : 1;
    if (pass == NAME(MEASURE)) return planes * rows * width;
    const T *theta = pass == NAME(TERMS) ? NAME(of_lanes)(strip, block->theta, room) : NULL;
    if (pass == NAME(TERMS)) {
        for (int64_t l = 0; l < (strip->along ? 1 : strip->lanes); l++)
            resting &= block->rests[strip->follows ? strip->group[0] + l : strip->group[l]];
        if (resting) return planes * rows * width;
    }
    if (strip->follows)
        sums = block->total[0] + strip->group[0], stride = BLOCK + 8;
    else if (pass != NAME(WRITE))
        memset(sums, 0, (size_t)(kinds * width) * sizeof(double));
    if (!planes) cache = NULL;
    int64_t first = strip->along ? 0 : block->from, end = strip->along ? rows : least(block->to, rows);
    for (int64_t done = first; done < end; done += by) {
        int64_t from = pass == NAME(WRITE) ? (end - 1 - done) / by * by + first : done; /* what caches still hold */
        int64_t to = least(from + by, end), n = (to - from) * width;
        int64_t apart = strip->along && to * width > strip->size ? 0 : next; /* the last row may not be whole */
        T *x = cache ? cache + planes * from * width : own, *m = x + (cache ? n : CHUNK);
        T *place = apart && job->type == OWN ? NAME(place_of)(strip, job->w, from, apart) : NULL;
        if (plain && place) {
            if (pass == NAME(SUMS))
                NAME(add_sums)(place, to - from, width, apart, sums);
            else
                NAME(scale)(block, strip, place, apart, NULL, place, apart, to - from);
            continue;
        }
        if (pass == NAME(SUMS) || !cache)
            NAME(read_strip)(block, strip, x, m, from, to, apart, pass == NAME(SUMS) ? sums : NULL, stride);
        if (pass == NAME(TERMS)) NAME(add_terms)(theta, x, m, to - from, width, sums, stride);
        if (pass == NAME(WRITE)) {
            NAME(scale)(block, strip, x, width, m, place ? place : x, place ? apart : width, to - from);
            if (!place) NAME(move)(strip, job->w, job->type, x, from, to, 1);
        }
    }
    if (pass == NAME(WRITE) || strip->follows) return planes * rows * width;
    for (int k = 0; k < kinds; k++)
        if (strip->along)
            block->total[k][strip->group[0]] += NAME(sum_of)(sums + k * width);
        else
            for (int64_t l = 0; l < strip->lanes; l++) block->total[k][strip->group[l]] += sums[k * width + l];
    return planes * rows * width;
}

/* What the penalty of each group's norm is for one tensor: 1 / (lr * linear), lr * quadratic, and whether it is 0. */
static void NAME(take_strengths)(Block *block, const Job *job) {
    double lr = job->step.lr;
    block->of = job;
    for (int64_t g = 0; g < block->groups; g++) {
        double linear = lr * block->linear[g];
        block->unit[g] = (T)(1 / linear), block->is_free[g] = linear == 0;
        block->curve[g] = (T)(lr * block->quadratic[g]);
    }
}

/* Does a pass over the slices of one tensor that belong to groups of the block. */
NOINLINE T *NAME(pass_job)(Block *block, const Job *job, int64_t first, int64_t end, int pass, T *cache) {
    int64_t group = 0;
    if (block->of != job && pass != NAME(MEASURE) && block->call->metric) NAME(take_strengths)(block, job);
    int along = LIES_ALONG(job), tall = NAME(is_tall)(block->call, job);
    int64_t widest = (PLAIN(block->call, job) ? LANES : NARROW) * (int64_t)sizeof(float) / (int64_t)sizeof(T);
    for (int64_t at = first, run; at < end; at += run) {
        int64_t slice = job->order ? job->order[at] : at, batch = job->batch == 1 ? 0 : slice / job->slices;
        Strip strip;
        strip.job = job, strip.batch = batch, strip.slice = slice - batch * job->slices;
        int64_t together = along ? 1 : least(least(end - at, job->slices - strip.slice), widest);
        for (run = 0; job->order && run < together && job->order[at + run] == slice + run; run++) {
            while (at + run >= job->starts[block->first + group + 1]) group++;
            strip.group[run] = (int16_t)group;
        }
        if (!job->order) run = together, strip.group[0] = (int16_t)(at + job->begin - block->first);
        if (job->inner == 1 && run > L) run -= run % L; /* whole vectors are read where they are */
        strip.size = job->outer * job->inner;
        strip.along = along || (run < L / 2 && !tall);
        if (strip.along) run = 1;
        strip.lanes = run, strip.width = strip.along ? L : parts(run, L) * L;
        strip.follows = !job->order && run == strip.width;
        for (int l = 1; !job->order && !strip.follows && l < run; l++) strip.group[l] = (int16_t)(strip.group[0] + l);
        for (int64_t l = run; l < strip.width; l++) strip.group[l] = strip.group[0];
        if (job->order) group = strip.group[run - 1];
        int64_t used = NAME(pass_strip)(block, &strip, pass, cache);
        if (pass == NAME(MEASURE)) block->need += used;
        if (cache) cache += used;
    }
    return cache;
}

NOINLINE void NAME(pass)(Block *block, int pass) {
    T *cache = block->cache;
    for (int k = 0; k < 7; k++) memset(block->total[k], 0, (size_t)block->groups * sizeof(double));
    for (int64_t i = 0; i < block->count; i++) {
        const Job *job = block->jobs + i;
        int64_t past = block->first + block->groups; /* the last group */
        int64_t first = job->order ? job->starts[block->first] : most(block->first - job->begin, 0);
        int64_t end = job->order ? job->starts[past] : least(past - job->begin, job->batch * job->slices);
        if (first >= end) continue;
        int64_t rows = NAME(is_tall)(block->call, job) && pass != NAME(MEASURE) ? TALL : INT64_MAX / 2;
        for (block->from = 0; block->from < job->outer * job->inner; block->from = block->to)
            block->to = block->from + rows, cache = NAME(pass_job)(block, job, first, end, pass, cache);
    }
}

/* A point near the root of a group's secular equation or below it: see `secular_start` and `secular_lower_bound`. */
static T NAME(start)(T square, T weighted, T second, T dual_square, T dual_weighted) {
    T norm = SQRT(square), safe = square < TINY ? TINY : square, mean = weighted / safe;
    T spread = (second / safe - mean * mean) / safe;
    T near = spread > 0 && spread < (T)0.1 ? norm * (1 + (T)1.5 * spread) - mean : 0;
    T by_dual = (SQRT(dual_square) - 1) * (dual_square / (dual_weighted < TINY ? TINY : dual_weighted));
    T bound = FMAX(FMAX(norm - mean, by_dual), SHARE * norm);
    bound = bound < TINY ? TINY : bound;
    return FMAX(near, norm > MOST ? norm : bound);
}

/* The root of a group whose t are small beside it, by their means and those of their powers, in units of the norm. It
 * solves sum x^2 / (root + t)^2 = 1 as a series, of which the rest is lost to rounding; 0 where it would not be. */
static double NAME(by_powers)(const Block *block, int64_t g) {
    double square = block->total[0][g], norm = sqrt(square), unit = 1 / norm, scale = unit * unit * unit, h = 1;
    double a = block->total[1][g] * scale, b = block->total[2][g] * (scale *= unit);
    double c = block->total[5][g] * (scale *= unit), d = block->total[6][g] * (scale * unit);
    if (!(square > sqrt(TINY) && norm < LARGEST && a < 0.02 && 5 * d < OF_T(FLT_EPSILON, DBL_EPSILON) / 8)) return 0;
    double last = 0;
    for (int k = 0; k < 12 && h != last; k++) {
        double inverse = 1 / h;
        last = h, h = sqrt(1 - inverse * (2 * a - inverse * (3 * b - inverse * 4 * c)));
    }
    return norm * h;
}

/* Newton's method on all groups of a block that are not at rest. */
static void NAME(solve)(Block *block) {
    int done = 1;
    for (int64_t g = 0; g < block->groups; g++) {
        double (*sums)[BLOCK + 8] = block->total;
        block->zero[g] = block->rests[g] = (T)sums[3][g] <= 1;
        block->theta[g] = NAME(start)((T)sums[0][g], (T)sums[1][g], (T)sums[2][g], (T)sums[3][g], (T)sums[4][g]);
        double root = block->rests[g] ? 0 : NAME(by_powers)(block, g);
        if (root > 0) block->theta[g] = (T)root, block->rests[g] = 1;
        done &= block->rests[g];
    }
    for (int k = 0; k < NEWTON_ITERATIONS && !done; k++) {
        NAME(pass)(block, NAME(TERMS));
        done = 1;
        for (int64_t g = 0; g < block->groups; g++) {
            if (block->rests[g]) continue;
            T theta = block->theta[g], total = (T)block->total[0][g], slope = (T)block->total[1][g];
            T moved = theta + (SQRT(total) - 1) * total / (slope < TINY ? TINY : slope);
            if (theta > MOST) moved = theta;
            block->rests[g] = ABS(moved - theta) <= AT_REST * moved || !(ABS(moved) <= MOST);
            block->theta[g] = moved;
            done &= block->rests[g];
        }
    }
    for (int64_t g = 0; g < block->groups; g++)
        block->factor[g] = block->zero[g] ? 0 : block->theta[g] > LARGEST ? LARGEST : block->theta[g];
}

/* prox(norm) / norm of each group, in the metric of one step for all. */
static void NAME(factors)(Block *block) {
    const Call *call = block->call;
    T norms[BLOCK], moved[BLOCK], steps[BLOCK];
    State own = {.number = block->jobs->step.lr}; /* what the operations on elements leave of the step */
    NAME(run)(call->ops, call->op_count, &own);
    State state = {.x = moved, .n = block->groups, .rounded = own.rounded};
    double weight = block->jobs->weight;
    state.number = own.rounded ? (T)own.number * (T)weight : own.number * weight;
    for (int64_t g = 0; g < block->groups; g++) {
        T norm = SQRT((T)block->total[0][g]);
        norm = norm > LARGEST ? LARGEST : norm;
        norms[g] = moved[g] = norm < 1 / LARGEST ? 1 / LARGEST : norm;
        if (call->weights) steps[g] = (T)(own.number * call->weights[block->first + g]);
    }
    if (call->weights) state.s = steps;
    NAME(run)(call->norm_ops, call->norm_op_count, &state);
    int skipped = own.rounded && own.number == 0; /* a constraint leaves NaN alone too, then */
    for (int64_t g = 0; g < block->groups; g++) block->factor[g] = skipped ? 1 : moved[g] / norms[g];
}

static void NAME(begin)(Block *block, const Call *call, const Job *jobs, int64_t count, int64_t first, int64_t groups) {
    block->call = call, block->jobs = jobs, block->count = count, block->first = first, block->groups = groups;
    block->need = 0, block->cache = NULL, block->of = NULL;
}

/* Memory of this thread's own, at a multiple of 64 bytes; NULL if there is none. */
static T *NAME(scratch)(int64_t size) {
    static _Thread_local void *memory;
    static _Thread_local int64_t held;
    if (size > held) {
        free(memory);
        held = posix_memalign(&memory, 64, (size_t)size * sizeof(T)) ? 0 : size;
        if (!held) memory = NULL;
    }
    return memory;
}

/* Moves groups, half as many at a time until a cache holds them, where they are of several tensors. */
static void NAME(move_block)(const Call *call, const Job *jobs, int64_t count, int64_t first, int64_t groups) {
    Block block;
    for (int64_t end = first + groups; first < end; first += groups, groups = end - first) {
        for (;;) {
            NAME(begin)(&block, call, jobs, count, first, groups);
            NAME(pass)(&block, NAME(MEASURE));
            if (count == 1 || groups <= L || block.need <= FAR) break;
            groups = parts(groups / 2, L) * L;
        }
        for (int64_t g = 0; g < groups; g++) {
            block.theta[g] = block.factor[g] = block.rests[g] = block.zero[g] = 0;
            double weight = call->weights ? call->weights[first + g] : jobs->weight;
            block.linear[g] = call->linear * weight;
            block.quadratic[g] = call->quadratic * weight;
        }
        block.cache = block.need <= FARTHEST ? NAME(scratch)(block.need) : NULL;
        NAME(pass)(&block, NAME(SUMS));
        if (!call->metric)
            NAME(factors)(&block);
        else if (call->linear != 0)
            NAME(solve)(&block);
        NAME(pass)(&block, NAME(WRITE));
    }
}

/* Moves rows that are scaled by one step for all where they are, without a copy. */
static void NAME(move_rows)(const Call *call, const Job *job, int64_t first, int64_t groups) {
    T *rows = (T *)job->w + first * job->inner;
    Block block;
    NAME(begin)(&block, call, job, 1, first, groups);
    for (int64_t g = 0; g < groups; g++) block.total[0][g] = NAME(squares)(rows + g * job->inner, job->inner);
    NAME(factors)(&block);
    for (int64_t g = 0; g < groups; g++) {
        T *row = rows + g * job->inner, factor = block.factor[g];
        for (int64_t i = 0; i < job->inner; i++) row[i] *= factor;
    }
}

/* How many groups are solved together: as many as a cache holds, of what is kept, or as leave work for each thread. */
static int64_t NAME(block_of)(const Call *call, const Job *job, int64_t total) {
    int64_t groups = most(job->batch * job->slices, 1), lanes = least(NARROW, 4 * L);
    int64_t size = parts((call->metric ? 2 : 1) * size_of(job), groups);
    if (LIES_ALONG(job)) return most(1, least(BLOCK, NEAR / most(size, 1)));
    if ((PLAIN(call, job) && job->inner == 1) || NAME(is_tall)(call, job)) {
        size = job->outer * job->inner;
        for (lanes = BLOCK; lanes > NARROW && least(lanes, groups) * size > total / most(call->threads, 1);) lanes /= 2;
        return lanes;
    }
    while (lanes > L && lanes * size > FAR) lanes /= 2;
    return lanes * size > FARTHEST ? BLOCK : lanes;
}

static void NAME(prox_task)(const void *given, int64_t index) {
    const Call *call = given;
    if (call->form == COUPLED) {
        const int64_t *begin = call->blocks + index;
        NAME(move_block)(call, call->jobs, call->count, begin[0], begin[1] - begin[0]);
        return;
    }
    int64_t place = 0;
    FIND_JOB(call->jobs, call->count, index, place);
    const Job *job = call->jobs + place;
    int64_t first = index * job->block;
    if (call->form == ELEMENTS)
        NAME(elements)(call, job, first, least(first + job->block, size_of(job)));
    else if (!call->metric && !call->op_count && job->type == OWN && job->outer == 1 && job->inner > 1)
        NAME(move_rows)(call, job, first, least(job->block, job->batch * job->slices - first));
    else
        NAME(move_block)(call, job, 1, first, least(job->block, job->batch * job->slices - first));
}

static void NAME(prox)(Call *call) {
    int64_t tasks = 0, size = 0;
    for (int64_t i = 0; i < call->count; i++) size += size_of(call->jobs + i);
    for (int64_t i = 0; i < call->count; i++) {
        Job *job = call->jobs + i;
        job->w = call->ws[i], job->moment = call->moments ? call->moments[i] : NULL;
        job->step = call->steps[call->alike ? 0 : i];
        job->block = call->form == ELEMENTS ? PIECE : NAME(block_of)(call, job, size);
        job->tasks = tasks += parts(call->form == ELEMENTS ? size_of(job) : job->batch * job->slices, job->block);
    }
    if (call->form == COUPLED) tasks = call->block_count;
    run_tasks(NAME(prox_task), call, tasks, size, call->threads);
}

#include "native_zeros.c"

#endif
