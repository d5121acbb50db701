/* A load generator for gateways that answer POST with JSON or with a stream.
 *
 *   lg PORT CONNECTIONS SECONDS RATE PATH BODYFILE [STAGGER_MS] [MAX_REQUESTS]
 *
 * RATE 0 is a closed loop: each connection sends again as soon as it was answered. Any other RATE
 * is an open loop of that many requests a second, whose latency counts from the moment a request
 * should have gone out, so that a stalled gateway cannot hide (coordinated omission). STAGGER_MS
 * spreads the first request of each connection. Environment: BEARER (the API key), XHDR (more
 * header lines), WARM (seconds at the start that are not counted).
 *
 * Prints one line of JSON. Times are milliseconds: p50 to max for whole answers, ttfb for the
 * first byte after the head, cd for the way of one chunk from the mock's clock stamp ("ts:" and
 * nanoseconds) to here, gap for the time between chunks of one stream.
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { IN_SIZE = 512 << 10, IN_FULL = 384 << 10, BODY_SIZE = 1 << 20, SAMPLES = 20000000 };
enum { STAMP_SIZE = 22 }; /* "ts:" and 19 digits */

struct connection {
    int fd, busy, status, chunked, head_done, started;
    long long due_ns, sent_ns, last_chunk_ns;
    char *in;
    int used, head_size, unscanned;
    long long size; /* of the whole answer; -1 = unknown */
};

struct samples { /* microseconds */
    unsigned *values;
    long count;
};

static struct connection *connections;
static int *idle, idle_count, in_flight, epoll, port, connection_count;
static double rate;
static int stagger_ms;
static long max_requests, issued, answered, errors, refused;
static long long received_bytes, start_ns, count_from_ns;
static struct samples latency, first_byte, chunk_delay, chunk_gap;
static char request[BODY_SIZE + 8192];
static int request_size;

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void note(struct samples *samples, long long ns) {
    if (samples->count < SAMPLES) samples->values[samples->count++] = ns < 0 ? 0 : ns / 1000;
}

static int ascending(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

static double quantile(const struct samples *samples, double share) {
    if (!samples->count) return 0;
    long index = samples->count * share;
    if (index >= samples->count) index = samples->count - 1;
    return samples->values[index] / 1000.0;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void build_request(const char *path, const char *body_file) {
    static char body[BODY_SIZE];
    const char *headers = getenv("XHDR") ? getenv("XHDR") : "";
    const char *key = getenv("BEARER") ? getenv("BEARER") : "sk-test-0123456789abcdef0123456789abcdef";
    FILE *file = fopen(body_file, "r");
    if (!file) fail(body_file);
    int size = fread(body, 1, sizeof body, file);
    fclose(file);
    request_size = snprintf(request, 8192,
                            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: OpenAI/Python 1.50.0\r\n"
                            "Accept: application/json\r\nContent-Type: application/json\r\n"
                            "Authorization: Bearer %s\r\n%sContent-Length: %d\r\n\r\n",
                            path, port, key, headers, size);
    if (request_size >= 8192) exit(fprintf(stderr, "lg: headers too long\n"));
    memcpy(request + request_size, body, size);
    request_size += size;
}

static int open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&address, sizeof address)) {
        close(c->fd);
        c->fd = -1;
        return -1;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = c - connections};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
    idle[idle_count++] = c - connections;
    return 0;
}

/* A server may close a connection that nothing runs on; only a request that breaks is an error. */
static void reopen(struct connection *c) {
    close(c->fd);
    if (c->busy) {
        errors++;
        in_flight--;
    }
    c->busy = 0;
    open_connection(c);
}

/* When the next request should go out; `now` for a closed loop that is past its stagger. */
static long long next_due(long long now) {
    if (rate > 0) return start_ns + (long long)(issued * 1e9 / rate);
    if (stagger_ms && issued < connection_count)
        return start_ns + (long long)((double)issued * stagger_ms * 1e6 / connection_count);
    return now;
}

