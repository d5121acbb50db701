-- "at" of decision_rules is from now on when they were last in use, not first, so that no decision
-- has to be looked at to know which rules can go.
UPDATE decision_rules SET at = (SELECT COALESCE(MAX(at), 0) FROM decision_log);
