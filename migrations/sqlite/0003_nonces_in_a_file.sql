-- Nonces are remembered in a file beside the database, which costs less before every notify.

DROP TABLE nonces;
