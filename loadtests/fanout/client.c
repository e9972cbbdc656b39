/* Many subscribers in one thread: client HOST PORT PATH sse|ws COUNT
 *
 * Opens COUNT connections (at most IN_FLIGHT handshakes at a time), prints one JSON line when all are open, then counts
 * messages. A message is an occurrence of MARK followed by the Unix time in microseconds at which it was published
 * (16 digits): whatever frames it, its latency is the time of the read that completed it less that number.
 *
 * stdin: a line asks for a report (one JSON line about the time since the line before); the end of stdin ends us.
 * Reports: seconds, cpu_s (this process), messages, disordered (an older message after a newer one of its connection),
 * lost (connections the server ended), least and most messages of a connection, reads, bytes, and
 * histogram: [bucket, count] pairs, a bucket being the latency in us below 128 and 64 per octave above.
 *
 * Pings are not answered: a step is shorter than any server's patience.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARK "\"t_us\":"
#define MARK_SIZE 7
#define DIGITS 16
#define CARRY (MARK_SIZE + DIGITS - 1)
#define IN_FLIGHT 128
#define BUCKETS 4096
#define BATCH 1024

enum state { CONNECTING, HEAD, OPEN, DEAD };

struct connection {
    int fd;
    enum state state;
    int is_answered;      /* the head has begun */
    int matched;          /* bytes of the blank line that ends the head */
    int carried;
    char carry[CARRY];    /* a message cut by the end of a read */
    uint64_t newest;
    uint64_t messages;
};

static struct connection *connections;
static char buffer[CARRY + (1 << 18)];
static uint64_t histogram[BUCKETS], messages, disordered, reads, bytes;
static int count, started, opened, lost, poller;
static struct sockaddr_in address;
static char request[1024];
static double since_s, since_cpu_s;

static double clock_s(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void record(uint64_t latency) {
    int octave = latency < 128 ? 0 : 57 - __builtin_clzll(latency);
    uint64_t bucket = (uint64_t)octave * 64 + (latency >> octave);
    histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    messages++;
}

/* Take every complete message out of text; returns how many of the last bytes may begin one. */
static int scan(struct connection *connection, char *text, int size, uint64_t now) {
    char *at = text, *end = text + size, *found;
    while ((found = memmem(at, end - at, MARK, MARK_SIZE)) && end - found >= MARK_SIZE + DIGITS) {
        uint64_t sent = 0;
        for (int i = 0; i < DIGITS; i++) sent = sent * 10 + (uint64_t)(found[MARK_SIZE + i] - '0');
        record(now > sent ? now - sent : 0);
        connection->messages++;
        if (sent < connection->newest) disordered++;
        connection->newest = sent;
        at = found + MARK_SIZE + DIGITS;
    }
    return end - at < CARRY ? end - at : CARRY;
}

static void start(void) {
    struct connection *connection = &connections[started++];
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (connection->fd < 0) die("socket");
    struct linger reset = {1, 0}; /* no TIME_WAIT: thousands of connections are made again in the next step */
    setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) die("connect");
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = connection};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event) < 0) die("epoll_ctl");
}

static void end(struct connection *connection) {
    if (connection->state != OPEN) die("a connection ended in its handshake");
    connection->state = DEAD;
    lost++;
    close(connection->fd);
}

static void open_up(struct connection *connection) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) { errno = error; die("connect"); }
    if (send(connection->fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request)) die("send");
    connection->state = HEAD;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
}

static void receive(struct connection *connection) {
    memcpy(buffer, connection->carry, connection->carried);
    char *fresh = buffer + connection->carried;
    ssize_t got = recv(connection->fd, fresh, sizeof buffer - CARRY, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) { end(connection); return; }
    reads++;
    bytes += got;
    if (connection->state == HEAD) {
        static const char blank[] = "\r\n\r\n";
        if (!connection->is_answered && memcmp(fresh, "HTTP/1.1 200", 12) && memcmp(fresh, "HTTP/1.1 101", 12)) {
            fprintf(stderr, "refused: %.60s\n", fresh);
            exit(1);
        }
        connection->is_answered = 1;
        while (got > 0 && connection->matched < 4) {
            connection->matched = *fresh == blank[connection->matched] ? connection->matched + 1 : *fresh == '\r';
            fresh++;
            got--;
        }
        if (connection->matched < 4) return;
        connection->state = OPEN;
        if (++opened == count) {
            printf("{\"opened\":%d}\n", opened);
            since_s = clock_s(CLOCK_MONOTONIC);
            since_cpu_s = clock_s(CLOCK_PROCESS_CPUTIME_ID);
        } else if (started < count) {
            start();
        }
        connection->carried = scan(connection, fresh, got, now_us());
        memcpy(connection->carry, fresh + got - connection->carried, connection->carried);
        return;
    }
    int size = connection->carried + got;
    connection->carried = scan(connection, buffer, size, now_us());
    memcpy(connection->carry, buffer + size - connection->carried, connection->carried);
}

static void report(void) {
    double s = clock_s(CLOCK_MONOTONIC), cpu_s = clock_s(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t least = UINT64_MAX, most = 0;
    for (int i = 0; i < count; i++) {
        if (connections[i].messages < least) least = connections[i].messages;
        if (connections[i].messages > most) most = connections[i].messages;
        connections[i].messages = 0;
    }
    printf("{\"seconds\":%.6f,\"cpu_s\":%.6f,\"messages\":%lu,\"disordered\":%lu,\"lost\":%d,\"least\":%lu,\"most\":%lu,"
           "\"reads\":%lu,\"bytes\":%lu,\"histogram\":[", s - since_s, cpu_s - since_cpu_s, messages, disordered, lost,
           least, most, reads, bytes);
    const char *comma = "";
    for (int i = 0; i < BUCKETS; i++) {
        if (histogram[i]) { printf("%s[%d,%lu]", comma, i, histogram[i]); comma = ","; }
    }
    puts("]}");
    memset(histogram, 0, sizeof histogram);
    messages = disordered = reads = bytes = 0;
    since_s = s;
    since_cpu_s = cpu_s;
}

int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "client HOST PORT PATH sse|ws COUNT\n"); return 2; }
    setvbuf(stdout, NULL, _IOLBF, 1 << 16);
    address.sin_family = AF_INET;
    address.sin_port = htons(atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) die("address");
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%s\r\n%s\r\n", argv[3], argv[1], argv[2],
             strcmp(argv[4], "ws") ? "Accept: text/event-stream\r\n"
                                   : "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    count = atoi(argv[5]);
    connections = calloc(count, sizeof *connections);
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event control = {.events = EPOLLIN, .data.ptr = NULL}, ready[BATCH];
    if (epoll_ctl(poller, EPOLL_CTL_ADD, 0, &control) < 0) die("stdin");
    while (started < count && started < IN_FLIGHT) start();
    for (;;) {
        int found = epoll_wait(poller, ready, BATCH, -1);
        for (int i = 0; i < found; i++) {
            struct connection *connection = ready[i].data.ptr;
            if (!connection) {
                char line[64];
                ssize_t got = read(0, line, sizeof line);
                if (got <= 0) return 0;
                report();
            } else if (connection->state == CONNECTING) {
                open_up(connection);
            } else {
                receive(connection);
            }
        }
    }
}
