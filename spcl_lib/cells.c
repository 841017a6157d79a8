/* The arithmetic of cells.py on uint8 heatmaps, operation by operation, so that all bits agree.
   cells.py says what the arguments are. B images, C classes, W x W cells, maps of G x G cells. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int low, high; float share; } Sample;  /* between two neighbouring cells */

static Sample sample(float at, int cells) {
    at = at * (float)cells - 0.5f;
    if (at < 0.0f) at = 0.0f;
    if (at > (float)(cells - 1)) at = (float)(cells - 1);
    const int low = (int)at;
    return (Sample){low, low + 1 < cells ? low + 1 : low, at - (float)low};
}

static float centre(int cell, int cells) { return ((float)cell + 0.5f) / (float)cells; }

/* Lerps two rows of a plane of bytes into a line of W values. */
static void mix_rows(const uint8_t *restrict plane, Sample row, int W, float *restrict line) {
    const uint8_t *top = plane + row.low * W, *bottom = plane + row.high * W;
    for (int x = 0; x < W; x++) {
        const float value = top[x];
        line[x] = value + row.share * ((float)bottom[x] - value);
    }
}

/* Returns 0, or 1 without memory. */
int read_cells(const uint8_t *heatmaps, const uint8_t *seen, const int64_t *indices,
               const float *boxes, const uint8_t *flipped, float *target, float *mask,
               int64_t B, int64_t C, int64_t size, int64_t grid) {
    const int W = (int)size, G = (int)grid, GG = G * G;
    Sample *rows = malloc(sizeof(Sample) * G);
    int *low = malloc(sizeof(int) * 2 * GG), *high = low + GG;  /* in the mixed lines */
    float *share = malloc(sizeof(float) * (2 * GG + G * W)), *scale = share + GG;
    float *lines = scale + GG;  /* (G, W) */
    const int failed = !rows || !low || !share;
    for (int64_t b = 0; b < B && !failed; b++) {
        const float *box = boxes + 4 * b;
        for (int i = 0; i < G; i++) {
            float across = centre(i, G);
            rows[i] = sample(box[1] + across * (box[3] - box[1]), W);
            if (flipped[b]) across = 1.0f - across;
            const Sample column = sample(box[0] + across * (box[2] - box[0]), W);
            for (int y = 0; y < G; y++) {
                low[y * G + i] = y * W + column.low;
                high[y * G + i] = y * W + column.high;
                share[y * G + i] = column.share;
            }
        }
        for (int y = 0; y < G; y++) mix_rows(seen + indices[b] * W * W, rows[y], W, lines + y * W);
        for (int i = 0; i < GG; i++) {
            const float left = lines[low[i]];
            const float weight = left + share[i] * (lines[high[i]] - left);
            mask[b * GG + i] = weight >= (float)(0.5 - 1e-6) ? 1.0f : 0.0f;
            scale[i] = mask[b * GG + i] / (255.0f * (weight > 1e-6f ? weight : 1e-6f));
        }
        for (int64_t c = 0; c < C; c++) {
            const uint8_t *plane = heatmaps + (indices[b] * C + c) * W * W;
            float *restrict out = target + (b * C + c) * GG;
            for (int y = 0; y < G; y++) mix_rows(plane, rows[y], W, lines + y * W);
            for (int i = 0; i < GG; i++) {
                const float left = lines[low[i]];
                const float value = (left + share[i] * (lines[high[i]] - left)) * scale[i];
                out[i] = value < 1.0f ? value : 1.0f;
            }
        }
    }
    free(rows), free(low), free(share);
    return failed;
}

/* Returns 0, or 1 without memory; then nothing has changed. */
int update_cells(uint8_t *heatmaps, uint8_t *seen, const int64_t *indices, const float *boxes,
                 const uint8_t *flipped, const float *maps, const float *noise,
                 const int64_t *starts, int64_t B, int64_t C, int64_t size, int64_t grid,
                 float fresh) {
    const int W = (int)size, G = (int)grid, GG = G * G, GW = G * W, WW = W * W;
    Sample *rows = malloc(sizeof(Sample) * W);
    int *low = malloc(sizeof(int) * 2 * GW), *high = low + GW;
    float *across = malloc(sizeof(float) * (2 * GW + GG + 2 * WW)), *wide = across + GW;
    float *scaled = wide + GW, *share = scaled + GG, *value = share + WW;
    const int failed = !rows || !low || !across;
    for (int64_t b = 0; b < B && !failed; b++) {
        const float *box = boxes + 4 * b;
        uint8_t *known = seen + indices[b] * WW;
        int first = W, last = -1;  /* rows that the view shows */
        for (int i = 0; i < W; i++) {
            const float at = centre(i, W);
            rows[i] = sample((at - box[1]) / (box[3] - box[1]), G);
            if (at >= box[1] && at <= box[3]) {
                first = i < first ? i : first;
                last = i;
            }
            const float x = (at - box[0]) / (box[2] - box[0]);
            const Sample column = sample(flipped[b] ? 1.0f - x : x, G);
            for (int y = 0; y < G; y++) {
                low[y * W + i] = y * G + column.low;
                high[y * W + i] = y * G + column.high;
                across[y * W + i] = column.share;
            }
        }
        if (last < 0) continue;
        memset(share, 0, sizeof(float) * WW);  /* share 0: the cell stays as it is */
        for (int y = first; y <= last; y++)
            for (int x = 0; x < W; x++)
                if (centre(x, W) >= box[0] && centre(x, W) <= box[2]) {
                    share[y * W + x] = known[y * W + x] ? fresh : 1.0f;
                    known[y * W + x] = 1;
                }
        const int from = rows[first].low * W, to = (rows[last].high + 1) * W;
        for (int64_t c = 0; c < C; c++) {
            const float *restrict map = maps + (b * C + c) * GG;
            uint8_t *restrict heat = heatmaps + (indices[b] * C + c) * WW;
            const float *restrict add = noise + starts[b * C + c];
            for (int i = 0; i < GG; i++) scaled[i] = 255.0f * map[i];
            for (int i = from; i < to; i++) {
                const float left = scaled[low[i]];
                wide[i] = left + across[i] * (scaled[high[i]] - left);
            }
            for (int y = first; y <= last; y++) {
                const float *restrict top = wide + rows[y].low * W;
                const float *restrict bottom = wide + rows[y].high * W;
                float *restrict line = value + y * W;
                for (int x = 0; x < W; x++) line[x] = top[x] + rows[y].share * (bottom[x] - top[x]);
            }
            for (int i = first * W; i < (last + 1) * W; i++) {
                const float old = heat[i];
                const int rounded = (int)(old + share[i] * (value[i] - old) + add[i]);
                heat[i] = (uint8_t)(rounded < 255 ? rounded : 255);
            }
        }
    }
    free(rows), free(low), free(across);
    return failed;
}
