/* One load for every peer that holds connections: opens them, subscribes, publishes, and counts bytes as messages.
 *
 *     peer_load PORT SUBSCRIBERS PUBLISHERS IN_FLIGHT MOST HELLO SEEN SUBSCRIBE SEEN PREPARE SEEN PUBLISH [ANSWER]
 *
 * From HELLO on the arguments are bytes in hex: what every connection sends first and must see then; the same of a
 * subscriber, and of a publisher; a message as it is published; and the answer that a subscriber owes for each message,
 * if any, with 32 letters 'I' where the id goes that follows "call_id":" in the message.
 *
 * Publishes one message, learns how many bytes of it come to each subscriber, and prints "ready" and that number. Then
 * for each line of standard input, a number of seconds, it publishes for so long and prints how many messages were
 * delivered in that time, the seconds, how many were delivered with those that came later, and how many never came. At most IN_FLIGHT messages are on their way at once,
 * so no protocol's own acknowledgement is needed, and nobody drops messages only because the load is impatient. MOST
 * limits how many it publishes in a second; 0 does not.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { INPUT = 1 << 18, EVENTS = 1024, MAX_FDS = 20000, COPIES = 128, LARGEST = 4096, ID_SIZE = 32 };

static const char BEFORE_ID[] = "\"call_id\":\"";

struct bytes {
    char *data;
    size_t size;
};

struct connection {
    int fd, subscribes;
    size_t received, answered; /* bytes since it is ready, and those of messages that it answered */
    size_t owed, sent;         /* bytes of messages to publish, and that are published */
    char frame[LARGEST];       /* the message that is arriving, where an answer is owed */
};

static struct connection *connections[MAX_FDS], *publishers[MAX_FDS];
static int subscribers, publisher_count, loop;
static struct bytes message, copies, answer;
static char *answer_id;
static size_t frame_size; /* of a message as it comes; 0 until it is learned */
static unsigned long long received, published;
static char input[INPUT];

static void fail(const char *why) {
    fprintf(stderr, "%s: %s\n", why, strerror(errno));
    exit(1);
}

static double seconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static struct bytes from_hex(const char *text) {
    struct bytes result = {malloc(strlen(text) / 2 + 1), strlen(text) / 2};
    for (size_t n = 0; n < result.size; n++) sscanf(text + 2 * n, "%2hhx", (unsigned char *)&result.data[n]);
    return result;
}

/* Send `question` and read until `answer` has come. */
static void ask(int fd, struct bytes question, struct bytes expected) {
    if (question.size && send(fd, question.data, question.size, MSG_NOSIGNAL) != (ssize_t)question.size) fail("hello");
    for (size_t held = 0; expected.size && !memmem(input, held, expected.data, expected.size);) {
        ssize_t length = recv(fd, input + held, sizeof input - held, 0);
        if (length <= 0) fail("no answer to the first bytes");
        held += (size_t)length;
    }
}

static struct connection *connected(int port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval patience = {.tv_sec = 10};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0 || fd >= MAX_FDS || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    struct connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event);
    return connections[fd] = c;
}

static void send_owed(struct connection *c) {
    while (c->owed > 0) {
        size_t at = c->sent % message.size, size = copies.size - at < c->owed ? copies.size - at : c->owed;
        ssize_t sent = send(c->fd, copies.data + at, size, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno != EAGAIN) fail("publish");
            break;
        }
        c->owed -= (size_t)sent, c->sent += (size_t)sent;
    }
    struct epoll_event event = {.events = c->owed ? EPOLLIN | EPOLLOUT : EPOLLIN, .data.fd = c->fd};
    epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &event);
}

static void publish(struct connection *c, size_t count) {
    published += count;
    c->owed += count * message.size;
    send_owed(c);
}

static void answer_call(struct connection *c) {
    char *id = memmem(c->frame, frame_size - ID_SIZE, BEFORE_ID, sizeof BEFORE_ID - 1);
    errno = 0;
    if (!id) fail("a message without an id");
    memcpy(answer_id, id + sizeof BEFORE_ID - 1, ID_SIZE);
    if (send(c->fd, answer.data, answer.size, MSG_NOSIGNAL) != (ssize_t)answer.size) fail("answer");
    c->answered += frame_size;
}

/* Answer the messages that end in these bytes. They are websocket frames of one size, more than 125 bytes of text: the
 * first of all tells it, since the next subscriber gets nothing before it is answered. */
