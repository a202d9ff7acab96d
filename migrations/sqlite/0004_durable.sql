-- Durable delivery: messages that were accepted, what is owed to whom of them, and what became of it.

ALTER TABLE subscriptions ADD COLUMN delivery TEXT NOT NULL DEFAULT 'best_effort'
    CHECK (delivery IN ('best_effort', 'durable'));
ALTER TABLE subscriptions ADD COLUMN ordered INTEGER NOT NULL DEFAULT 0;
ALTER TABLE subscriptions ADD COLUMN retry_schedule TEXT;  -- JSON: seconds before each attempt; NULL: the usual one
ALTER TABLE subscriptions ADD COLUMN endpoint INTEGER;     -- of a durable one
ALTER TABLE subscriptions ADD COLUMN last_sequence INTEGER NOT NULL DEFAULT 0;
ALTER TABLE subscriptions ADD COLUMN last_message_id TEXT;

CREATE INDEX subscriptions_by_endpoint ON subscriptions (endpoint) WHERE endpoint IS NOT NULL;

-- A callback URL without its fragment: what fails together, and what takes turns.
CREATE TABLE endpoints (
    number        INTEGER NOT NULL PRIMARY KEY,
    url           TEXT    NOT NULL UNIQUE,
    ready_at      INTEGER,  -- nothing of it can be claimed earlier; NULL: nothing is pending
    blocked_until INTEGER NOT NULL DEFAULT 0,
    blocked_at    INTEGER NOT NULL DEFAULT 0,  -- when that was decided
    unused_after  INTEGER  -- no subscription has had it since this message
);

CREATE INDEX endpoints_by_turn ON endpoints (ready_at) WHERE ready_at IS NOT NULL;

-- The last number is never deleted, so that none comes twice.
CREATE TABLE messages (
    number       INTEGER NOT NULL PRIMARY KEY,
    id           TEXT    NOT NULL UNIQUE,
    topic        BLOB    NOT NULL,
    content_type TEXT    NOT NULL,
    sha256       BLOB    NOT NULL,
    size         INTEGER NOT NULL,
    traceparent  TEXT,
    accepted_at  INTEGER NOT NULL,
    deliver_at   INTEGER,  -- of a scheduled one
    expires_at   INTEGER,
    body_kept    INTEGER NOT NULL,  -- 0 when retention has taken the body
    body         BLOB  -- last, so that the rest is read without it; NULL for a large one, which is in message_chunks
);

CREATE INDEX messages_by_time ON messages (accepted_at);

CREATE INDEX messages_with_bodies ON messages (accepted_at) WHERE body_kept = 1;

-- Messages with an end, until what is pending of them then has been given up.
CREATE TABLE message_expiries (
    expires_at INTEGER NOT NULL,
    message    INTEGER NOT NULL,
    place      TEXT    NOT NULL DEFAULT '',  -- how far that has got: the last subscription
    PRIMARY KEY (expires_at, message)
) WITHOUT ROWID;

-- Large bodies in pieces, written before their message is accepted.
CREATE TABLE message_chunks (
    message_id TEXT    NOT NULL,
    position   INTEGER NOT NULL,  -- 0, 1, 2 ...
    data       BLOB    NOT NULL,
    UNIQUE (message_id, position)
);

-- Those that have pieces here and were not accepted yet.
CREATE TABLE uploads (
    message_id TEXT    NOT NULL PRIMARY KEY,
    written_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX uploads_by_time ON uploads (written_at);

-- One message for one durable subscription. It outlives the subscription.
CREATE TABLE deliveries (
    message             INTEGER NOT NULL,
    subscription_id     TEXT    NOT NULL,
    endpoint            INTEGER NOT NULL,
    sequence            INTEGER NOT NULL,  -- 1, 2, 3 ... of the subscription
    previous_message_id TEXT,
    ordered             INTEGER NOT NULL,
    -- waiting: pending, but behind another one of its ordered subscription
    state               TEXT    NOT NULL CHECK (state IN ('pending', 'waiting', 'delivered', 'dead', 'cancelled')),
    due_at              INTEGER NOT NULL,  -- while it is leased: the end of the lease
    leased_by           TEXT,
    attempts            INTEGER NOT NULL DEFAULT 0,  -- all that were ever begun; part of what a lease is known by
    attempts_before     INTEGER NOT NULL DEFAULT 0,  -- those before it was replayed last
    updated_at          INTEGER NOT NULL,  -- when state and due_at were decided
    status              INTEGER,  -- of the last answer
    reason              TEXT,     -- why it is dead or cancelled
    PRIMARY KEY (message, subscription_id)
) WITHOUT ROWID;

CREATE UNIQUE INDEX deliveries_by_subscription ON deliveries (subscription_id, sequence);

-- Of one endpoint only, in the order in which they are due.
CREATE INDEX deliveries_to_claim ON deliveries (endpoint, due_at, message, subscription_id) WHERE state = 'pending';

-- The head of an ordered subscription, and who comes after it.
CREATE INDEX deliveries_in_order ON deliveries (subscription_id, state, sequence)
    WHERE ordered = 1 AND state IN ('pending', 'waiting');

CREATE INDEX deliveries_dead ON deliveries (message, subscription_id) WHERE state = 'dead';

-- Attempts that failed; those that succeeded are told by their delivery.
CREATE TABLE attempts (
    message         INTEGER NOT NULL,
    subscription_id TEXT    NOT NULL,
    attempt         INTEGER NOT NULL,
    began_at        INTEGER NOT NULL,
    ended_at        INTEGER NOT NULL,
    status          INTEGER,
    error           TEXT,
    answer          BLOB    NOT NULL,  -- its beginning
    PRIMARY KEY (message, subscription_id, attempt)
) WITHOUT ROWID;

-- Durable subscriptions that are gone, until nothing of them is pending any more.
CREATE TABLE ended_subscriptions (
    subscription_id TEXT    NOT NULL PRIMARY KEY,
    reason          TEXT    NOT NULL,
    after_sequence  INTEGER NOT NULL DEFAULT 0  -- how far that has got
) WITHOUT ROWID;

-- What an operator asked to be sent again, until all of it is pending.
CREATE TABLE replays (
    number       INTEGER NOT NULL PRIMARY KEY,
    selection    TEXT    NOT NULL,  -- JSON
    requested_at INTEGER NOT NULL,
    last_message INTEGER NOT NULL,  -- that there was then
    place        TEXT,              -- JSON: how far it has got
    replayed     INTEGER NOT NULL DEFAULT 0,
    skipped      INTEGER NOT NULL DEFAULT 0,
    finished_at  INTEGER
);

CREATE INDEX replays_to_do ON replays (number) WHERE finished_at IS NULL;

-- The latest moment that was seen: an earlier one tells that the clock was set back.
CREATE TABLE clock (latest INTEGER NOT NULL);
