/* Sends prepared HTTP requests to a port of 127.0.0.1 over kept connections, one at a time over each.
 *
 *     sender FILE SIZE PORT CONNECTIONS closed SECONDS
 *     sender FILE SIZE PORT CONNECTIONS open START_NS INTERVAL_NS
 *
 * FILE holds requests of SIZE bytes, one after the other; none is sent twice. Closed: each connection sends its next
 * request when it has an answer, until the time or the file is over. Open: request n is due at START + n * INTERVAL
 * (CLOCK_MONOTONIC), whatever became of those before; when no connection is free it waits, and its time runs.
 *
 * Prints one line of JSON: answers, answers a second, and milliseconds from when a request was due to its answer;
 * how late requests were sent; the CPU seconds of this process. Ends with status 1 if an answer is not a success.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 4096, ANSWER = 8192, EVENTS = 256 };

struct connection {
    int fd;
    size_t held;
    uint64_t due; /* of the request that waits for its answer */
    char answer[ANSWER + 1];
};

static struct connection connections[MAX_CONNECTIONS];
static struct connection *idle[MAX_CONNECTIONS];
static const char *requests;
static size_t size, total, next, answered, idle_count;
static uint64_t start, interval, end;
static struct histogram latencies, lateness;

static void fail(const char *what, const char *detail) {
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(1);
}

static void transmit(struct connection *c, uint64_t due) {
    c->due = due;
    c->held = 0;
    const char *request = requests + size * next++;
    if (send(c->fd, request, size, MSG_NOSIGNAL) != (ssize_t)size) fail("send", strerror(errno));
}

/* The length of a complete answer, 0 when there is more to come. */
static size_t complete(const struct connection *c) {
    const char *end_of_head = memmem(c->answer, c->held, "\r\n\r\n", 4);
    if (!end_of_head) return 0;
    const char *field = strcasestr(c->answer, "\r\ncontent-length:");
    size_t length = (size_t)(end_of_head - c->answer) + 4 + (field && field < end_of_head ? atoll(field + 17) : 0);
    return length <= c->held ? length : 0;
}

/* Read what has arrived; 1 when the answer is complete. */
static int receive(struct connection *c) {
    ssize_t length = recv(c->fd, c->answer + c->held, ANSWER - c->held, MSG_DONTWAIT);
    if (length <= 0) {
        if (length < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
        fail("the connection was closed", c->held ? c->answer : "without an answer");
    }
    c->held += (size_t)length;
    c->answer[c->held] = 0;
    if (!complete(c)) return c->held == ANSWER ? (fail("the answer is too long", c->answer), 0) : 0;
    if (strncmp(c->answer, "HTTP/1.1 2", 10) != 0) fail("not taken", c->answer);
    const char *failed = strstr(c->answer, "\"failed\":");
    if (failed && atoi(failed + 9) != 0) fail("a delivery failed", c->answer);
    count(&latencies, now_ns() - c->due);
    answered++;
    return 1;
}

/* Open: send what is due, as far as connections are free, and set the alarm for what comes next. */
static void send_due(int alarm) {
    uint64_t now = now_ns(), due = now < start ? 0 : (now - start) / interval + 1;
    if (due > total) due = total;
    while (next < due && idle_count) {
        uint64_t moment = start + interval * next;
        count(&lateness, now_ns() - moment);
        transmit(idle[--idle_count], moment);
    }
    uint64_t moment = start + interval * due;
    struct itimerspec at = {.it_value = {.tv_sec = moment / 1000000000u, .tv_nsec = moment % 1000000000u}};
    if (due < total) timerfd_settime(alarm, TFD_TIMER_ABSTIME, &at, NULL);
}

static void connect_all(int poll, int port, int wanted) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int n = 0, one = 1; n < wanted; n++) {
        struct connection *c = &connections[n];
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("connect", strerror(errno));
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &event);
        idle[idle_count++] = c;
    }
}

int main(int argc, char **argv) {
    if (argc < 7) fail("usage", "see the first lines of sender.c");
    int file = open(argv[1], O_RDONLY), poll = epoll_create1(0), alarm = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct stat status;
    if (file < 0 || fstat(file, &status)) fail(argv[1], strerror(errno));
    size = strtoull(argv[2], NULL, 10), total = (size_t)status.st_size / size;
    requests = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (requests == MAP_FAILED) fail("mmap", strerror(errno));
    int closed = strcmp(argv[5], "closed") == 0, wanted = atoi(argv[4]);
    if (wanted > MAX_CONNECTIONS || (!closed && argc < 8)) fail("usage", "see the first lines of sender.c");
    connect_all(poll, atoi(argv[3]), wanted);
    if (closed) {
        start = now_ns();
        end = start + (uint64_t)(atof(argv[6]) * 1e9);
        while (idle_count && next < total) transmit(idle[--idle_count], now_ns());
    } else {
        start = strtoull(argv[6], NULL, 10), interval = strtoull(argv[7], NULL, 10);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        epoll_ctl(poll, EPOLL_CTL_ADD, alarm, &event);
        if (now_ns() > start) fail("open", "the start is over already");
        send_due(alarm);
    }
    struct epoll_event events[EVENTS];
    while (closed ? answered < next : answered < total) {
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int n = 0; n < ready; n++) {
            struct connection *c = events[n].data.ptr;
            if (!c) {
                uint64_t expirations;
                if (read(alarm, &expirations, sizeof expirations) < 0 && errno != EAGAIN) fail("alarm", strerror(errno));
            } else if (receive(c)) {
                uint64_t now = now_ns();
                if (!closed)
                    idle[idle_count++] = c;
                else if (now < end && next < total)
                    transmit(c, now);
            }
        }
        if (!closed) send_due(alarm);
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double elapsed = (double)(now_ns() - start) / 1e9;
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"per_second\": %.1f, \"seconds\": %.3f, \"cpu_seconds\": %.3f, \"late_p99_ms\": %.4f, ",
           (double)answered / elapsed, elapsed, cpu, quantile(&lateness, 0.99));
    print_and_reset(&latencies);
    printf("}\n");
}
