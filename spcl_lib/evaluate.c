/* Average precision of float32 scores, by a radix sort of each class; see evaluate.py. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS = 8, BITS = 11, DIGITS = 3, BUCKETS = 1 << BITS };  /* 16 columns take twice as long */

/* An integer whose order is the order of the scores; -0 and 0 are equal. */
static uint32_t order_of(float score) {
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Returns `items` or `spare`, whichever holds the sorted items. */
static uint32_t *sort_ascending(uint32_t *items, uint32_t *spare, int64_t count) {
    int64_t places[DIGITS][BUCKETS] = {{0}};
    for (int64_t i = 0; i < count; i++)
        for (int d = 0; d < DIGITS; d++) places[d][items[i] >> BITS * d & (BUCKETS - 1)]++;
    for (int d = 0; d < DIGITS && count; d++) {
        int64_t *place = places[d], sum = 0;
        if (place[items[0] >> BITS * d & (BUCKETS - 1)] == count) continue;  /* all equal */
        for (int k = 0; k < BUCKETS; k++) {
            const int64_t number = place[k];
            place[k] = sum;
            sum += number;
        }
        for (int64_t i = 0; i < count; i++)
            spare[place[items[i] >> BITS * d & (BUCKETS - 1)]++] = items[i];
        uint32_t *const sorted = spare;
        spare = items;
        items = sorted;
    }
    return items;
}

/* AP in percent, from ascending scores of all images and of the positives; NaN without any. */
static double precision_of(const uint32_t *all, int64_t count, const uint32_t *positive,
                           int64_t positives) {
    double sum = 0;
    int64_t below = count;  /* images whose score is below the positive's */
    for (int64_t i = positives - 1; i >= 0;) {
        const uint32_t score = positive[i];
        int64_t gained = 0;
        for (; i >= 0 && positive[i] == score; i--) gained++;  /* equal scores count together */
        while (below > 0 && all[below - 1] >= score) below--;
        sum += (double)gained * (double)(positives - 1 - i) / (double)(count - below);
    }
    return 100.0 * sum / (double)positives;
}

/* scores, labels and ignored (or null) are (N, C), row by row; result (C).
   Returns 0, 1 without memory, 2 if a score is not finite. */
int average_precisions(const float *scores, const uint8_t *labels, const uint8_t *ignored,
                       double *result, int64_t N, int64_t C) {
    uint32_t *all = malloc(sizeof(uint32_t) * (size_t)N * (2 * COLUMNS + 1) + 1);
    if (!all) return 1;
    uint32_t *positive = all + N * COLUMNS, *spare = positive + N * COLUMNS;
    int failed = 0;
    for (int64_t first = 0; first < C && !failed; first += COLUMNS) {
        const int64_t wide = C - first < COLUMNS ? C - first : COLUMNS;
        int64_t counts[COLUMNS] = {0}, positives[COLUMNS] = {0};
        for (int64_t n = 0; n < N; n++)
            for (int64_t c = 0; c < wide; c++) {
                const int64_t at = n * C + first + c;
                const uint32_t order = order_of(scores[at]);
                if (!(scores[at] - scores[at] == 0.0f)) failed = 2;  /* infinity or NaN */
                if (ignored && ignored[at]) continue;
                all[c * N + counts[c]++] = order;
                positive[c * N + positives[c]] = order;  /* overwritten unless it is one */
                positives[c] += labels[at];
            }
        for (int64_t c = 0; c < wide && !failed; c++) {
            /* The spare room takes one array at a time: sort, and copy back what ended there. */
            uint32_t *sorted = sort_ascending(positive + c * N, spare, positives[c]);
            if (sorted == spare)
                memcpy(positive + c * N, spare, sizeof(uint32_t) * (size_t)positives[c]);
            sorted = sort_ascending(all + c * N, spare, counts[c]);
            result[first + c] =
                precision_of(sorted, counts[c], positive + c * N, positives[c]);
        }
    }
    free(all);
    return failed;
}