static void collect(struct connection *c, const char *data, size_t length) {
    if (frame_size == 0 && length > 4) frame_size = 4 + (unsigned char)data[2] * 256u + (unsigned char)data[3];
    errno = 0;
    if (frame_size < ID_SIZE || frame_size > LARGEST) fail("not a message that can be answered");
    while (length > 0) {
        size_t have = c->received - c->answered, take = frame_size - have < length ? frame_size - have : length;
        memcpy(c->frame + have, data, take);
        c->received += take, data += take, length -= take;
        if (have + take == frame_size) answer_call(c);
    }
}

/* Wait so long for bytes and count those of subscribers; returns 0 when nothing happened. */
static int receive(int milliseconds) {
    struct epoll_event events[EVENTS];
    int ready = epoll_wait(loop, events, EVENTS, milliseconds);
    for (int n = 0; n < ready; n++) {
        struct connection *c = connections[events[n].data.fd];
        if (events[n].events & EPOLLOUT) send_owed(c);
        if (!(events[n].events & ~(unsigned)EPOLLOUT)) continue;
        ssize_t length = recv(c->fd, input, sizeof input, MSG_DONTWAIT);
        if (length == 0 || (length < 0 && errno != EAGAIN)) fail("the peer closed a connection");
        if (length < 0 || !c->subscribes) continue;
        received += (size_t)length;
        if (answer.size) collect(c, input, (size_t)length);
        else c->received += (size_t)length;
    }
    return ready;
}

/* Messages that everyone has, if all are equally far. */
static unsigned long long delivered(void) { return received / frame_size / (unsigned)subscribers; }

static void learn(void) {
    publish(publishers[0], 1);
    double start = seconds_now();
    while (receive(200) > 0 || received == 0) {
        if (seconds_now() - start > 10) fail("the first message did not come");
    }
    size_t size = received / (unsigned)subscribers;
    for (int fd = 0; fd < MAX_FDS; fd++) {
        struct connection *c = connections[fd];
        if (!c || !c->subscribes) continue;
        errno = 0;
        if (c->received != size) fail("subscribers got messages of different sizes");
    }
    frame_size = size;
    printf("ready %zu\n", frame_size);
    fflush(stdout);
}

static void run(double seconds, unsigned long long in_flight, double most) {
    unsigned long long before = received, lost = 0, chunk = in_flight / (unsigned)publisher_count;
    static unsigned turn;
    if (chunk == 0) chunk = 1;
    unsigned long long first = published;
    double start = seconds_now(), now = start;
    while ((now = seconds_now()) < start + seconds) {
        int early = 0;
        while (published - delivered() < in_flight && !early) {
            unsigned long long room = in_flight - (published - delivered());
            early = most > 0 && (double)(published - first) > (now - start) * most;
            if (!early) publish(publishers[turn++ % (unsigned)publisher_count], room < chunk ? room : chunk);
        }
        receive(early ? 1 : 100);
    }
    unsigned long long in_time = (received - before) / frame_size;
    /* After so much silence: what is not here by now does not come. */
    while (published > delivered() && receive(1500) > 0) continue;
    unsigned long long in_all = (received - before) / frame_size;
    if (published > delivered()) {
        lost = published * (unsigned)subscribers - received / frame_size;
        received = published * (unsigned)subscribers * frame_size;
    }
    printf("%llu %f %llu %llu\n", in_time, now - start, in_all, lost);
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 13) return fprintf(stderr, "see the comment at the top of peer_load.c\n"), 2;
    int port = atoi(argv[1]);
    subscribers = atoi(argv[2]), publisher_count = atoi(argv[3]), loop = epoll_create1(0);
    message = from_hex(argv[12]);
    copies = (struct bytes){malloc(message.size * COPIES), message.size * COPIES};
    for (int n = 0; n < COPIES; n++) memcpy(copies.data + (size_t)n * message.size, message.data, message.size);
    if (argc > 13) answer = from_hex(argv[13]), answer_id = memmem(answer.data, answer.size, "IIIIIIII", 8);
    struct bytes words[6];
    for (int n = 0; n < 6; n++) words[n] = from_hex(argv[6 + n]);
    for (int n = 0; n < subscribers + publisher_count; n++) {
        struct connection *c = connected(port);
        c->subscribes = n < subscribers;
        ask(c->fd, words[0], words[1]);
        if (c->subscribes) ask(c->fd, words[2], words[3]);
        else ask(c->fd, words[4], words[5]), publishers[n - subscribers] = c;
    }
    learn();
    char line[64];
    while (fgets(line, sizeof line, stdin)) run(atof(line), strtoull(argv[4], NULL, 10), atof(argv[5]));
    return 0;
}
