-- Where there are many models, "body" holds of their arms and times only what differs from another
-- evidence, whose digest is "base"; '' = it is complete.
ALTER TABLE decision_evidence ADD COLUMN base TEXT NOT NULL DEFAULT '';
