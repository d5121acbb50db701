-- A request's row of decision_log says all that reward_log said of its attempts: their rewards
-- follow from "attempts" and "latency_budget_ms", what was judged later stands in "feedback".
-- Rows without "latency_budget_ms" are from before; their rewards stand in reward_log, to which
-- nothing is added any more.
ALTER TABLE decision_log ADD COLUMN latency_budget_ms BIGINT;
ALTER TABLE decision_log ADD COLUMN feedback REAL;
