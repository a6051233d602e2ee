"""The tables of the catalogue.

Every column of a job is in an index, too: a check of the whole file compares the two, and so finds a text or a number
that was damaged. Jobs are kept in the order in which they were made, as most indexes are: the check and the lists then
find what belongs together in the same pages.

The bytes of all jobs together are kept in a table of one row, by triggers.

A row of `shares` may outlive its share, but not its job: it says where to look, and the job's folder what holds.
"""

BUILDING, COMPLETE = 8, 9  # PRAGMA user_version; any other is not ours, or older
SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE jobs (
    created_ns INTEGER NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, name TEXT NOT NULL,
    ended_ns INTEGER NOT NULL DEFAULT 0, disk_bytes INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (created_ns, id)
) WITHOUT ROWID, STRICT;
CREATE UNIQUE INDEX by_id ON jobs (id);
CREATE INDEX by_owner ON jobs (owner, created_ns, id, name);
CREATE INDEX by_end ON jobs (ended_ns, id, disk_bytes);
CREATE INDEX unended ON jobs (owner) WHERE ended_ns = 0;
CREATE TABLE shares (
    grantee TEXT NOT NULL, created_ns INTEGER NOT NULL, id TEXT NOT NULL, PRIMARY KEY (grantee, created_ns, id)
) WITHOUT ROWID, STRICT;
CREATE INDEX shares_by_id ON shares (id, created_ns, grantee);
CREATE TRIGGER made_again AFTER UPDATE OF created_ns ON jobs WHEN NEW.created_ns <> OLD.created_ns
    BEGIN DELETE FROM shares WHERE id = OLD.id; END;
CREATE TRIGGER unshared AFTER DELETE ON jobs
    BEGIN DELETE FROM shares WHERE id = OLD.id; END;
CREATE TABLE total (disk_bytes INTEGER NOT NULL) STRICT;
INSERT INTO total VALUES (0);
CREATE TRIGGER entered AFTER INSERT ON jobs WHEN NEW.disk_bytes <> 0
    BEGIN UPDATE total SET disk_bytes = disk_bytes + NEW.disk_bytes; END;
CREATE TRIGGER resized AFTER UPDATE OF disk_bytes ON jobs WHEN NEW.disk_bytes <> OLD.disk_bytes
    BEGIN UPDATE total SET disk_bytes = disk_bytes + NEW.disk_bytes - OLD.disk_bytes; END;
CREATE TRIGGER removed AFTER DELETE ON jobs WHEN OLD.disk_bytes <> 0
    BEGIN UPDATE total SET disk_bytes = disk_bytes - OLD.disk_bytes; END;
"""
SCHEMA += f"PRAGMA user_version = {BUILDING}; COMMIT"
TOTAL_FITS = """
SELECT (SELECT count(*) FROM total) = 1
    AND (SELECT disk_bytes FROM total) = (SELECT ifnull(sum(disk_bytes), 0) FROM jobs)
"""
