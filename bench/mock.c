/* An upstream that costs next to nothing, so that what is measured is the gateway before it.
 *
 *   mock PORT instant                      answer at once
 *   mock PORT drip INTERVAL_MS CHUNKS      stream one chunk per interval, stamped when sent
 *   mock PORT delay INTERVAL_MS            answer one interval later
 *
 * POST /v1/messages is answered as Anthropic does, every other POST as OpenAI does, with a stream
 * when the body says "stream":true; GET lists one model. One thread, about 145,000 answers a second
 * on one core of 2023.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FD = 20000, IN_SIZE = 1 << 20, OUT_SIZE = 1 << 20, BURST_CHUNKS = 64, MAX_SLOTS = 100000 };
enum mode { INSTANT, DRIP, DELAY };
enum kind { OPENAI, OPENAI_STREAM, ANTHROPIC, ANTHROPIC_STREAM, MODELS, KINDS };

/* One client connection, found by its file descriptor. Those that wait for the timer stand in the
 * doubly linked list of their slot of the wheel. */
struct connection {
    char *in;
    int in_used;
    char *out;
    int out_used, out_sent;
    int waiting, slot, next, previous;
    int chunks_left;
    enum kind kind;
};

struct answer {
    char bytes[1 << 17];
    int size;
};

static struct connection connections[MAX_FD];
static struct answer answers[KINDS];
static int wheel[MAX_SLOTS];
static int epoll;
static enum mode mode;
static int interval_ms = 20, chunk_count = BURST_CHUNKS;
static unsigned long long ticks;

