/* A receiver that is hard to make slower: one thread, epoll, keep-alive; answers 204 to every request and keeps
 * nothing. Listens on as many free ports of 127.0.0.1 as its argument says and prints them on one line.
 *
 *     cc -O2 -o receiver receiver.c && ./receiver 4 [latency]
 *
 * With `latency` every body begins with the moment at which it was due, CLOCK_MONOTONIC in nanoseconds as 16 hexadecimal
 * digits. A line on standard input is answered with one of JSON: how long the bodies since the last one took.
 */
#define _GNU_SOURCE
#include "histogram.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 1 << 18, EVENTS = 512, MAX_FDS = 20000, STAMP = 16 };

static const char ANSWER[] = "HTTP/1.1 204 No Content\r\n\r\n";

struct connection {
    size_t held;      /* bytes of an unfinished head in buffer */
    long long body;   /* bytes of a body that are still to come */
    size_t stamped;   /* bytes of stamp that have arrived */
    char stamp[STAMP + 1];
    char buffer[16384];
};

static struct connection *connections[MAX_FDS];
static char listening[MAX_FDS];
static char input[BUFFER];
static char output[2 * BUFFER]; /* the shortest request that fits is longer than half an answer */
static int measuring;
static uint64_t arrived; /* when what is being read did */
static struct histogram latencies;

static long long content_length(const char *head, size_t length) {
    for (const char *line = head; line; line = memchr(line, '\n', length - (line - head))) {
        if (*line == '\n') line++;
        if (length - (line - head) > 16 && strncasecmp(line, "content-length:", 15) == 0) return atoll(line + 15);
    }
    return 0;
}

/* The beginning of a body, or the next piece of it. */
static void read_stamp(struct connection *c, const char *data, size_t length) {
    size_t room = STAMP - c->stamped, take = length < room ? length : room;
    memcpy(c->stamp + c->stamped, data, take);
    c->stamped += take;
    if (c->stamped < STAMP || take == 0) return;
    uint64_t due = strtoull(c->stamp, NULL, 16);
    count(&latencies, arrived > due ? arrived - due : 0);
}

/* Count the requests that end in these bytes; returns -1 when a head is too long. */
static int requests(struct connection *c, const char *data, size_t length) {
    int count = 0;
    while (length > 0) {
        if (c->body > 0) {
            size_t used = (long long)length < c->body ? length : (size_t)c->body;
            if (measuring) read_stamp(c, data, used);
            c->body -= used, data += used, length -= used;
            if (c->body == 0) count++;
            continue;
        }
        size_t before = c->held;
        size_t room = sizeof c->buffer - before, take = length < room ? length : room;
        if (take == 0) return -1;
        memcpy(c->buffer + before, data, take);
        char *end = memmem(c->buffer, before + take, "\r\n\r\n", 4);
        if (!end) {
            c->held = before + take, data += take, length -= take;
            continue;
        }
        size_t head = (size_t)(end - c->buffer) + 4;
        data += head - before, length -= head - before;
        c->held = c->stamped = 0;
        c->body = content_length(c->buffer, head);
        if (c->body == 0) count++;
    }
    return count;
}

static void drop(int fd) {
    close(fd);
    free(connections[fd]);
    connections[fd] = NULL;
}

static void serve(int fd) {
    ssize_t length = recv(fd, input, sizeof input, MSG_DONTWAIT);
    if (length <= 0) {
        if (length == 0 || (errno != EAGAIN && errno != EINTR)) drop(fd);
        return;
    }
    if (measuring) arrived = now_ns();
    int complete = requests(connections[fd], input, (size_t)length);
    if (complete < 0) {
        drop(fd);
        return;
    }
    size_t size = sizeof ANSWER - 1;
    for (int n = 0; n < complete; n++) memcpy(output + n * size, ANSWER, size);
    if (complete > 0 && send(fd, output, complete * size, MSG_NOSIGNAL) < 0) drop(fd);
}

static void report(int poll) {
    char line[64];
    if (read(STDIN_FILENO, line, sizeof line) <= 0) {
        epoll_ctl(poll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
        return;
    }
    printf("{");
    print_and_reset(&latencies);
    printf("}\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    int ports = argc > 1 ? atoi(argv[1]) : 1, poll = epoll_create1(0);
    for (int n = 0; n < ports; n++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        socklen_t size = sizeof address;
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096)) return perror("listen"), 1;
        getsockname(fd, (struct sockaddr *)&address, &size);
        printf(n ? " %d" : "%d", ntohs(address.sin_port));
        listening[fd] = 1;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
    }
    printf("\n");
    fflush(stdout);
    if (argc > 2) {
        measuring = 1;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = STDIN_FILENO};
        epoll_ctl(poll, EPOLL_CTL_ADD, STDIN_FILENO, &event);
    }
    struct epoll_event events[EVENTS];
    for (;;) {
        int ready = epoll_wait(poll, events, EVENTS, -1);
        for (int n = 0; n < ready; n++) {
            int fd = events[n].data.fd;
            if (fd == STDIN_FILENO) {
                report(poll);
                continue;
            }
            if (!listening[fd]) {
                if (connections[fd]) serve(fd);
                continue;
            }
            int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK), one = 1;
            if (client < 0) continue;
            if (client >= MAX_FDS) {
                close(client);
                continue;
            }
            setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            connections[client] = calloc(1, sizeof **connections);
            struct epoll_event event = {.events = EPOLLIN, .data.fd = client};
            epoll_ctl(poll, EPOLL_CTL_ADD, client, &event);
        }
    }
}
