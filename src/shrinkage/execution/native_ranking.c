/* The ranking of weights by their sizes, and those that are cut and kept aside. Part of `native.c`, which includes it.
 *
 * A size is a pattern: the bits of the number in float32 without its sign, as a whole number. Patterns are taken from a
 * chunk at a time, and everything else is the same for all types.
 */
enum { DIGITS = 1 << 11 };   /* values of a digit, at most */
enum { FEW = 32 };           /* patterns that are looked at together */

typedef struct {
    void *w, *aside;
    int32_t *room;       /* for the patterns in the window */
    int64_t *counts;     /* of the values of a digit */
    int64_t size, spare; /* elements, and those that the room has space for */
    int64_t low, high;   /* the window: patterns above low, up to high */
    int64_t above, inside, back; /* found: sizes above the window and in it; elements that were aside and stay now */
    int64_t pattern, ties;       /* what is larger stays, and the first `ties` elements that equal it */
    int64_t prefix, shift, bits; /* a digit, of the patterns that have this prefix above it */
    int64_t tasks;
    int32_t type, padding;
} Ranked;

typedef struct {
    Ranked *ranked;
    int64_t count;
    void (*act)(Ranked *, int64_t, int64_t);
} Ranking;

#define PATTERNS(kind, number) \
    EACH_OF(const kind, ranked->w, p[i] = (int32_t)(bits_of(number) & 0x7FFFFFFF))

NOINLINE void take_patterns(const Ranked *ranked, int64_t at, int64_t n, int32_t *restrict p) {
    const int64_t stride = 1;
    if (ranked->type == FLOAT32) PATTERNS(float, own[place]);
    if (ranked->type == FLOAT64) PATTERNS(double, (float)own[place]);
    if (ranked->type == BFLOAT16) PATTERNS(uint16_t, from_bfloat16(own[place]));
    if (ranked->type == FLOAT16) PATTERNS(uint16_t, from_float16(own[place]));
}

/* Counts the values of a digit. */
static void count_digits(Ranked *ranked, int64_t from, int64_t to) {
    int32_t p[CHUNK], counts[DIGITS + 1] = {0}, others = DIGITS, mask = (1 << ranked->bits) - 1;
    int32_t prefix = (int32_t)ranked->prefix, shift = (int32_t)ranked->shift, above = shift + (int32_t)ranked->bits;
    for (int64_t at = from, n; at < to; at += n) {
        take_patterns(ranked, at, n = least(CHUNK, to - at), p);
        for (int64_t i = 0; i < n; i++)
            counts[(int32_t)((uint32_t)p[i] >> above) == prefix ? (p[i] >> shift) & mask : others]++;
    }
    for (int32_t d = 0; d <= mask; d++)
        if (counts[d]) __atomic_fetch_add(ranked->counts + d, counts[d], __ATOMIC_RELAXED);
}

/* Counts what is above a window, and takes out what is in it, in no order. */
static void look(Ranked *ranked, int64_t from, int64_t to) {
    int32_t p[CHUNK], found[PIECE + FEW], low = (int32_t)ranked->low, high = (int32_t)ranked->high;
    int64_t above = 0, inside = 0;
    for (int64_t at = from, n; at < to; at += n) {
        take_patterns(ranked, at, n = least(CHUNK, to - at), p);
        for (int64_t i = n; i % FEW; i++) p[i] = 0; /* in no window */
        for (const int32_t *q = p; q < p + n; q += FEW) {
            int32_t larger = 0, reached = 0;
            for (int i = 0; i < FEW; i++) larger += q[i] > high, reached += q[i] > low;
            above += larger;
            if (reached == larger) continue;
            for (int i = 0; i < FEW; i++) found[inside] = q[i], inside += (q[i] > low) & (q[i] <= high);
        }
    }
    __atomic_fetch_add(&ranked->above, above, __ATOMIC_RELAXED);
    int64_t place = __atomic_fetch_add(&ranked->inside, inside, __ATOMIC_RELAXED);
    if (place + inside <= ranked->spare) memcpy(ranked->room + place, found, (size_t)inside * sizeof(int32_t));
}

#define MOVE(kind, was_there)                                                                      \
    do { kind *restrict w = (kind *)ranked->w + at, *restrict aside = (kind *)ranked->aside + at;  \
         for (int64_t i = 0; i < n; i++) {                                                         \
             kind x = w[i], old = aside[i];                                                        \
             back += stays[i] & (was_there);                                                       \
             w[i] = stays[i] ? x : 0, aside[i] = stays[i] ? 0 : x;                                 \
         } } while (0)

/* Moves what does not stay aside, and leaves +0.0; ties go in the order of elements, by one task. */
static void cut(Ranked *ranked, int64_t from, int64_t to) {
    int32_t p[CHUNK], stays[CHUNK], pattern = (int32_t)ranked->pattern;
    int64_t seen = 0, all_back = 0;
    for (int64_t at = from, n; at < to; at += n) {
        int32_t back = 0;
        take_patterns(ranked, at, n = least(CHUNK, to - at), p);
        for (int64_t i = 0; i < n; i++) stays[i] = p[i] > pattern;
        for (int64_t i = 0; ranked->ties && i < n; i++)
            if (p[i] == pattern) stays[i] = seen++ < ranked->ties;
        if (ranked->type == FLOAT32) MOVE(float, old != 0);
        if (ranked->type == FLOAT64) MOVE(double, old != 0);
        if (ranked->type == BFLOAT16 || ranked->type == FLOAT16) MOVE(uint16_t, (old & 0x7FFF) != 0);
        all_back += back;
    }
    __atomic_fetch_add(&ranked->back, all_back, __ATOMIC_RELAXED);
}

#define BRING(kind, is_zero)                                                                               \
    do { kind *restrict w = (kind *)ranked->w + from; const kind *aside = (kind *)ranked->aside + from;    \
         for (int64_t i = 0; i < to - from; i++) w[i] = is_zero ? aside[i] : w[i]; } while (0)

/* Brings back what is aside, where an element is still zero. */
static void bring_back(Ranked *ranked, int64_t from, int64_t to) {
    if (ranked->type == FLOAT32) BRING(float, w[i] == 0);
    if (ranked->type == FLOAT64) BRING(double, w[i] == 0);
    if (ranked->type == BFLOAT16 || ranked->type == FLOAT16) BRING(uint16_t, (w[i] & 0x7FFF) == 0);
}

static void rank_task(const void *given, int64_t index) {
    const Ranking *ranking = given;
    int64_t place = 0;
    FIND_JOB(ranking->ranked, ranking->count, index, place);
    Ranked *ranked = ranking->ranked + place;
    int64_t from = index * PIECE;
    ranking->act(ranked, from, ranking->act == cut && ranked->ties ? ranked->size : least(from + PIECE, ranked->size));
}

/* Counts digits, looks at a window, cuts, or brings back: 0 to 3. */
EXPORT void shrinkage_rank(Ranked *ranked, int64_t count, int what, int threads) {
    void (*acts[])(Ranked *, int64_t, int64_t) = {count_digits, look, cut, bring_back};
    Ranking ranking = {ranked, count, acts[what]};
    int64_t tasks = 0, size = 0;
    for (Ranked *each = ranked; each < ranked + count; each++) {
        each->above = each->inside = each->back = 0;
        each->tasks = tasks += ranking.act == cut && each->ties ? 1 : parts(each->size, PIECE);
        size += each->size;
    }
    run_tasks(rank_task, &ranking, tasks, size, threads);
}