static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\nServer: mock\r\n"
                                  "Content-Type: text/event-stream; charset=utf-8\r\n"
                                  "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char OPENAI_HEAD[] = "{\"id\":\"chatcmpl-mock0123456789\",\"object\":\"chat.completion.chunk\","
                                  "\"created\":1700000000,\"model\":\"gpt-mock\",";
static const char ANTHROPIC_START[] =
    "{\"type\":\"message_start\",\"message\":{\"id\":\"msg_mock0123456789\",\"type\":\"message\","
    "\"role\":\"assistant\",\"model\":\"claude-mock\",\"content\":[],\"stop_reason\":null,"
    "\"stop_sequence\":null,\"usage\":{\"input_tokens\":120,\"output_tokens\":1}}}";

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int frame(char *out, const char *data, int size) {
    return sprintf(out, "%x\r\n%.*s\r\n", size, size, data);
}

static int openai_event(char *out, int last) {
    char event[1024];
    int size;
    if (last)
        size = sprintf(event, "data: %s\"choices\":[],\"usage\":{\"prompt_tokens\":120,"
                              "\"completion_tokens\":64,\"total_tokens\":184}}\n\n", OPENAI_HEAD);
    else
        size = sprintf(event, "data: %s\"choices\":[{\"index\":0,\"delta\":{\"content\":\"ts:%019lld tok\"},"
                              "\"finish_reason\":null}]}\n\n", OPENAI_HEAD, now_ns());
    return frame(out, event, size);
}

static int openai_stop(char *out) {
    char event[1024];
    int size = sprintf(event, "data: %s\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
                       OPENAI_HEAD);
    return frame(out, event, size);
}

static int stream_end(char *out) {
    static const char done[] = "data: [DONE]\n\n";
    int size = frame(out, done, sizeof done - 1);
    return size + sprintf(out + size, "0\r\n\r\n");
}

static int anthropic_event(char *out, const char *type, const char *data) {
    char event[1024];
    return frame(out, event, sprintf(event, "event: %s\ndata: %s\n\n", type, data));
}

static void build_json(struct answer *answer, const char *body) {
    answer->size = sprintf(answer->bytes,
                           "HTTP/1.1 200 OK\r\nServer: mock\r\nContent-Type: application/json\r\n"
                           "Content-Length: %zu\r\nx-request-id: req_0123456789abcdef\r\n\r\n%s",
                           strlen(body), body);
}

static void build_openai_stream(struct answer *answer) {
    char *out = answer->bytes;
    int size = sprintf(out, "%s", STREAM_HEAD);
    for (int i = 0; i < BURST_CHUNKS; i++) size += openai_event(out + size, 0);
    size += openai_stop(out + size);
    size += openai_event(out + size, 1);
    size += stream_end(out + size);
    answer->size = size;
}

static void build_anthropic_stream(struct answer *answer) {
    char *out = answer->bytes, delta[256];
    int size = sprintf(out, "%s", STREAM_HEAD);
    size += anthropic_event(out + size, "message_start", ANTHROPIC_START);
    size += anthropic_event(out + size, "content_block_start",
                            "{\"type\":\"content_block_start\",\"index\":0,"
                            "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}");
    for (int i = 0; i < BURST_CHUNKS; i++) {
        sprintf(delta, "{\"type\":\"content_block_delta\",\"index\":0,"
                       "\"delta\":{\"type\":\"text_delta\",\"text\":\"ts:%019lld tok\"}}", now_ns());
        size += anthropic_event(out + size, "content_block_delta", delta);
    }
    size += anthropic_event(out + size, "content_block_stop", "{\"type\":\"content_block_stop\",\"index\":0}");
    size += anthropic_event(out + size, "message_delta",
                            "{\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\","
                            "\"stop_sequence\":null},\"usage\":{\"output_tokens\":64}}");
    size += anthropic_event(out + size, "message_stop", "{\"type\":\"message_stop\"}");
    size += sprintf(out + size, "0\r\n\r\n");
    answer->size = size;
}

static void build_answers(void) {
    static const char sentence[] = "the quick brown fox jumps over lazy dogs ";
    char text[701] = "", body[4096];
    for (int i = 0; i < 700; i++) text[i] = sentence[i % (sizeof sentence - 1)];
    sprintf(body, "{\"id\":\"chatcmpl-mock0123456789\",\"object\":\"chat.completion\",\"created\":1700000000,"
                  "\"model\":\"gpt-mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                  "\"content\":\"%s\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
                  "\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":64,\"total_tokens\":184},"
                  "\"system_fingerprint\":\"fp_mock\"}", text);
    build_json(&answers[OPENAI], body);
    sprintf(body, "{\"id\":\"msg_mock0123456789\",\"type\":\"message\",\"role\":\"assistant\","
                  "\"model\":\"claude-mock\",\"content\":[{\"type\":\"text\",\"text\":\"%s\"}],"
                  "\"stop_reason\":\"end_turn\",\"stop_sequence\":null,"
                  "\"usage\":{\"input_tokens\":120,\"output_tokens\":64}}", text);
    build_json(&answers[ANTHROPIC], body);
    build_json(&answers[MODELS], "{\"object\":\"list\",\"data\":[{\"id\":\"gpt-mock\",\"object\":\"model\"}]}");
    build_openai_stream(&answers[OPENAI_STREAM]);
    build_anthropic_stream(&answers[ANTHROPIC_STREAM]);
}

static void wait_in(int fd, int slot) {
    struct connection *c = &connections[fd];
    c->waiting = 1;
    c->slot = slot;
    c->previous = -1;
    c->next = wheel[slot];
    if (c->next >= 0) connections[c->next].previous = fd;
    wheel[slot] = fd;
}

static void leave_wheel(struct connection *c) {
    if (c->previous >= 0)
        connections[c->previous].next = c->next;
    else
        wheel[c->slot] = c->next;
    if (c->next >= 0) connections[c->next].previous = c->previous;
    c->waiting = 0;
}

static void drop(int fd) {
    struct connection *c = &connections[fd];
    if (c->waiting) leave_wheel(c);
    c->in_used = c->out_used = c->out_sent = 0;
    close(fd);
}

static void watch(int fd, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    epoll_ctl(epoll, operation, fd, &event);
}

/* 0 = all sent, 1 = the rest waits for room, -1 = connection dropped. */
static int flush(int fd) {
    struct connection *c = &connections[fd];
    while (c->out_sent < c->out_used) {
        int sent = send(fd, c->out + c->out_sent, c->out_used - c->out_sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(fd, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return 1;
        }
        if (sent < 0) return drop(fd), -1;
        c->out_sent += sent;
    }
    c->out_used = c->out_sent = 0;
    return 0;
}

/* Send now what the socket takes, keep the rest. A reader 1 MB behind is dropped (-1). */
static int put(int fd, const char *bytes, int size) {
    struct connection *c = &connections[fd];
    if (c->out_used == 0) {
        int sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent == size) return 0;
        if (sent < 0 && errno != EAGAIN) return drop(fd), -1;
        if (sent > 0) bytes += sent, size -= sent;
    }
    if (!c->out) c->out = malloc(OUT_SIZE);
    if (c->out_used + size > OUT_SIZE) return drop(fd), -1;
    memcpy(c->out + c->out_used, bytes, size);
    c->out_used += size;
    return flush(fd) < 0 ? -1 : 0;
}

/* Size of the first whole request in the buffer, 0 when more must come; its body's place. */
static int request_size(struct connection *c, int *body) {
    c->in[c->in_used] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    *body = end + 4 - c->in;
    *end = 0; /* the search stays in the head, however long the body is */
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    char *chunked = strcasestr(c->in, "\r\ntransfer-encoding: chunked");
    *end = '\r';
    int total = *body;
    if (length) {
        total += atoi(length + 17);
    } else if (chunked) {
        char *last = memmem(c->in + *body, c->in_used - *body, "0\r\n\r\n", 5);
        if (!last) return 0;
        total = last + 5 - c->in;
    }
    return c->in_used < total ? 0 : total;
}

static enum kind request_kind(const char *request, int body, int total) {
    if (!strncmp(request, "GET ", 4)) return MODELS;
    int anthropic = strstr(request, "/v1/messages ") && strstr(request, "/v1/messages ") < request + 200;
    char *field = memmem(request + body, total - body, "\"stream\"", 8);
    if (field) {
        field += 8;
        while (*field == ':' || *field == ' ') field++;
        if (*field == 't') return anthropic ? ANTHROPIC_STREAM : OPENAI_STREAM;
    }
    return anthropic ? ANTHROPIC : OPENAI;
}

static void serve(int fd) {
    struct connection *c = &connections[fd];
    int body, total;
    while (!c->waiting && (total = request_size(c, &body)) > 0) {
        c->kind = request_kind(c->in, body, total);
        memmove(c->in, c->in + total, c->in_used - total);
        c->in_used -= total;
        if (mode == INSTANT || c->kind == MODELS) {
            if (put(fd, answers[c->kind].bytes, answers[c->kind].size) < 0) return;
            continue;
        }
        wait_in(fd, ticks % interval_ms);
        c->chunks_left = 0;
        if (mode == DRIP && c->kind == OPENAI_STREAM) {
            char first[4096];
            int size = sprintf(first, "%s", STREAM_HEAD);
            size += openai_event(first + size, 0);
            c->chunks_left = chunk_count - 1;
            if (put(fd, first, size) < 0) return;
        }
    }
}

static void tick_connection(int fd) {
    struct connection *c = &connections[fd];
    char out[4096];
    if (mode == DRIP && c->kind == OPENAI_STREAM && c->chunks_left > 0) {
        c->chunks_left--;
        put(fd, out, openai_event(out, 0));
        return;
    }
    leave_wheel(c);
    int failed;
    if (mode == DRIP && c->kind == OPENAI_STREAM) {
        int size = openai_stop(out);
        size += openai_event(out + size, 1);
        size += stream_end(out + size);
        failed = put(fd, out, size);
    } else {
        failed = put(fd, answers[c->kind].bytes, answers[c->kind].size);
    }
    if (!failed) serve(fd);
}

static void tick(int timer) {
    unsigned long long passed;
    if (read(timer, &passed, sizeof passed) != sizeof passed) return;
    if (passed > 50) passed = 50;
    while (passed--) {
        int fd = wheel[++ticks % interval_ms];
        while (fd >= 0) {
            int next = connections[fd].next;
            tick_connection(fd);
            fd = next;
        }
    }
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = &connections[fd];
        if (!c->in) c->in = malloc(IN_SIZE + 1);
        c->in_used = c->out_used = c->out_sent = c->waiting = 0;
        watch(fd, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void receive(int fd) {
    struct connection *c = &connections[fd];
    int got = recv(fd, c->in + c->in_used, IN_SIZE - c->in_used, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        drop(fd);
    } else if (got > 0) {
        c->in_used += got;
        serve(fd);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&address, sizeof address) || listen(fd, 4096)) {
        perror("mock: listen");
        exit(1);
    }
    return fd;
}

static int start_timer(void) {
    struct itimerspec every_ms = {{0, 1000000}, {0, 1000000}};
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    timerfd_settime(timer, 0, &every_ms, NULL);
    watch(timer, EPOLL_CTL_ADD, EPOLLIN);
    return timer;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: mock PORT instant|drip|delay [INTERVAL_MS] [CHUNKS]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    mode = !strcmp(argv[2], "instant") ? INSTANT : !strcmp(argv[2], "drip") ? DRIP : DELAY;
    if (argc > 3) interval_ms = atoi(argv[3]);
    if (argc > 4) chunk_count = atoi(argv[4]);
    if (interval_ms < 1 || interval_ms > MAX_SLOTS) return fprintf(stderr, "mock: bad interval\n"), 2;
    memset(wheel, -1, sizeof wheel);
    build_answers();
    epoll = epoll_create1(0);
    int listener = listen_on(atoi(argv[1])), timer = -1;
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    if (mode != INSTANT) timer = start_timer();
    for (;;) {
        struct epoll_event events[512];
        int ready = epoll_wait(epoll, events, 512, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accept_all(fd);
            } else if (fd == timer) {
                tick(fd);
            } else {
                if (events[i].events & EPOLLOUT) {
                    int state = flush(fd);
                    if (state < 0) continue;
                    if (state == 0) watch(fd, EPOLL_CTL_MOD, EPOLLIN);
                }
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(fd);
            }
        }
    }
}
