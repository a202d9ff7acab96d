-- What must not happen twice: requests with one nonce, and requests with one Idempotency-Key.

CREATE TABLE nonces (
    key   TEXT    NOT NULL PRIMARY KEY,
    until INTEGER NOT NULL  -- when it may be forgotten, microseconds since 1970
) WITHOUT ROWID;

CREATE INDEX nonces_by_until ON nonces (until);

CREATE TABLE idempotency_keys (
    key         TEXT    NOT NULL PRIMARY KEY,
    fingerprint BLOB    NOT NULL,  -- of the request; another one under this key is a conflict
    lease_until INTEGER NOT NULL,  -- while there is no answer: until when somebody is at work on it
    until       INTEGER NOT NULL,
    answer      TEXT
) WITHOUT ROWID;

CREATE INDEX idempotency_keys_by_until ON idempotency_keys (until);