static void send_due(long long now) {
    while (idle_count > 0 && !(max_requests && issued >= max_requests)) {
        long long due = next_due(now);
        if (due > now) return;
        struct connection *c = &connections[idle[--idle_count]];
        c->due_ns = rate > 0 ? due : now;
        c->sent_ns = now;
        c->busy = 1;
        c->started = c->head_done = c->used = c->unscanned = 0;
        c->last_chunk_ns = 0;
        issued++;
        in_flight++;
        for (int sent = 0; sent < request_size;) {
            int n = send(c->fd, request + sent, request_size - sent, MSG_NOSIGNAL);
            if (n < 0) {
                epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
                reopen(c);
                break;
            }
            sent += n;
        }
    }
}

static void parse_head(struct connection *c) {
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return;
    *end = 0;
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    c->chunked = strcasestr(c->in, "\r\ntransfer-encoding:") != NULL;
    c->head_done = 1;
    c->head_size = end + 4 - c->in;
    c->status = atoi(c->in + 9);
    c->size = length && !c->chunked ? c->head_size + atoll(length + 17) : -1;
    *end = '\r';
}

/* Find the mock's stamps in what has arrived since the last look. A stamp may be cut anywhere, so
 * up to one stamp less a byte at the end is looked at again. */
static void scan_stamps(struct connection *c, long long now) {
    char *at = c->in + c->used - c->unscanned, *end = c->in + c->used, *scanned = at;
    int found = 0;
    while ((at = memmem(at, end - at, "ts:", 3)) && end - at >= STAMP_SIZE) {
        long long stamp = atoll(at + 3);
        if (stamp >= c->sent_ns && stamp > count_from_ns) note(&chunk_delay, now - stamp);
        at += STAMP_SIZE;
        scanned = at;
        found = 1;
    }
    int tail = end - scanned;
    c->unscanned = tail < STAMP_SIZE ? tail : STAMP_SIZE - 1;
    if (!found) return;
    if (c->last_chunk_ns && now >= count_from_ns) note(&chunk_gap, now - c->last_chunk_ns);
    c->last_chunk_ns = now;
}

static int complete(const struct connection *c) {
    if (c->chunked) return c->used >= 5 && !memcmp(c->in + c->used - 5, "0\r\n\r\n", 5);
    return c->size >= 0 && c->used >= c->size;
}

static void finish(struct connection *c, long long now) {
    if (c->status != 200) {
        c->in[c->used] = 0;
        if (!refused++) fprintf(stderr, "lg: first answer that is not 200: %.400s\n", c->in);
    } else if (c->sent_ns >= count_from_ns) {
        note(&latency, now - c->due_ns);
        answered++;
    }
    c->busy = 0;
    in_flight--;
    idle[idle_count++] = c - connections;
}

static void receive(struct connection *c) {
    if (c->fd < 0) return;
    int got = recv(c->fd, c->in + c->used, IN_SIZE - c->used, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        /* An idle connection stands in the idle list already. */
        if (!c->busy)
            for (int i = 0; i < idle_count; i++)
                if (idle[i] == c - connections) idle[i--] = idle[--idle_count];
        reopen(c);
        return;
    }
    if (!c->busy) return;
    long long now = now_ns();
    received_bytes += got;
    c->used += got;
    c->unscanned += got;
    if (!c->head_done) parse_head(c);
    if (!c->head_done) return;
    if (!c->started && c->used > c->head_size) {
        c->started = 1;
        if (c->sent_ns >= count_from_ns) note(&first_byte, now - c->due_ns);
    }
    if (c->status == 200) scan_stamps(c, now);
    if (complete(c)) {
        finish(c, now);
    } else if (c->chunked && c->used > IN_FULL) {
        memmove(c->in + c->head_size, c->in + c->used - 64, 64);
        c->used = c->head_size + 64;
    }
}

