-- Roll-ups of finished requests: one row per label and span of time. Times are Unix milliseconds,
-- money nano-dollars, "latency_*" and "ttft_*" microseconds; "latency" and "ttft" are quantile
-- sketches, "classes" errors by class as JSON ('' = none).

-- kind is pair (name is a model), key (an API key's id) or mode.
CREATE TABLE series_labels (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    provider TEXT NOT NULL,
    UNIQUE (kind, name, provider)
);

-- resolution is 1000, 60000, 3600000 or 86400000; at is a multiple of it.
CREATE TABLE series_points (
    label INTEGER NOT NULL,
    resolution INTEGER NOT NULL,
    at BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    unpriced BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    input BIGINT NOT NULL,
    output BIGINT NOT NULL,
    latency_count BIGINT NOT NULL,
    latency_total BIGINT NOT NULL,
    latency_low BIGINT NOT NULL,
    latency_high BIGINT NOT NULL,
    latency TEXT NOT NULL,
    ttft_count BIGINT NOT NULL,
    ttft_total BIGINT NOT NULL,
    ttft_low BIGINT NOT NULL,
    ttft_high BIGINT NOT NULL,
    ttft TEXT NOT NULL,
    classes TEXT NOT NULL,
    PRIMARY KEY (label, resolution, at)
);

-- How far roll-ups have come: seconds before "minute" stand in minutes, minutes before "hour" in
-- hours, hours before "day" in days. What a process that died left out is rolled up at the next start.
CREATE TABLE series_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    minute BIGINT NOT NULL,
    hour BIGINT NOT NULL,
    day BIGINT NOT NULL
);
