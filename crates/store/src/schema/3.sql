-- Schema 3. A generation that each transaction raises, the record files that it leaves to be written, and recipes by digest.

-- 16 hexadecimal digits, the number; 16 more, whose transaction it was.
INSERT INTO store (name, value) VALUES ('generation', '0000000000000000-0000000000000000');

-- Names in records/ whose file is written after the row it follows: named here by the same transaction, and taken out by
-- a later one, once the file is seen to be right.
CREATE TABLE records_due (
    name       TEXT PRIMARY KEY,
    generation INTEGER NOT NULL                    -- of the transaction that made it due
) STRICT, WITHOUT ROWID;

-- SHA-256 of the recipe's file, by which a deep check knows it again. NULL: made or put back without one.
ALTER TABLE recipes ADD COLUMN digest TEXT;
