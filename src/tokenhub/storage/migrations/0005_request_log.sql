-- One row per request to /v1. Times are Unix milliseconds, money nano-dollars (NULL = unknown
-- price). "seq" rises with the end of the request.
CREATE TABLE request_log (
    seq           BIGINT PRIMARY KEY,
    request_id    TEXT NOT NULL,
    client_id     TEXT NOT NULL,
    session       TEXT NOT NULL,
    at_ms         BIGINT NOT NULL,
    endpoint      TEXT NOT NULL,
    key_id        TEXT NOT NULL,
    asked         TEXT NOT NULL,
    model_id      TEXT NOT NULL,
    provider_id   TEXT NOT NULL,
    mode          TEXT NOT NULL,
    alias         TEXT NOT NULL,
    reason        TEXT NOT NULL,
    stream        INTEGER NOT NULL,
    status        INTEGER NOT NULL,
    error_class   TEXT NOT NULL,
    error         TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    latency_ms    REAL NOT NULL,
    ttft_ms       REAL,
    prompt        BIGINT NOT NULL,
    completion    BIGINT NOT NULL,
    cached_read   BIGINT NOT NULL,
    cached_write  BIGINT NOT NULL,
    reasoning     BIGINT NOT NULL,
    counted_by    TEXT NOT NULL,
    cost          BIGINT,
    price_source  TEXT NOT NULL,
    price_version TEXT NOT NULL,
    attempt_count INTEGER NOT NULL,
    attempts      TEXT NOT NULL
);
CREATE INDEX request_log_id ON request_log (request_id);
CREATE INDEX request_log_at ON request_log (at_ms);
