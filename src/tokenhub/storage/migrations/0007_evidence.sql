-- Evidence is shared by many decisions, so it has a table of its own, by digest. A decision
-- logged before this cannot be made again without its evidence.
DELETE FROM decision_log;
ALTER TABLE decision_log ADD COLUMN evidence TEXT NOT NULL DEFAULT '';

CREATE TABLE decision_evidence (
    digest TEXT PRIMARY KEY,
    at BIGINT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX decision_evidence_at ON decision_evidence (at);
