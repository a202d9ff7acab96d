-- What an owner is owed is found by his subscriptions alone; whose a subscription was is known as long as deliveries of
-- it are; and owners take turns with what they ask to be sent again.

CREATE INDEX subscriptions_durable_by_owner ON subscriptions (owner, id) WHERE endpoint IS NOT NULL;

CREATE INDEX deliveries_dead_of_subscription ON deliveries (subscription_id, sequence) WHERE state = 'dead';

-- Subscriptions that are gone and had an owner, while there are deliveries of them.
CREATE TABLE gone_subscriptions (
    id    TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL
) WITHOUT ROWID;

CREATE TRIGGER subscription_gone AFTER DELETE ON subscriptions
    WHEN OLD.owner IS NOT NULL AND EXISTS (SELECT 1 FROM deliveries WHERE subscription_id = OLD.id) BEGIN
    INSERT OR REPLACE INTO gone_subscriptions (id, owner) VALUES (OLD.id, OLD.owner);
END;

ALTER TABLE replays ADD COLUMN owner TEXT NOT NULL DEFAULT '';  -- who asked; '' is who sees everything

DROP INDEX replays_to_do;

CREATE INDEX replays_to_do ON replays (owner, number) WHERE finished_at IS NULL;

CREATE INDEX replays_that_are_over ON replays (owner, number) WHERE finished_at IS NOT NULL;

-- Whose turn it was last: one row.
CREATE TABLE replay_turn (owner TEXT NOT NULL);

INSERT INTO replay_turn (owner) VALUES ('');
