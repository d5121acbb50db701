-- Money is nano-dollars. Every attempt that may cost something has one row in ledger_attempts; it
-- counts in three accounts of its key: the UTC month and day in which it was reserved, and the
-- total. An account is the sum of its rows and entries; `tokenhubctl budget verify` proves it.

-- One per run of the server. No row below low_id is open; closed_at is NULL when the process died.
CREATE TABLE ledger_epochs (
    epoch INTEGER PRIMARY KEY,
    started_at BIGINT NOT NULL,
    low_id BIGINT NOT NULL,
    closed_at BIGINT
);

-- budget is the limit the key has (NULL = none). ceiling is the limit in force: the budget, or,
-- after the budget was lowered below it, what was settled and reserved already.
CREATE TABLE ledger_accounts (
    id INTEGER PRIMARY KEY,
    key_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('month', 'day', 'total')),
    period INTEGER NOT NULL,
    settled BIGINT NOT NULL DEFAULT 0 CHECK (settled >= 0),
    reserved BIGINT NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    overrun BIGINT NOT NULL DEFAULT 0 CHECK (overrun >= 0),
    budget BIGINT CHECK (budget >= 0),
    ceiling BIGINT NOT NULL,
    UNIQUE (key_id, kind, period),
    CHECK (settled + reserved <= ceiling),
    CHECK (budget IS NULL OR ceiling >= budget)
);

-- state is open, settled or released; month is YYYYMM, day YYYYMMDD; further holds the rare kinds of
-- usage as JSON, '' when none. No CHECKs here: they would double the cost of a row, and what a row
-- may add is checked where it counts, in its accounts.
CREATE TABLE ledger_attempts (
    id INTEGER PRIMARY KEY,
    key_id TEXT NOT NULL,
    month INTEGER NOT NULL,
    day INTEGER NOT NULL,
    request_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    model_id TEXT NOT NULL,
    provider_id TEXT NOT NULL,
    state TEXT NOT NULL,
    reserved BIGINT NOT NULL,
    settled BIGINT NOT NULL DEFAULT 0,
    overrun BIGINT NOT NULL DEFAULT 0,
    prompt BIGINT NOT NULL DEFAULT 0,
    completion BIGINT NOT NULL DEFAULT 0,
    cached_read BIGINT NOT NULL DEFAULT 0,
    cached_write BIGINT NOT NULL DEFAULT 0,
    reasoning BIGINT NOT NULL DEFAULT 0,
    further TEXT NOT NULL DEFAULT '',
    price_source TEXT NOT NULL,
    price_version TEXT NOT NULL,
    flag TEXT NOT NULL DEFAULT '',
    epoch INTEGER NOT NULL,
    opened_at BIGINT NOT NULL,
    closed_at BIGINT
);

-- What an admin booked by hand: settled and overrun are what it added to its one account.
CREATE TABLE ledger_entries (
    id INTEGER PRIMARY KEY,
    key_id TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('month', 'day', 'total')),
    period INTEGER NOT NULL,
    what TEXT NOT NULL CHECK (what IN ('adjust', 'paid')),
    settled BIGINT NOT NULL,
    overrun BIGINT NOT NULL,
    reason TEXT NOT NULL,
    booked_at BIGINT NOT NULL
);
CREATE INDEX ledger_entries_key ON ledger_entries (key_id);
