-- The message that a request under a key is, also when it is begun again after a crash.

ALTER TABLE idempotency_keys ADD COLUMN message_id TEXT NOT NULL DEFAULT '';
