-- Who is called back for what, and the log of its changes.

CREATE TABLE subscriptions (
    id            TEXT    NOT NULL PRIMARY KEY,
    url           TEXT    NOT NULL,  -- canonical, with its fragment
    kind          TEXT    NOT NULL CHECK (kind IN ('exact', 'glob', 'mqtt')),
    pattern       BLOB    NOT NULL CHECK (typeof(pattern) = 'blob'),
    lease_seconds INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,  -- microseconds since 1970, like every moment here
    expires_at    INTEGER NOT NULL,
    UNIQUE (url, kind, pattern)
) WITHOUT ROWID;

-- The pages of one URL, in the order of the ids.
CREATE INDEX subscriptions_by_url ON subscriptions (url, id);

CREATE INDEX subscriptions_by_expiry ON subscriptions (expires_at);

-- One row for each change of a subscription, numbered without gaps; the last number is the version of the whole table.
-- Old rows are deleted, never the last one: whoever is behind the first row that is left reads the whole table.
CREATE TABLE subscription_changes (
    version         INTEGER NOT NULL PRIMARY KEY,
    subscription_id TEXT    NOT NULL
);
