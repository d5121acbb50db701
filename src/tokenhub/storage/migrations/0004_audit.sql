-- Who changed what. Each row's digest covers its content and the digest of the row before.
CREATE TABLE audit_log (
    seq        BIGINT PRIMARY KEY,
    at_ms      BIGINT NOT NULL,
    actor      TEXT NOT NULL,
    address    TEXT NOT NULL,
    action     TEXT NOT NULL,
    resource   TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    request_id TEXT NOT NULL,
    before     TEXT,
    after      TEXT,
    previous   TEXT NOT NULL,
    digest     TEXT NOT NULL
);
CREATE INDEX audit_log_at ON audit_log (at_ms);
