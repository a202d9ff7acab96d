-- Whose things are, what a delivery looks like, and the secrets that subscriptions have of their own.

ALTER TABLE subscriptions ADD COLUMN owner TEXT;      -- whoever made it; NULL: everybody's, until somebody renews it
ALTER TABLE subscriptions ADD COLUMN format TEXT NOT NULL DEFAULT 'raw';
ALTER TABLE subscriptions ADD COLUMN signature TEXT;  -- v1 or v1a; NULL: it has no secret of its own
ALTER TABLE subscriptions ADD COLUMN public_key TEXT; -- of v1a
ALTER TABLE subscriptions ADD COLUMN sealed BLOB;     -- its secrets, encrypted

CREATE INDEX subscriptions_by_owner ON subscriptions (owner, id) WHERE owner IS NOT NULL;

ALTER TABLE messages ADD COLUMN owner TEXT;  -- of the key that published it
ALTER TABLE messages ADD COLUMN hops INTEGER NOT NULL DEFAULT 0;

-- How many subscriptions each owner has ('' for those that are everybody's), those that have expired included as long
-- as they have not been deleted: a quota costs one row, however many there are.
CREATE TABLE owners (
    owner         TEXT    NOT NULL PRIMARY KEY,
    subscriptions INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO owners (owner, subscriptions) SELECT '', count(*) FROM subscriptions GROUP BY owner;

CREATE TRIGGER subscription_counted AFTER INSERT ON subscriptions BEGIN
    INSERT INTO owners (owner, subscriptions) VALUES (coalesce(NEW.owner, ''), 1)
        ON CONFLICT (owner) DO UPDATE SET subscriptions = subscriptions + 1;
END;

CREATE TRIGGER subscription_uncounted AFTER DELETE ON subscriptions BEGIN
    UPDATE owners SET subscriptions = subscriptions - 1 WHERE owner = coalesce(OLD.owner, '');
    DELETE FROM owners WHERE owner = coalesce(OLD.owner, '') AND subscriptions = 0;
END;

CREATE TRIGGER subscription_recounted AFTER UPDATE OF owner ON subscriptions WHEN OLD.owner IS NOT NEW.owner BEGIN
    UPDATE owners SET subscriptions = subscriptions - 1 WHERE owner = coalesce(OLD.owner, '');
    DELETE FROM owners WHERE owner = coalesce(OLD.owner, '') AND subscriptions = 0;
    INSERT INTO owners (owner, subscriptions) VALUES (coalesce(NEW.owner, ''), 1)
        ON CONFLICT (owner) DO UPDATE SET subscriptions = subscriptions + 1;
END;
