/* Durations in nanoseconds, counted in buckets of which each is 3 % wide. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { STEPS = 32, BUCKETS = 60 * STEPS }; /* steps within a power of two */

struct histogram {
    uint64_t counts[BUCKETS], total, max;
};

/* CLOCK_MONOTONIC: the same in all processes of a machine, and what Python calls time.monotonic_ns(). */
static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void count(struct histogram *h, uint64_t ns) {
    int power = ns < STEPS ? 4 : 63 - __builtin_clzll(ns);
    h->counts[ns < STEPS ? ns : (size_t)(power - 4) * STEPS + ((ns >> (power - 5)) & (STEPS - 1))]++;
    h->total++;
    if (ns > h->max) h->max = ns;
}

/* Milliseconds; the upper end of the bucket in which that share of all lies. */
static inline double quantile(const struct histogram *h, double share) {
    uint64_t wanted = (uint64_t)(share * (double)h->total), seen = 0;
    for (size_t n = 0; n < BUCKETS; n++) {
        seen += h->counts[n];
        if (seen > wanted)
            return (double)(n < STEPS ? n + 1 : (uint64_t)(STEPS + n % STEPS + 1) << (n / STEPS - 1)) / 1e6;
    }
    return (double)h->max / 1e6;
}

/* The inside of a JSON object, and forget everything. */
static inline void print_and_reset(struct histogram *h) {
    printf("\"count\": %llu, \"p50_ms\": %.4f, \"p99_ms\": %.4f, \"max_ms\": %.4f", (unsigned long long)h->total,
           quantile(h, 0.5), quantile(h, 0.99), (double)h->max / 1e6);
    memset(h, 0, sizeof *h);
}
