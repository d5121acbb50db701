-- Prompts and answers, only where the admin turned that on (TOKENHUB_LOG_CONTENT).
CREATE TABLE transcripts (
    request_id TEXT PRIMARY KEY,
    at_ms      BIGINT NOT NULL,
    request    TEXT NOT NULL,
    answer     TEXT NOT NULL,
    cut        INTEGER NOT NULL
);
CREATE INDEX transcripts_at ON transcripts (at_ms);
