-- What was decided, what each attempt came to, and the aliases. Times are Unix milliseconds,
-- money is nano-dollars.

CREATE TABLE model_aliases (
    name TEXT PRIMARY KEY,
    variants TEXT NOT NULL,
    enabled INTEGER NOT NULL DEFAULT 1,
    sticky_by TEXT NOT NULL DEFAULT '',
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

-- One row per attempt; "reward" is what the bandit learned, NULL where it learned nothing.
-- "feedback" is a later judgement in [0, 1], already part of "reward".
CREATE TABLE reward_log (
    request_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    at BIGINT NOT NULL,
    model_id TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    mode TEXT NOT NULL,
    estimated_tokens BIGINT NOT NULL,
    token_bucket TEXT NOT NULL,
    latency_budget_ms BIGINT NOT NULL,
    latency_ms REAL NOT NULL,
    ttft_ms REAL,
    cost BIGINT,
    error_class TEXT NOT NULL,
    reward REAL,
    propensity REAL NOT NULL,
    feedback REAL,
    PRIMARY KEY (request_id, attempt)
);

CREATE INDEX reward_log_at ON reward_log (at);

-- One row per request; "record" holds the inputs, from which the decision can be made again.
CREATE TABLE decision_log (
    request_id TEXT PRIMARY KEY,
    at BIGINT NOT NULL,
    mode TEXT NOT NULL,
    policy TEXT NOT NULL,
    model_id TEXT NOT NULL,
    answered_by TEXT NOT NULL,
    outcome TEXT NOT NULL,
    rules TEXT NOT NULL,
    record TEXT NOT NULL,
    attempts TEXT NOT NULL
);

CREATE INDEX decision_log_at ON decision_log (at);

-- Catalog, aliases and settings as decisions were made under them, by digest.
CREATE TABLE decision_rules (
    digest TEXT PRIMARY KEY,
    at BIGINT NOT NULL,
    body TEXT NOT NULL
);
