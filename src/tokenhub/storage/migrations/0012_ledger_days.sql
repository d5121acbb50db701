-- Attempts that are past their retention, added up: one row per UTC day, key, model and provider.
-- No row of ledger_attempts that counts here stands there any more. "began_at" is the day's first
-- millisecond, "last_id" the highest id that was added up.
CREATE TABLE ledger_days (
    day INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    model_id TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    began_at BIGINT NOT NULL,
    last_id BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    settled BIGINT NOT NULL,
    overrun BIGINT NOT NULL,
    prompt BIGINT NOT NULL,
    completion BIGINT NOT NULL,
    cached_read BIGINT NOT NULL,
    cached_write BIGINT NOT NULL,
    reasoning BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    inexact BIGINT NOT NULL,
    PRIMARY KEY (day, key_id, model_id, provider_id)
);
