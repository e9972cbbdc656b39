/* The floor: floor PORT. One thread, epoll, one send() per subscriber and message, and nothing else.
 *
 * A connection that sends a GET is a subscriber and gets a response head (101 when it asks for a WebSocket; the accept
 * key is a constant, since only our own client ever connects). One that sends "PUB\n" is the publisher: from then on
 * it sends messages as a length (4 bytes, little endian) and so many bytes, framed for the wire already. What the
 * kernel does not take is dropped: no buffers, no positions, no catching up. No server that keeps promises does less.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAX_FD 65536
#define LISTEN_BACKLOG 4096
#define BATCH 512

static int subscribers[MAX_FD], place[MAX_FD], total, publisher = -1, poller;
static char inbox[1 << 20];
static size_t filled;

static const char SSE[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
static const char WS[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

static void add(int fd) {
    place[fd] = total;
    subscribers[total++] = fd;
}

static void forget(int fd) {
    if (fd == publisher) {
        publisher = -1;
        filled = 0;
    } else if (place[fd] < total && subscribers[place[fd]] == fd) {
        int last = subscribers[--total];
        subscribers[place[fd]] = last;
        place[last] = place[fd];
    }
    close(fd);
}

static void broadcast(const char *frame, size_t size) {
    for (int i = 0; i < total; i++) send(subscribers[i], frame, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void publish(void) {
    ssize_t got = recv(publisher, inbox + filled, sizeof inbox - filled, 0);
    if (got <= 0) { forget(publisher); return; }
    filled += got;
    size_t at = 0;
    while (filled - at >= 4) {
        uint32_t size;
        memcpy(&size, inbox + at, 4);
        if (filled - at < 4 + size) break;
        broadcast(inbox + at + 4, size);
        at += 4 + size;
    }
    memmove(inbox, inbox + at, filled - at);
    filled -= at;
}

static void greet(int fd) {
    char text[2048];
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    if (got <= 0) { forget(fd); return; }
    text[got] = 0;
    if (!strncmp(text, "PUB\n", 4)) {
        publisher = fd;
    } else if (!strncmp(text, "GET ", 4)) {
        const char *head = strstr(text, "Upgrade: websocket") ? WS : SSE;
        send(fd, head, strlen(head), MSG_NOSIGNAL);
        add(fd);
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, LISTEN_BACKLOG)) {
        perror("listen");
        return 1;
    }
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, ready[BATCH];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int found = epoll_wait(poller, ready, BATCH, -1);
        for (int i = 0; i < found; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int peer = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (peer < 0 || peer >= MAX_FD) continue;
                setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event.data.fd = peer;
                epoll_ctl(poller, EPOLL_CTL_ADD, peer, &event);
            } else if (fd == publisher) {
                publish();
            } else {
                greet(fd);
            }
        }
    }
}
