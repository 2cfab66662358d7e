/* Zeros that averaged gradients hold: a part of `native.c`, which includes it for each type T, and once without one.
 *
 * The running sum of gradients takes one more in. An element that is 0 stays there if the average is no larger than the
 * slope of its penalty, and a group if the norm is, of what is left of the average by a soft threshold.
 */
#ifdef T

static void NAME(take_in)(const Holding *holding, const Held *held, int64_t at, int64_t n, T *restrict w,
                          T *restrict mean) {
    const T *total = (const T *)held->sums[holding->turn] + at;
    T *next = (T *)held->sums[1 - holding->turn] + at, weight = (T)held->weights[1 - holding->turn];
    T share = (T)held->share, sign = (T)held->sign, most_ = (T)held->most;
    weight = weight < TINY ? TINY : weight;
    NAME(load)(w, held->w, held->type, at, 1, n);
    NAME(load)(mean, held->grad, held->grad_type, at, 1, n);
    for (int64_t i = 0; i < n; i++) {
        next[i] = total[i] + share * (mean[i] * sign - total[i]);
        T average = next[i] / weight;
        mean[i] = average > most_ ? 0 : average;
    }
}

/* Adds squares to the sums of one group, or of the group of each element where they take turns; notes the elements that
 * are held by themselves, if the penalty holds any. */
NOINLINE void NAME(add_squares)(const Held *held, const T *restrict w, const T *restrict mean, int64_t n, int64_t group,
                                uint8_t *restrict mask) {
    double *restrict weights = held->room + group, *restrict means = weights + held->batch * held->slices;
    T slope = (T)held->slope, of_elements[CHUNK];
    const T *left = slope < 0 ? mean : of_elements;
    if (slope < 0) memset(mask, 0, (size_t)n);
    for (int64_t i = 0; slope >= 0 && i < n; i++) mask[i] = (w[i] == 0) & (ABS(mean[i]) <= slope);
    for (int64_t i = 0; slope >= 0 && i < n; i++) of_elements[i] = NAME(soft)(mean[i], slope);
    if (held->inner == 1) {
        for (int64_t i = 0; i < n; i++) weights[i] += (double)(w[i] * w[i]);
        for (int64_t i = 0; i < n; i++) means[i] += (double)(left[i] * left[i]);
    } else {
        *weights += NAME(squares)(w, n);
        *means += NAME(squares)(left, n);
    }
}

static void NAME(hold_groups)(const Holding *holding, const Held *held) {
    T w[CHUNK], mean[CHUNK], weight = (T)held->group_weight, limit = (T)held->group_slope;
    int64_t inner = held->inner, row = held->slices * inner, count = held->batch * held->slices;
    double *sums = memset(held->room, 0, (size_t)(2 * count) * sizeof(double));
    for (int64_t r = 0; r < held->batch * held->outer; r++)
        for (int64_t at = 0, n; at < row; at += n) {
            n = least(CHUNK, row - at);
            NAME(take_in)(holding, held, r * row + at, n, w, mean);
            for (int64_t i = 0, run; i < n; i += run) { /* inner == 1: all that is read; else what is of one group */
                int64_t group = r / held->outer * held->slices + (at + i) / inner;
                run = inner == 1 ? n : least(inner - (at + i) % inner, n - i);
                NAME(add_squares)(held, w + i, mean + i, run, group, held->mask + r * row + at + i);
            }
        }
    for (int64_t g = 0; g < count; g++) /* 2 where a group stays, 1 where its elements decide */
        sums[g] = (T)sums[g] == 0 && SQRT((T)sums[count + g]) / weight <= limit ? 2 : (T)sums[g] > 0;
    for (int64_t r = 0; r < held->batch * held->outer; r++) {
        const double *stay = sums + r / held->outer * held->slices;
        uint8_t *mask = held->mask + r * row;
        for (int64_t i = 0; inner == 1 && i < row; i++) mask[i] = (stay[i] == 2) | ((stay[i] == 1) & mask[i]);
        for (int64_t slice = 0; inner > 1 && slice < held->slices; slice++, mask += inner)
            if (stay[slice] != 1) memset(mask, stay[slice] == 2, (size_t)inner);
    }
}

static void NAME(hold_task)(const void *given, int64_t index) {
    const Holding *holding = given;
    int64_t place = 0;
    FIND_JOB(holding->held, holding->count, index, place);
    const Held *held = holding->held + place;
    if (held->room) {
        NAME(hold_groups)(holding, held);
        return;
    }
    T w[CHUNK], mean[CHUNK], slope = (T)held->slope;
    for (int64_t at = index * PIECE, end = least(at + PIECE, held->size), n; at < end; at += n) {
        n = least(CHUNK, end - at);
        uint8_t *mask = held->mask + at;
        NAME(take_in)(holding, held, at, n, w, mean);
        for (int64_t i = 0; i < n; i++) mask[i] = (w[i] == 0) & (ABS(mean[i]) <= slope);
    }
}

#else

/* Averages gradients, notes which zeros they hold, and returns 1; 0, and nothing is done, if a tensor is not found. */
EXPORT int shrinkage_hold(const Holding *holding) {
    if (!all_found(holding->searches, 2)) return 0;
    int64_t tasks = 0, size = 0;
    int turn = holding->turn;
    for (int64_t i = 0; i < holding->count; i++) {
        Held *held = holding->held + i;
        double *weights = held->weights, next = weights[turn] + held->share * (1 - weights[turn]);
        weights[1 - turn] = holding->wide ? next : (float)next;
        held->w = holding->ws[held->place], held->grad = holding->grads[i];
        held->tasks = tasks += held->room ? 1 : parts(held->size, PIECE);
        size += held->size;
    }
    run_tasks(holding->wide ? hold_task_double : hold_task_float, holding, tasks, size, holding->threads);
    return 1;
}

#define RESTORE(kind) \
    for (int64_t j = 0; j < held->size; j++) ((kind *)held->w)[j] = held->mask[j] ? 0 : ((kind *)held->w)[j]

/* Sets elements to 0 where the mask is 1, and returns 1; 0, and nothing is done, if a parameter is not found. */
EXPORT int shrinkage_restore(const Holding *holding) {
    if (!all_found(holding->searches, 1)) return 0;
    for (Held *held = holding->held; held < holding->held + holding->count; held++) {
        held->w = holding->ws[held->place];
        if (held->type == FLOAT32) RESTORE(float);
        if (held->type == FLOAT64) RESTORE(double);
        if (held->type == BFLOAT16 || held->type == FLOAT16) RESTORE(uint16_t);
    }
    return 1;
}

#endif
