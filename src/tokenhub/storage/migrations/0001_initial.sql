-- Times are Unix milliseconds, booleans 0 or 1, money nano-dollars, lists JSON text,
-- prices the decimal text the admin wrote, binary values base64 or hex text.

CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE settings (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE providers (
    id TEXT PRIMARY KEY,
    type TEXT NOT NULL,
    base_url TEXT NOT NULL DEFAULT '',
    enabled INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    cred_store TEXT NOT NULL DEFAULT 'none' CHECK (cred_store IN ('none', 'vault')),
    api_version TEXT NOT NULL DEFAULT '',
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE models (
    id TEXT PRIMARY KEY,
    provider_id TEXT NOT NULL REFERENCES providers (id) ON DELETE CASCADE,
    weight INTEGER NOT NULL DEFAULT 5,
    max_context_tokens BIGINT NOT NULL DEFAULT 0 CHECK (max_context_tokens >= 0),
    max_output_tokens BIGINT NOT NULL DEFAULT 0 CHECK (max_output_tokens >= 0),
    first_token_ms BIGINT NOT NULL DEFAULT 0 CHECK (first_token_ms >= 0),
    input_per_1k TEXT NOT NULL DEFAULT '',
    output_per_1k TEXT NOT NULL DEFAULT '',
    cached_read_per_1k TEXT NOT NULL DEFAULT '',
    cached_write_per_1k TEXT NOT NULL DEFAULT '',
    pricing_source TEXT NOT NULL DEFAULT 'manual',
    upstream_name TEXT NOT NULL DEFAULT '',
    tools INTEGER NOT NULL DEFAULT 1 CHECK (tools IN (0, 1)),
    images INTEGER NOT NULL DEFAULT 1 CHECK (images IN (0, 1)),
    enabled INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE INDEX models_provider ON models (provider_id);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    key_hash TEXT NOT NULL UNIQUE,
    key_prefix TEXT NOT NULL,
    name TEXT NOT NULL,
    scopes TEXT NOT NULL DEFAULT '[]',
    enabled INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    last_used_at BIGINT,
    expires_at BIGINT,
    rotated_at BIGINT NOT NULL,
    rotation_days INTEGER NOT NULL DEFAULT 0 CHECK (rotation_days >= 0),
    monthly_budget BIGINT CHECK (monthly_budget > 0),
    daily_budget BIGINT CHECK (daily_budget > 0),
    total_budget BIGINT CHECK (total_budget > 0),
    budget_reset_at BIGINT,
    rate_limit_rps INTEGER NOT NULL DEFAULT 0 CHECK (rate_limit_rps >= -1),
    max_concurrent INTEGER NOT NULL DEFAULT 0 CHECK (max_concurrent >= 0),
    models TEXT NOT NULL DEFAULT '[]',
    mode TEXT NOT NULL DEFAULT '',
    allow_fallback INTEGER NOT NULL DEFAULT 0 CHECK (allow_fallback IN (0, 1)),
    allow_directives INTEGER NOT NULL DEFAULT 0 CHECK (allow_directives IN (0, 1))
);

CREATE TABLE vault_header (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    header TEXT NOT NULL,
    manifest TEXT NOT NULL
);

CREATE TABLE vault_secrets (
    name TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL DEFAULT '',
    origin TEXT NOT NULL DEFAULT '',
    version BIGINT NOT NULL,
    sealed TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