static void wait_for_answers(void) {
    struct epoll_event events[1024];
    long long now = now_ns(), wait = 20000000;
    if (rate > 0 || (stagger_ms && issued < connection_count)) {
        wait = next_due(now) - now;
        if (wait < 0) wait = 0;
        if (wait > 5000000 || idle_count == 0) wait = 5000000;
    }
    struct timespec timeout = {0, wait};
    int ready = epoll_pwait2(epoll, events, 1024, &timeout, NULL);
    for (int i = 0; i < ready; i++) receive(&connections[events[i].data.u32]);
}

static void load(double seconds) {
    static const long long GRACE_NS = 3000000000LL;
    long long end = start_ns + (long long)(seconds * 1e9);
    for (;;) {
        long long now = now_ns();
        int over = now >= end || (max_requests && issued >= max_requests);
        int closed_loop_over = over && !max_requests && rate == 0;
        if (over && (in_flight == 0 || closed_loop_over || now > end + GRACE_NS)) return;
        if (!over) send_due(now);
        wait_for_answers();
    }
}

static void report(double seconds, double warm) {
    struct samples *all[] = {&latency, &first_byte, &chunk_delay, &chunk_gap};
    for (int i = 0; i < 4; i++) qsort(all[i]->values, all[i]->count, sizeof(unsigned), ascending);
    double elapsed = max_requests ? (now_ns() - count_from_ns) / 1e9 : seconds - warm;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
                 (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("{\"rps\":%.1f,\"done\":%ld,\"issued\":%ld,\"errors\":%ld,\"non200\":%ld,", answered / elapsed,
           answered, issued, errors, refused);
    printf("\"p50\":%.3f,\"p90\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f,", quantile(&latency, .5),
           quantile(&latency, .9), quantile(&latency, .99), quantile(&latency, .999), quantile(&latency, 1));
    printf("\"ttfb50\":%.3f,\"ttfb99\":%.3f,", quantile(&first_byte, .5), quantile(&first_byte, .99));
    printf("\"chunks\":%ld,\"cd50\":%.3f,\"cd99\":%.3f,\"cdmax\":%.3f,", chunk_delay.count,
           quantile(&chunk_delay, .5), quantile(&chunk_delay, .99), quantile(&chunk_delay, 1));
    printf("\"gap50\":%.3f,\"gap99\":%.3f,", quantile(&chunk_gap, .5), quantile(&chunk_gap, .99));
    printf("\"lg_cpu\":%.3f,\"elapsed\":%.3f,\"mb\":%.1f,\"unfinished\":%d}\n", cpu, elapsed,
           received_bytes / 1e6, in_flight);
}

int main(int argc, char **argv) {
    if (argc < 7) {
        fprintf(stderr, "usage: lg PORT CONNECTIONS SECONDS RATE PATH BODYFILE [STAGGER_MS] [MAX_REQUESTS]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    port = atoi(argv[1]);
    connection_count = atoi(argv[2]);
    double seconds = atof(argv[3]), warm = getenv("WARM") ? atof(getenv("WARM")) : 0;
    rate = atof(argv[4]);
    build_request(argv[5], argv[6]);
    if (argc > 7) stagger_ms = atoi(argv[7]);
    if (argc > 8) max_requests = atol(argv[8]);
    struct samples *all[] = {&latency, &first_byte, &chunk_delay, &chunk_gap};
    for (int i = 0; i < 4; i++) all[i]->values = malloc(sizeof(unsigned) * SAMPLES);
    connections = calloc(connection_count, sizeof *connections);
    idle = malloc(sizeof *idle * connection_count);
    epoll = epoll_create1(0);
    for (int i = 0; i < connection_count; i++) {
        connections[i].in = malloc(IN_SIZE + 1);
        if (open_connection(&connections[i])) fail("lg: connect");
    }
    start_ns = now_ns();
    count_from_ns = start_ns + (long long)(warm * 1e9);
    load(seconds);
    report(seconds, warm);
    return 0;
}
